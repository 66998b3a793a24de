"""Figures of measured features, of what removing them costs, and of the features that a student loses."""

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float64

from tl_distill_floor.annotations import CostUnit
from tl_distill_floor.display.figure_style import COLOURS, apply_style, error_bars, escape_markup, log_spaced_ranks
from tl_distill_floor.display.units import LONG_UNIT
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.lost_features import LostFeatures, OneFeature
from tl_distill_floor.results.simulation import Simulation
from tl_distill_floor.results.tail_loss import TailLoss, ratio_standard_error
from tl_distill_floor.theory.power_law import PowerLaw, fit_power_law


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
        line = {"color": COLOURS["simulated"]}
        figure.add_scatter(x=ranks.tolist(), y=cost[ranks - 1].tolist(), mode="lines", line=line, name="measured")
    if power_law is not None:
        for slope, law_ranks, values in power_law.lines(cost, ranks):
            dashed = {"dash": "dash", "color": "black", "width": 1.5}
            name = f"rank^-{slope:.3g}"
            figure.add_scatter(x=law_ranks.tolist(), y=values.tolist(), mode="lines", line=dashed, name=name)
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
    widths, floor = simulation.widths.tolist(), simulation.floor.mean(1)
    error = simulation.standard_error
    figure = go.Figure()
    figure.add_scatter(
        x=widths,
        y=floor.tolist(),
        error_y=error_bars(floor, floor - error, floor + error),
        mode="lines+markers",
        line={"color": COLOURS["simulated"]},
        name="floor, held-out text",
    )
    figure.add_scatter(
        x=widths,
        y=simulation.on_training_text.mean(1).tolist(),
        mode="lines+markers",
        line={"color": "grey", "dash": "dot"},
        name="after training, training text",
    )
    figure.update_yaxes(rangemode="tozero")
    return apply_style(figure, "Bottleneck students", "width (dimensions)", "summed cost of what is lost")


def tail_loss_figure(tail: TailLoss) -> go.Figure:
    """Return the measured loss of removing all features beyond a rank, and the sum of their costs."""
    ranks, loss = tail.ranks.tolist(), tail.mean
    error = ratio_standard_error(tail.loss, tail.n_tokens)
    figure = go.Figure()
    figure.add_scatter(
        x=ranks,
        y=loss.tolist(),
        error_y=error_bars(loss, loss - error, loss + error),
        mode="lines+markers",
        line={"color": COLOURS["simulated"]},
        name="measured",
    )
    figure.add_scatter(
        x=ranks,
        y=tail.additive.tolist(),
        mode="lines+markers",
        line={"color": "grey", "dash": "dot"},
        name="sum of the costs",
    )
    title = "Tail loss: KL(teacher ‖ teacher without the features beyond a rank)"
    return apply_style(figure, title, "features kept", LONG_UNIT["nats"])


def lost_features_figure(lost_features: LostFeatures) -> go.Figure:
    """Return the cost of each of the most costly lost features as a bar, and the part of it that is lost."""
    shown = lost_features.shown
    names = [f"feature {feature.feature}" for feature in shown]
    figure = go.Figure()
    figure.add_bar(x=names, y=[feature.cost for feature in shown], marker={"color": COLOURS["simulated"]}, name="cost")
    lost_cost = [feature.cost * feature.lost_share for feature in shown]
    figure.add_bar(x=names, y=lost_cost, marker={"color": COLOURS["theorem"]}, name="lost")
    figure.update_layout(barmode="overlay")
    title = (
        f"Features that a student of {escape_markup(lost_features.model_name)} of width {lost_features.width:,} loses"
    )
    return apply_style(figure, title, "", f"cost ({LONG_UNIT[lost_features.unit]})")


def one_feature_figure(one_feature: OneFeature) -> go.Figure:
    """Return the capacity of one feature and the part of its cost that is lost, against the student width."""
    widths = list(one_feature.widths)
    figure = go.Figure()
    figure.add_scatter(
        x=widths,
        y=[at.capacity for at in one_feature.at],
        mode="lines+markers",
        line={"color": COLOURS["simulated"]},
        name="capacity (dimensions)",
    )
    figure.add_scatter(
        x=widths,
        y=[at.lost_share for at in one_feature.at],
        mode="lines+markers",
        line={"color": COLOURS["theorem"]},
        name="share of its cost that is lost",
    )
    if one_feature.survives_from is not None:
        figure.add_vline(one_feature.survives_from, line_dash="dash", annotation_text="survives from here")
    title = f"Feature {one_feature.at[0].feature} of {escape_markup(one_feature.sae_name)}"
    return apply_style(figure, title, "student width (dimensions)", "capacity, share lost")
