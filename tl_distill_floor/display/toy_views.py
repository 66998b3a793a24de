"""Toy models as rich tables and a figure: predicted floors and reached floors."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float64
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tl_distill_floor.display.figure_style import apply_style
from tl_distill_floor.display.tables import plain_table
from tl_distill_floor.results.toy import ToyResult
from tl_distill_floor.theory.capacity import critical_width

ToyJson = Mapping[str, Any]
"""One configuration, as `tl-floor toy --json` prints it."""
TOY_NOTE = "reached: mean of the trained models ± standard error; kept: features that a model represents, on average."
"""Explanation below the floors of one configuration."""
MIN_WIDTHS_FOR_R2 = 3
"""Fewest floors that R² is computed from."""

WIDTH_RANGES: dict[str, Callable[[float], bool]] = {
    "all": lambda _: True,
    "below 0.8 d*": lambda share: share < 0.8,
    "near d*": lambda share: 0.8 <= share <= 1.2,
    "above 1.2 d*": lambda share: share > 1.2,
}
"""Ranges of width ÷ critical width."""


def toy_table(result: ToyJson) -> RenderableType:
    """Return the reached and the predicted floors of one configuration, in importance-weighted squared error."""
    title = f"{result['n_features']} features, sparsity {result['alpha']:g}"
    title += f", importances i^-{result['slope']:g}" if "slope" in result else ""
    title += f", teacher of width {result['teacher_width']}" if result["teacher_width"] else ""
    table = plain_table(f"{title}: floors (weighted MSE)")
    for heading in ("width", "reached", "kept", *result["predicted"]):
        table.add_column(heading, justify="right")
    for i, width in enumerate(result["widths"]):
        reached = f"{result['reached'][i]:.4g} ± {result['standard_error'][i]:.1g}"
        predicted = (f"{floors[i]:.4g}" for floors in result["predicted"].values())
        table.add_row(str(width), reached, f"{result['kept'][i]:.1f}", *predicted)
    return Group(table, Text(TOY_NOTE))


def score_table(results: Sequence[ToyJson]) -> Table:
    """Return R², median error and Pearson r of each predictor's floors over all configurations."""
    table = plain_table(f"Over {len(results)} configurations")
    for heading in ("predictor", "widths", "R²", "median error", "Pearson r", "least R² of a configuration"):
        table.add_column(heading, justify="left" if heading in ("predictor", "widths") else "right")
    for name, (label, contains) in product(results[0]["predicted"], WIDTH_RANGES.items()):
        pairs = _pairs(results, name, contains)
        if len(pairs) >= MIN_WIDTHS_FOR_R2:
            reached, predicted = pairs.T
            error = np.median(np.abs(predicted / reached - 1.0))
            least = _least_r2(results, name) if label == "all" else ""
            table.add_row(name, label, f"{r2(reached, predicted):.3f}", f"{error:.1%}", f"{_pearson(pairs):.3f}", least)
    return table


def toy_result_json(result: ToyResult) -> ToyJson:
    """Return a `ToyResult` in the form that `toy_table` and `toy_floor_figure` take."""
    return {
        "n_features": len(result.cost),
        "alpha": float(1.0 - result.firing_rate.mean()),
        "teacher_width": None,
        "widths": result.widths.tolist(),
        "reached": result.floor.mean(1).tolist(),
        "standard_error": result.error_of_mean.tolist(),
        "kept": result.kept.mean(1).tolist(),
        "predicted": result.predicted(),
    }


def r2(reached: Float64[np.ndarray, " pair"], predicted: Float64[np.ndarray, " pair"]) -> float:
    """Return R² of the predicted floors themselves, without a fit."""
    from sklearn.metrics import r2_score

    return float(r2_score(reached, predicted))


def toy_floor_figure(result: ToyJson) -> go.Figure:
    """Return the reached floor of one toy configuration, with its standard error, and all predictions.

    Args:
        result: one configuration.
    """
    figure = go.Figure()
    for name, floors in result["predicted"].items():
        figure.add_scatter(x=result["widths"], y=floors, mode="lines", name=name)
    figure.add_scatter(
        x=result["widths"],
        y=result["reached"],
        error_y={"array": result["standard_error"]},
        mode="markers",
        marker={"color": "black"},
        name="reached",
    )
    teacher = f", distilled from width {result['teacher_width']}" if result["teacher_width"] else ""
    title = f"Toy models of {result['n_features']} features, sparsity {result['alpha']:g}{teacher}"
    return apply_style(figure, title, "width (dimensions)", "floor (importance-weighted squared error)")


def _pairs(
    results: Sequence[ToyJson], predictor: str, contains: Callable[[float], bool]
) -> Float64[np.ndarray, "pair 2"]:
    """Return (reached, predicted) floors at the widths in a range."""
    pairs = [
        pair
        for result in results
        for width, *pair in zip(result["widths"], result["reached"], result["predicted"][predictor], strict=True)
        if contains(width / critical_width(result["n_features"], result["alpha"]))
    ]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)


def _least_r2(results: Sequence[ToyJson], predictor: str) -> str:
    """Return the least R² of a single configuration with enough widths."""
    scores = [
        r2(*_pairs([result], predictor, WIDTH_RANGES["all"]).T)
        for result in results
        if len(result["widths"]) >= MIN_WIDTHS_FOR_R2
    ]
    return f"{min(scores):.2f}" if scores else ""


def _pearson(pairs: Float64[np.ndarray, "pair 2"]) -> float:
    is_constant = (pairs == pairs[0]).all(0).any()
    return float("nan") if is_constant else float(np.corrcoef(pairs.T)[0, 1])
