"""The work of `tl-floor distill`, `calibrate` and `plan`: a run directory, a progress bar, tables."""

import dataclasses
import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from tl_distill_floor.cli.measuring import progress_bar, quiet_libraries
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.floor_prediction import FLOOR_FILE, FloorPrediction
from tl_distill_floor.results.student import load_students
from tl_distill_floor.storage.io_errors import COPY_ADVICE
from tl_distill_floor.storage.locks import lock_directory


def run_distill(
    directory: Path,
    model: str,
    widths: list[int] | None,
    text: str | None,
    *,
    depth: int | None,
    start: str,
    match: dict[str, Any],
    config: Any,
    as_json: bool,
    **options: Any,
) -> None:
    """Distil, save into the run's directory and show what came out; of several processes the first one speaks."""
    from tl_distill_floor.display.student_tables import students_view

    first = int(os.environ.get("RANK", "0")) == 0
    with quiet_libraries(), progress_bar(as_json or not first, "tokens", "distilling") as progress:
        from tl_distill_floor.distilling.config import StudentSpec
        from tl_distill_floor.distilling.distill import distill_students
        from tl_distill_floor.sources.teachers import load_teacher

        if options["device"] == "cuda" and "LOCAL_RANK" in os.environ:
            options["device"] = f"cuda:{os.environ['LOCAL_RANK']}"  # each process its own
        teacher = load_teacher(model, device=options["device"], dtype=options["dtype"])
        asked = widths or [max(1, int(teacher.model.cfg.d_model) // share) for share in (8, 4, 2)]
        specs = [StudentSpec(width, depth, start, config.seed) for width in asked]
        specs = matching(specs, teacher.model, directory, device=options["device"], **match)
        given = {"out": directory, "config": config, "progress": progress, **options}
        with lock_directory(directory) if first else nullcontext():
            results = distill_students(teacher, specs, text, **given)
    if not first:
        return
    if as_json:
        print(json.dumps([dataclasses.asdict(result) for result in results]))
        return
    console = Console(highlight=False, markup=False)
    console.print(students_view(results))
    console.print(f"Saved in {directory / 'students'}. Next: tl-floor calibrate {directory}")


def run_calibrate(directory: Path, of_students: Path, as_json: bool) -> None:
    """Fit the students in a run's directory to the prediction of the same or another, and save that there."""
    from tl_distill_floor.display.student_tables import calibration_view
    from tl_distill_floor.distilling.calibrate import calibrate

    with lock_directory(directory, COPY_ADVICE):
        floor, students = FloorPrediction.load(directory), load_students(of_students)
        if not students:
            raise InputError(f"{of_students} holds no students; run tl-floor distill with --out {of_students}")
        calibration = calibrate(floor, students)
        calibration.save(directory)
    if as_json:
        print(json.dumps(dataclasses.asdict(calibration)))
        return
    console = Console(highlight=False, markup=False)
    console.print(calibration_view(calibration))
    console.print(f"Saved in {directory}. Next: tl-floor plan {directory} --max-loss 0.2")


def run_plan(directory: Path, as_json: bool, **asked: Any) -> None:
    """Choose a student by what lies in a run's directory."""
    from tl_distill_floor.display.student_tables import plan_view

    floor = FloorPrediction.load(directory)
    with quiet_libraries():
        from tl_distill_floor.distilling.plan import plan
        from tl_distill_floor.sources.teachers import load_teacher

        chosen = plan(floor, load_teacher(floor.stats.model_name).model, **asked)
    if as_json:
        print(json.dumps(dataclasses.asdict(chosen) | {"megabytes": chosen.megabytes}))
        return
    Console().print(plan_view(chosen, directory))


def matching(
    specs: list[Any],
    model: Any,
    directory: Path,
    *,
    what: str,
    layer: int | None,
    weight: float | None,
    sae: str | None,
    device: str,
) -> list[Any]:
    """The students, with what they match.

    Raises:
        InputError: an option that has no effect, no prediction of what a width can hold, or another SAE than its own.
    """
    if what == "none":
        if layer is not None or weight is not None or sae is not None:
            raise InputError("--match-layer, --match-weight and --sae say how hook points are matched; add --match")
        return specs
    from tl_distill_floor.distilling.distill import kept_part
    from tl_distill_floor.distilling.layers import student_layer
    from tl_distill_floor.distilling.matching import Match
    from tl_distill_floor.measuring.hooks import resid_post
    from tl_distill_floor.sources.saes import load_sae

    if (what == "kept" or layer is None) and not (directory / FLOOR_FILE).exists():
        raise InputError(
            f"{directory} holds no prediction of what a width can hold; run tl-floor measure with --out {directory}"
            " first, or use --match activation --match-layer L"
        )
    floor = FloorPrediction.load(directory) if what == "kept" or layer is None else None
    hook = floor.stats.hook_name if floor and layer is None else resid_post(layer or 0)
    if what == "kept" and floor and hook != floor.stats.hook_name:
        raise InputError(f"the prediction is of {floor.stats.hook_name}; leave --match-layer to it")
    layers, given = int(model.cfg.n_layers), {} if weight is None else {"weight": weight}
    source = load_sae(sae, model_name=floor.stats.model_name, device=device).sae if what == "kept" and floor else None
    return [
        dataclasses.replace(
            spec,
            match=Match(hook, student_layer(hook, layers, spec.depth or layers), **given),
            target=kept_part(floor, source, spec.width) if source is not None and floor else None,
        )
        for spec in specs
    ]
