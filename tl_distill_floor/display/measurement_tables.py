"""Feature statistics, simulations and tail losses as rich tables."""

from rich.console import Group, RenderableType
from rich.text import Text

from tl_distill_floor.display.tables import key_value_table, plain_table, warning_lines
from tl_distill_floor.display.units import LONG_UNIT, SHORT_UNIT
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.simulation import Simulation
from tl_distill_floor.results.tail_loss import TailLoss, ratio_standard_error


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


def format_l0(stats: FeatureStats) -> str:
    """Return L0 as text, with the publisher's value if it is known."""
    expected = "" if stats.expected_l0 is None else f" (its publisher: {stats.expected_l0:.1f})"
    return f"{stats.l0:.1f} active features per token{expected}"
