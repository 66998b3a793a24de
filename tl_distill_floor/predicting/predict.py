"""`predict_floor`: from a teacher and its SAE to the floor of every student width, in one call."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.job import MeasurementJob, prepare_job
from tl_distill_floor.measuring.measurement import measure_subject
from tl_distill_floor.measuring.removal import student_losses, tail_losses
from tl_distill_floor.predicting.floors import STEPS, check_steps, floor_from_stats, ranks_to_measure
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.sources.devices import main_device
from tl_distill_floor.theory.allocation import rank_by_cost, remaining_costs

Bar = Callable[[str, str], AbstractContextManager[Any]]
"""From a unit and what is being done to a context that gives a progress function, or None."""
HALF = "the teacher's logits are rounded to half precision: losses of some 1e-4 nats are rounding; use --dtype fp32"
WHERE = ("hook_name", "context_size", "batch_size", "device", "dtype")


def predict_floor(
    model: Any,
    sae: Any = None,
    text: Any = None,
    *,
    widths: Any = None,
    layer: int | None = None,
    steps: int = STEPS,
    min_count: int = 1,
    seed: int = 0,
    **measure_options: Any,
) -> FloorPrediction:
    """Measure the teacher's features and predict the loss floor of its students.

    Args:
        model, sae, text, layer: see `measure`.
        widths: [width] student widths in dimensions; shares of the teacher's width when left out.
        steps: of the bottleneck students behind `simulated`; 0 trains none. See `floor_from_stats`.
        min_count: a feature is alive when it fired on at least this many tokens.
        seed: of the resampling, of the training and of the choice of the held-out text.
        measure_options: see `measure`.

    Raises:
        InputError: see `measure` and `floor_from_stats`.
    """
    (floor,) = predict_floors(
        model, [sae], text, layers=[layer], widths=widths, steps=steps, min_count=min_count, seed=seed,
        **measure_options,
    )  # fmt: skip
    return floor


def predict_floors(
    model: Any,
    saes: Sequence[Any],
    text: Any = None,
    *,
    layers: Sequence[int | None] | None = None,
    bar: Bar = lambda _unit, _doing: nullcontext(),
    widths: Any = None,
    steps: int = STEPS,
    min_count: int = 1,
    seed: int = 0,
    **measure_options: Any,
) -> list[FloorPrediction]:
    """The same for several SAEs, of several layers or of one, measured in one pass over the teacher.

    Args:
        model, text, widths, steps, min_count, seed: see `predict_floor`.
        saes: each as `predict_floor` takes it; they must have been trained on a teacher that was loaded in one way.
        layers: for each SAE its layer; the SAE's own where it is None.
        bar: makes progress bars.
        measure_options: see `measure`; `checkpoints` names a file for each SAE.

    Raises:
        InputError: see `measure` and `floor_from_stats`; the SAEs cannot be measured together.
    """
    check_steps(steps)
    where = {name: measure_options.pop(name) for name in WHERE if name in measure_options}
    if "checkpoint" in measure_options:
        measure_options["checkpoints"] = [measure_options.pop("checkpoint")]
    with bar("tokens", "measuring") as progress:
        job = prepare_job(model, saes, text, layers=layers, **where)
        if widths is None and len({int(attached.sae.cfg.d_in) for attached in job.saes}) > 1:
            raise InputError("the SAEs read activations of different widths; name the students' widths with --widths")
        options = {"progress": progress} | measure_options
        found = measure_subject(job, **options)
    floors = []
    for attached, stats in zip(job.saes, found, strict=bool(found)):
        device = main_device(str(where.get("device", attached.sae.device)))  # where an SAE in memory lies
        predict = {"widths": widths, "steps": steps, "min_count": min_count, "seed": seed, "device": device, "bar": bar}
        floors.append(floor_of(dataclasses.replace(job, saes=(attached,)), stats, **predict))
    return floors


def floor_of(
    job: MeasurementJob,
    stats: FeatureStats,
    *,
    widths: Any = None,
    steps: int = STEPS,
    min_count: int = 1,
    seed: int = 0,
    device: str = "cpu",
    bar: Bar = lambda _unit, _doing: nullcontext(),
) -> FloorPrediction:
    """The floor of what was measured of a job with one SAE; where costs are in nats, losses are measured too.

    The tail loss, and what students lose in the teacher's place, are taken on text that the students do not see.
    """
    predict: dict[str, Any] = {"widths": widths, "steps": steps, "min_count": min_count, "seed": seed, "device": device}
    if stats.cost_unit == "nats" and job.teacher is not None:
        import torch

        from tl_distill_floor.predicting.simulation import held_out_sequences

        chosen = held_out_sequences(stats, seed)
        order = rank_by_cost(stats.cost, stats.alive(min_count))
        ranks = ranks_to_measure(stats, widths, min_count)
        additive = remaining_costs(stats.cost[order])[ranks]
        if next(job.model.parameters()).dtype != torch.float32:
            stats = dataclasses.replace(stats, warnings=(*stats.warnings, HALF))
        with bar("sequences", "removing features") as progress:
            predict["tail"] = tail_losses(job, order, ranks, additive, chosen, progress=progress)

        def judge(students: Sequence[Any]) -> Any:
            with bar("sequences", "judging students") as progress:
                return student_losses(job, students, chosen, progress)

        predict["judge"] = judge
    with bar("steps", "simulating") as progress:
        return floor_from_stats(stats, progress=progress, **predict)
