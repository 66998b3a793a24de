"""Train grids of toy models, among them the paper's, and compare their floors with every predictor."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from tl_distill_floor.annotations import ProgressCallback
from tl_distill_floor.errors import InputError
from tl_distill_floor.predicting import toy
from tl_distill_floor.sources.torch_state import neutral_torch_state
from tl_distill_floor.storage.atomic import write_atomically

JsonObject: TypeAlias = dict[str, Any]
N_FEATURES, SPARSITIES, TEACHER_WIDTHS = (20, 40, 80), (0.8, 0.9, 0.95, 0.99), (5, 10, 15, 20)
"""The paper's grid."""
STUDENT_WIDTHS = (1, 2, 3, 5, 8, 12, 16)
"""Widths of the students in the paper's grid; only those below the width of the teacher are trained."""
PAPER_SEEDS = 20
"""Models per width in the paper's grid."""


class ToyConfiguration(NamedTuple):
    """A task and the toy models that are trained on it."""

    n_features: int
    alpha: float
    """Sparsity."""
    widths: tuple[int, ...]
    slope: float = 1.0
    """The importance of feature i is i^-slope."""
    teacher_width: int | None = None
    """Width of the toy teachers; None trains on the inputs."""
    n_seeds: int = 5
    steps: int = 6000
    seed: int = 0


def paper_configurations(seed: int) -> list[ToyConfiguration]:
    """Return the paper's 48 configurations: 3 numbers of features × 4 sparsities × 4 teacher widths.

    Source: Sarkar and Deka 2026 (arXiv 2604.04037), section 4.

    Args:
        seed: seed of weights and inputs.

    Example:
        >>> len(paper_configurations(seed=0))
        48
    """
    return [
        ToyConfiguration(
            n_features=n_features,
            alpha=alpha,
            widths=tuple(width for width in STUDENT_WIDTHS if width < teacher_width),
            teacher_width=teacher_width,
            n_seeds=PAPER_SEEDS,
            seed=seed,
        )
        for n_features, alpha, teacher_width in product(N_FEATURES, SPARSITIES, TEACHER_WIDTHS)
    ]


@neutral_torch_state()
def train_configuration(configuration: ToyConfiguration, progress: ProgressCallback | None = None) -> JsonObject:
    """Train the toy models of one configuration, and predict their floors with every predictor.

    Args:
        configuration: the task and the models.
        progress: called at every hundredth step with the steps done and the total.

    Returns:
        The fields of the configuration, and for each width the mean floor "reached", its "standard_error",
        the "least" floor, the mean number of "kept" features, the mean distance "to_teacher", and the floors
        "predicted" by each predictor. Floors are importance-weighted squared errors.

    Raises:
        ValueError: see `toy.train`.

    Example:
        >>> train_configuration(ToyConfiguration(6, 0.9, (1, 2), steps=20))["widths"]
        [1, 2]
    """
    result = toy.train(
        configuration.n_features,
        configuration.alpha,
        configuration.widths,
        importance=np.arange(1, configuration.n_features + 1) ** -configuration.slope,
        n_seeds=configuration.n_seeds,
        steps=configuration.steps,
        seed=configuration.seed,
        teacher_width=configuration.teacher_width,
        progress=progress,
    )
    return configuration._asdict() | {
        "widths": result.widths.tolist(),
        "reached": result.floor.mean(1).tolist(),
        "standard_error": result.error_of_mean.tolist(),
        "least": result.floor.min(1).tolist(),
        "kept": result.kept.mean(1).tolist(),
        "to_teacher": None if result.to_teacher is None else result.to_teacher.mean(1).tolist(),
        "predicted": result.predicted(),
    }


@neutral_torch_state()
def train_configurations(
    configurations: Sequence[ToyConfiguration], file: Path, progress: ProgressCallback | None
) -> list[JsonObject]:
    """Train several configurations in parallel, one per processor core, and save each result in `file`.

    Args:
        configurations: the configurations. Those that `file` contains already are not trained again.
        file: JSON file of the results.
        progress: called with the number of configurations done and the total.

    Returns:
        The result of each configuration, see `train_configuration`.

    Raises:
        InputError: `file` is not a file of results.

    Example:
        >>> results = train_configurations(paper_configurations(0), Path("toy.json"), None)  # doctest: +SKIP
    """
    results = _read_results(file)
    missing = [each for each in configurations if _key(each._asdict()) not in results]
    context = get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context, initializer=_use_one_thread) as pool:
        # Long trainings start first, so that none is left for the end.
        longest_first = sorted(missing, key=lambda each: -each.n_features * sum(each.widths))
        jobs = [pool.submit(train_configuration, each) for each in longest_first]
        for done, job in enumerate(as_completed(jobs), 1):
            result = job.result()
            results[_key(result)] = result
            write_atomically(file, json.dumps(list(results.values())).encode())
            if progress:
                progress(done, len(missing))
    return [results[_key(each._asdict())] for each in configurations]


def _read_results(file: Path) -> dict[str, JsonObject]:
    """Return the results in a file, by the key of their configuration; none if the file is missing."""
    if not file.exists():
        return {}
    try:
        return {_key(result): result for result in json.loads(file.read_text())}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is not a file of toy results ({error}); name another file with --out") from error


def _key(fields: JsonObject) -> str:
    """Return the fields of a configuration as one string."""
    return json.dumps([fields[name] for name in ToyConfiguration._fields])


def _use_one_thread() -> None:
    """Limit torch to one thread in this process."""
    torch.set_num_threads(1)
