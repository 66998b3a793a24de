"""Feature statistics, simulations and tail losses as rich tables and figures."""

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float64
from rich.console import Group, RenderableType
from rich.text import Text

from tl_distill_floor.annotations import CostUnit
from tl_distill_floor.display.figure_style import COLOURS, add_curve, apply_style, error_bars, log_spaced_ranks
from tl_distill_floor.display.tables import key_value_table, plain_table, warning_lines
from tl_distill_floor.display.units import LONG_UNIT, SHORT_UNIT
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.simulation import Simulation
from tl_distill_floor.results.tail_loss import TailLoss, ratio_standard_error
from tl_distill_floor.theory.power_law import PowerLaw, fit_power_law


def stats_table(stats: FeatureStats) -> RenderableType:
    """Return what was measured of an SAE's features, one property per row."""
    n_alive = int(stats.alive().sum())
    rows = [
        ("teacher", f"{stats.model_name}, {stats.hook_name} ({stats.d_model:,} dimensions)"),
        ("SAE", f"{stats.sae_name}, {len(stats.firing_count):,} features, {n_alive:,} of them fired"),
        ("text", f"{stats.text_name}, {stats.n_tokens:,} tokens counted, {stats.n_masked:,} left out"),
        ("L0", format_l0(stats)),
        ("unexplained", f"{stats.fvu:.4f} of the variance (on {stats.sampled_tokens:,} tokens)"),
        (
            "cost",
            f"{stats.cost.sum():.4g} in total, {LONG_UNIT[stats.cost_unit]}, on {stats.n_cost_tokens:,} tokens",
        ),
        ("SAE codes", "not kept" if stats.codes is None else f"of {stats.codes.n_tokens:,} tokens"),
    ]
    return Group(key_value_table(rows), warning_lines(stats.warnings))


def simulation_table(simulation: Simulation) -> RenderableType:
    """Return the floor of each simulated width; the mean over seeds."""
    table = plain_table(f"Bottleneck students trained for {simulation.steps:,} steps")
    headings = ("width", "floor", "standard error", "after training", "on training text")
    for heading in (*headings, *([] if simulation.kl is None else ["KL (nats/token)"])):
        table.add_column(heading, justify="right")
    for i, width in enumerate(simulation.widths.tolist()):
        table.add_row(
            f"{width:,}",
            f"{simulation.floor[i].mean():.4g}",
            f"{simulation.standard_error[i]:.2g}",
            f"{simulation.reached[i].mean():.4g}",
            f"{simulation.on_training_text[i].mean():.4g}",
            *([] if simulation.kl is None else [f"{simulation.kl[i].mean():.4g}"]),
        )
    note = (
        "floor: summed cost of what is lost, extrapolated to the end of training. KL is KL(teacher ‖ teacher with the"
        " student's codes)."
    )
    return Group(table, Text(note))


def tail_loss_table(tail: TailLoss) -> RenderableType:
    """Return the loss of removing all features beyond each measured rank."""
    table = plain_table(f"Tail loss ({SHORT_UNIT['nats']}): KL(teacher ‖ teacher without the features beyond a rank)")
    for heading in ("features kept", "loss", "standard error", "summed cost"):
        table.add_column(heading, justify="right")
    errors = ratio_standard_error(tail.loss, tail.n_tokens)
    for rank, loss, error, cost in zip(tail.ranks.tolist(), tail.mean, errors, tail.additive, strict=True):
        table.add_row(f"{rank:,}", f"{loss:.4g}", f"{error:.2g}", f"{cost:.4g}")
    return Group(table, Text(f"Measured on {int(tail.n_tokens.sum()):,} tokens."))


def sorted_costs_figure(
    cost: Float64[np.ndarray, " rank"], unit: CostUnit, power_law: PowerLaw | None = None
) -> go.Figure:
    """Return sorted costs against the rank, on logarithmic axes.

    Args:
        cost: costs in falling order; those that are 0 are left out.
        unit: their unit.
        power_law: a fit to draw, with its cliff.
    """
    cost = cost[cost > 0]
    ranks = log_spaced_ranks(len(cost))
    figure = go.Figure()
    if len(cost):
        add_curve(figure, ranks, cost[ranks - 1], "measured", COLOURS["simulated"], markers=False)
    if power_law is not None:
        for slope, law_ranks, values in power_law.lines(cost, ranks):
            name = f"rank^-{slope:.3g}"
            add_curve(figure, law_ranks, values, name, "black", dash="dash", width=1.5, markers=False)
        if power_law.cliff is not None:
            figure.add_vline(power_law.cliff, line_dash="dot")
            # On a logarithmic axis plotly places a line by its value, and an annotation by its logarithm.
            text = {"text": f"cliff at {power_law.cliff:,.0f}", "showarrow": False, "xanchor": "right"}
            figure.add_annotation(x=np.log10(power_law.cliff), y=1.0, yref="paper", **text)
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log", exponentformat="power")
    return apply_style(figure, "Cost of each feature", "rank by cost", f"cost ({LONG_UNIT[unit]})")


def stats_figure(stats: FeatureStats) -> go.Figure:
    """Return the sorted costs of the features that fired, with their power law."""
    cost = stats.cost[stats.alive()]
    return sorted_costs_figure(np.sort(cost)[::-1], stats.cost_unit, fit_power_law(cost))


def simulation_figure(simulation: Simulation) -> go.Figure:
    """Return the simulated floor against the width with its standard error, and the loss on the training text."""
    widths, floor, error = simulation.widths, simulation.floor.mean(1), simulation.standard_error
    figure, bars = go.Figure(), error_bars(floor, floor - error, floor + error)
    add_curve(figure, widths, floor, "floor, held-out text (± standard error)", COLOURS["simulated"], error_y=bars)
    on_training_text = simulation.on_training_text.mean(1)
    add_curve(figure, widths, on_training_text, "after training, training text", "grey", dash="dot")
    figure.update_yaxes(rangemode="tozero")
    return apply_style(figure, "Bottleneck students", "width (dimensions)", "summed cost of what is lost")


def tail_loss_figure(tail: TailLoss) -> go.Figure:
    """Return the measured loss of removing all features beyond a rank, and the sum of their costs."""
    loss, error = tail.mean, ratio_standard_error(tail.loss, tail.n_tokens)
    figure, bars = go.Figure(), error_bars(loss, loss - error, loss + error)
    add_curve(figure, tail.ranks, loss, "measured (± standard error)", COLOURS["simulated"], error_y=bars)
    add_curve(figure, tail.ranks, tail.additive, "sum of the costs", "grey", dash="dot")
    title = "Tail loss: KL(teacher ‖ teacher without the features beyond a rank)"
    return apply_style(figure, title, "features kept", LONG_UNIT["nats"])


def format_l0(stats: FeatureStats) -> str:
    """Return L0 as text, with the publisher's value if it is known."""
    expected = "" if stats.expected_l0 is None else f" (its publisher: {stats.expected_l0:.1f})"
    return f"{stats.l0:.1f} active features per token{expected}"
