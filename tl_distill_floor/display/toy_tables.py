"""TODO: one line."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
from rich.table import Table


def toy_view(result: dict[str, Any]) -> Table:
    """Predicted against reached, in importance-weighted squared error."""
    title = f"{result['n_features']} features, sparsity {result['alpha']:g}, importances i^-{result['slope']:g}"
    title += f", teacher of width {result['teacher_width']}" if result["teacher_width"] else ""
    table = Table(title=f"{title}: floors (weighted MSE)", title_justify="left", box=None, pad_edge=False)
    for heading in ("width", "reached", "kept", *result["predicted"]):
        table.add_column(heading, justify="right", no_wrap=heading == "reached")
    for i, width in enumerate(result["widths"]):
        row = (f"{result['reached'][i]:.4g} ± {result['standard_error'][i]:.1g}", f"{result['kept'][i]:.1f}")
        table.add_row(str(width), *row, *(f"{floors[i]:.4g}" for floors in result["predicted"].values()))
    return table


def score_view(results: list[dict[str, Any]]) -> Table:
    """How well each predictor does over all configurations: R², median error and Pearson r of the absolute floors."""
    table = Table(title=f"Over {len(results)} configurations", title_justify="left", box=None, pad_edge=False)
    for heading in ("predictor", "widths", "R²", "median error", "Pearson r", "least R² of a configuration"):
        table.add_column(heading, justify="left" if heading in ("predictor", "widths") else "right")
    for name, (label, inside) in product(results[0]["predicted"], _ranges().items()):
        pairs = np.array(list(_pairs(results, name, inside))).reshape(-1, 2)
        if len(pairs) > 2:
            error = np.median(np.abs(pairs[:, 1] / pairs[:, 0] - 1.0))
            worst = _least_r2(results, name) if label == "all" else ""
            table.add_row(name, label, f"{r2(*pairs.T):.3f}", f"{error:.1%}", f"{_pearson(pairs):.3f}", worst)
    return table


def r2(reached: np.ndarray, predicted: np.ndarray) -> float:
    """Of the predictions as they stand, with nothing fitted."""
    return float(1.0 - ((reached - predicted) ** 2).sum() / ((reached - reached.mean()) ** 2).sum())


def _least_r2(results: list[dict[str, Any]], name: str) -> str:
    """Of the configurations with at least three widths."""
    pairs = [np.array(list(_pairs([one], name, lambda _: True))) for one in results if len(one["widths"]) > 2]
    return f"{min(r2(*each.T) for each in pairs):.2f}" if pairs else ""


def _pearson(pairs: np.ndarray) -> float:
    constant = (pairs == pairs[0]).all(0).any()
    return float("nan") if constant else float(np.corrcoef(pairs.T)[0, 1])


def _ranges() -> dict[str, Callable[[float], bool]]:
    return {
        "all": lambda _: True,
        "below 0.8 d*": lambda share: share < 0.8,
        "near d*": lambda share: 0.8 <= share <= 1.2,
        "above 1.2 d*": lambda share: share > 1.2,
    }


def _pairs(results: list[dict[str, Any]], name: str, inside: Callable[[float], bool]) -> Iterator[tuple[float, float]]:
    from tl_distill_floor.theory.capacity import critical_width

    for result in results:
        needed = critical_width(result["n_features"], result["alpha"])
        for width, floor, predicted in zip(result["widths"], result["reached"], result["predicted"][name], strict=True):
            if inside(width / needed):
                yield floor, predicted
