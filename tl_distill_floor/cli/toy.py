"""The work of `tl-floor toy`: train toy models, and set what they reached beside what was predicted."""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from tl_distill_floor.errors import InputError
from tl_distill_floor.storage.atomic import write_atomically

Progress = Callable[[int, int], None]
FEATURES, SPARSITIES, TEACHER_WIDTHS = (20, 40, 80), (0.8, 0.9, 0.95, 0.99), (5, 10, 15, 20)
STUDENT_WIDTHS = (1, 2, 3, 5, 8, 12, 16)
PAPER_SEEDS = 20


class Configuration(NamedTuple):
    """One task and the models that are trained on it; importances are i^−slope."""

    n_features: int
    alpha: float
    widths: tuple[int, ...]
    slope: float = 1.0
    teacher_width: int | None = None
    n_seeds: int = 5
    steps: int = 6000
    seed: int = 0


def paper_configurations(seed: int) -> list[Configuration]:
    """3 feature counts × 4 sparsities × 4 teacher widths; students narrower than their teacher."""
    return [
        Configuration(n, alpha, tuple(w for w in STUDENT_WIDTHS if w < t), 1.0, t, PAPER_SEEDS, seed=seed)
        for n, alpha, t in product(FEATURES, SPARSITIES, TEACHER_WIDTHS)
    ]


def reached(configuration: Configuration, progress: Progress | None = None) -> dict[str, Any]:
    """Train one configuration; floors per width with their standard errors over seeds, and every prediction."""
    from tl_distill_floor.predicting import toy
    from tl_distill_floor.theory.predictors import PREDICTORS

    n, alpha, widths, slope, teacher_width, n_seeds, steps, seed = configuration
    importance = np.arange(1, n + 1) ** -slope
    result = toy.train(
        n,
        alpha,
        widths,
        importance=importance,
        n_seeds=n_seeds,
        steps=steps,
        seed=seed,
        teacher_width=teacher_width,
        progress=progress,
    )
    spread = result.floor.std(1, ddof=1) / np.sqrt(n_seeds) if n_seeds > 1 else result.standard_error[:, 0]
    return configuration._asdict() | {
        "widths": result.widths.tolist(),
        "reached": result.floor.mean(1).tolist(),
        "standard_error": spread.tolist(),
        "least": result.floor.min(1).tolist(),
        "kept": result.kept.mean(1).tolist(),
        "to_teacher": None if result.to_teacher is None else result.to_teacher.mean(1).tolist(),
        "predicted": {
            name: [predict(result.cost, result.firing_rate, int(w)) for w in result.widths]
            for name, predict in PREDICTORS.items()
        },
    }


def run_all(configurations: list[Configuration], file: Path, progress: Progress | None) -> list[dict[str, Any]]:
    """Train them side by side, one thread each; what is done lies in `file`, and is not done again."""
    found = _read(file)
    missing = [c for c in configurations if _key(c._asdict()) not in found]
    context = get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context, initializer=_one_thread) as pool:
        # The long ones first, so that no core is left with one at the end.
        jobs = [pool.submit(reached, c) for c in sorted(missing, key=lambda c: -c.n_features * sum(c.widths))]
        for done, job in enumerate(as_completed(jobs), 1):
            result = job.result()
            found[_key(result)] = result
            write_atomically(file, json.dumps(list(found.values())).encode())
            if progress:
                progress(done, len(missing))
    return [found[_key(c._asdict())] for c in configurations]


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


def show_toys(results: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(results))
        return
    console = Console()
    for result in results if len(results) <= 4 else []:
        console.print(toy_view(result))
    if len(results) > 1:
        console.print(score_view(results))


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


def _read(file: Path) -> dict[str, dict[str, Any]]:
    if not file.exists():
        return {}
    try:
        return {_key(result): result for result in json.loads(file.read_text())}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} holds no toy results ({error}); name another file with --out") from error


def _key(values: dict[str, Any]) -> str:
    return json.dumps([values[name] for name in Configuration._fields])


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
