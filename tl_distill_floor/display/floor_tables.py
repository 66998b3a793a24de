"""Predictions as rich tables, for the terminal and for notebooks."""

import math

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tl_distill_floor.annotations import CostUnit
from tl_distill_floor.display.head_views import SHOWN_LEVEL, calibration_sentences, expected_sentence
from tl_distill_floor.display.measurement_views import format_l0
from tl_distill_floor.display.tables import key_value_table, plain_table, warning_lines
from tl_distill_floor.display.units import LONG_UNIT, SHORT_UNIT, STUDENT_LOSS
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction
from tl_distill_floor.sources.sae_directory import SaeEntry
from tl_distill_floor.theory.bootstrap import Interval
from tl_distill_floor.theory.capacity import n_features_held

STILL_COMPUTED: dict[CostUnit, str] = {
    "nats": "The loss of dropping features together is larger. It is being computed, and so is the expected loss of a"
    " trained student.",
    "mse": "The losses of bottleneck students of these widths are being computed.",
}
"""What follows after the text has been read, by the unit of the costs."""
HEAD_ALONE = (
    "Expected follows from the head floor (bound) alone so far. The feature floors are being computed; they narrow its"
    " interval and change its value."
)
"""What follows after the head floor."""
MEASURED_NOTE = "Intervals are 95 %: the sampling error of the text, from a bootstrap over its blocks."
"""Explanation of the intervals of what was measured."""
BAR_WIDTH = 48
"""Characters of the longest bar."""


def floor_table(floor: FeatureFloorPrediction) -> RenderableType:
    """Return everything about a prediction: the measurement, the floor of each width, a bar chart, and warnings."""
    return Group(measured_table(floor), Text(), widths_table(floor), bar_chart(floor), warning_lines(floor.warnings))


def unfinished_table(floor: FeatureFloorPrediction) -> RenderableType:
    """Return what is known of a prediction while the rest is still being computed: the features, and summed costs."""
    table = plain_table(f"Summed cost of the features that Theorem 1 drops ({SHORT_UNIT[floor.unit]})")
    for heading in ("width", "features held", "summed cost"):
        table.add_column(heading, justify="right")
    for width, cost in zip(floor.widths.tolist(), floor.additive.tolist(), strict=True):
        held = n_features_held(width, floor.capacity, floor.n_features)
        table.add_row(f"{width:,}", f"{held:,}", f"{cost:.4g}")
    return Group(measured_table(floor), Text(), table, Text(STILL_COMPUTED[floor.unit]), Text())


def unfinished_students_table(floor: FeatureFloorPrediction) -> RenderableType:
    """Return the expected loss of each width while the feature floors are still being computed."""
    return Group(_students(floor), Text(HEAD_ALONE), Text())


def measured_table(floor: FeatureFloorPrediction) -> RenderableType:
    """Return what was measured, one property per row."""
    stats = floor.stats
    rows = [
        ("teacher", f"{stats.model_name}, {stats.hook_name} ({stats.d_model:,} dimensions)"),
        ("SAE", f"{stats.sae_name}, {len(stats.firing_count):,} features"),
        (
            "text",
            f"{stats.text_name}, {stats.n_tokens:,} tokens counted ({stats.n_masked:,} special or first left out)",
        ),
        ("L0", format_l0(stats)),
        ("unexplained", f"{stats.fvu:.4f} of the variance (on {stats.sampled_tokens:,} tokens), not in the floor"),
        ("F", f"{floor.n_features:,} alive features{_range(floor.n_features_interval, ',.0f')}{_growth(floor)}"),
        ("sparsity α", f"{floor.alpha:.5f}{_range(floor.alpha_interval, '.5f')}"),
        ("g(α)", f"{floor.capacity:.2f} features per dimension"),
        ("d*", f"{floor.critical_width:.1f} dimensions{_range(floor.critical_width_interval, '.1f')}"),
    ]
    if floor.power_law is not None:
        on_tokens = f" (on {stats.n_cost_tokens:,} tokens)" if stats.n_cost_tokens < stats.n_tokens else ""
        rows.append(("costs", f"{floor.power_law}{on_tokens}"))
    has_intervals = not math.isnan(floor.critical_width_interval[1])
    return Group(key_value_table(rows), *([Text(MEASURED_NOTE)] if has_intervals else []))


def widths_table(floor: FeatureFloorPrediction) -> Group:
    """Return the expected loss and the feature floor of each width, with explanations."""
    features = (_features(floor), Text(_explanation(floor)))
    if floor.expected is None:
        return Group(*features)
    return Group(_students(floor), Text(" ".join(expected_sentences(floor))), Text(), *features)


def bar_chart(floor: FeatureFloorPrediction) -> Table:
    """Return the feature floor of each width as a bar."""
    table = plain_table("Feature floor")
    table.show_header = False
    table.add_column(justify="right")
    table.add_column(width=BAR_WIDTH)
    table.add_column()
    largest = float(floor.feature_floor.max()) or 1.0
    for width, loss in zip(floor.widths.tolist(), floor.feature_floor.tolist(), strict=True):
        table.add_row(f"{width:,}", Bar(largest, 0.0, loss, width=BAR_WIDTH), f"{loss:.3g}")
    return table


def expected_sentences(floor: FeatureFloorPrediction) -> list[str]:
    """Return sentences about the expected loss and the bound; none if no loss is expected."""
    if floor.expected is None or floor.head is None:
        return []
    sentences = [expected_sentence(floor.loss_predictor, floor.head), *calibration_sentences(floor)]
    return [*sentences, "Bound is the head floor: the least that a student can lose, estimated from above."]


def saes_table(model_name: str, entries: list[SaeEntry]) -> RenderableType:
    """Return the SAEs that are known for a model."""
    table = plain_table(f"SAEs of {model_name}")
    for heading in ("layer", "hook point", "L0", "--sae"):
        table.add_column(heading, justify="right" if heading in ("layer", "L0") else "left")
    for entry in entries:
        layer = "" if entry.layer is None else str(entry.layer)
        l0 = "" if entry.expected_l0 is None else f"{entry.expected_l0:.0f}"
        table.add_row(layer, Text(entry.hook_name or ""), l0, Text(entry.spec))
    return table


def _students(floor: FeatureFloorPrediction) -> Table:
    """Return the expected and the least loss of a trained student of each width."""
    table = plain_table(f"Expected loss of a trained student ({SHORT_UNIT['nats']}): {STUDENT_LOSS}")
    for heading in ("width", "expected", f"{SHOWN_LEVEL:.0%} interval".replace("%", " %"), "bound"):
        table.add_column(heading, justify="right")
    bound = floor.bound
    assert bound is not None
    for width, least in zip(floor.widths.tolist(), bound.tolist(), strict=True):
        loss = floor.expected_at(width, SHOWN_LEVEL)
        table.add_row(f"{width:,}", f"{loss.value:.3g}", f"{loss.low:.3g}–{loss.high:.3g}", f"{least:.4g}")
    return table


def _features(floor: FeatureFloorPrediction) -> Table:
    """Return the features that each width keeps, and the floors that they predict."""
    loss = STUDENT_LOSS if floor.unit == "nats" else LONG_UNIT[floor.unit]
    table = plain_table(f"Feature floor ({SHORT_UNIT[floor.unit]}): {loss}")
    all_curves = {"theorem": floor.theorem, "independent": floor.independent, "simulated": floor.simulated}
    curves = {name: curve for name, curve in all_curves.items() if curve is not None}
    gains = floor.structure_gain
    for heading in ("width", "kept", *curves, "sampling (95 %)", "of all", *([] if gains is None else ["gain"])):
        table.add_column(heading, justify="right")
    for i, width in enumerate(floor.widths.tolist()):
        low, high = floor.sampling_interval[i]
        table.add_row(
            f"{width:,}",
            f"{floor.n_features - len(floor.lost(width)):,}",
            *(f"{curve[i]:.4g}" for curve in curves.values()),
            "" if math.isnan(high) else f"{low:.3g}–{high:.3g}",
            f"{floor.feature_floor[i] / floor.total_loss:.1%}" if floor.total_loss else "",
            *([] if gains is None else ["" if math.isnan(gains[i]) else f"{gains[i]:.1f}"]),
        )
    return table


def _explanation(floor: FeatureFloorPrediction) -> str:
    stats = floor.stats
    needed = math.ceil(floor.critical_width)
    own_width = "the teacher's own width" if stats.d_model == stats.width else "the width of the activation"
    represents = "represents" if needed <= stats.d_model else "would represent"
    predictor = "independent" if floor.simulated is None else "simulated"
    sentences = [
        f"The feature floor is {predictor}; the sampling interval and the kept features refer to it.",
        f"At {own_width}, {stats.d_model:,}, it is {floor.teacher_floor:.4g}.",
        f"By Theorem 1, a student of {needed:,} dimensions {represents} every feature.",
    ]
    if floor.simulated is not None:
        sentences.append("gain: independent divided by simulated, what is saved because features fire together.")
    if floor.tail is not None:
        n_tokens = int(floor.tail.n_tokens.sum())
        sentences.append(
            f"Losses are measured on {n_tokens:,} tokens of the text; the summed costs alone would give"
            f" {floor.additive[0]:.4g} for theorem at width {floor.widths[0]:,}."
        )
    if floor.simulation is not None and (widest := int(floor.simulation.widths[-1])) < stats.d_model:
        sentences.append(f"Above width {widest:,}, the widest simulated one, the gain is extrapolated.")
    return " ".join(sentences)


def _growth(floor: FeatureFloorPrediction) -> str:
    """Return F at half the tokens: if F still grows, more tokens would find more features."""
    tokens, alive = floor.stats.growth(floor.min_count)
    half = int((tokens >= tokens[-1] / 2).argmax())
    return f"; {alive[half]:,} after {tokens[half]:,} tokens" if len(tokens) > 1 else ""


def _range(interval: Interval, spec: str) -> str:
    low, high = interval
    return "" if math.isnan(high) else f" ({low:{spec}} to {high:{spec}})"
