"""TODO: one line."""

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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
