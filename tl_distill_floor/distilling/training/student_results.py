"""Results of a sweep: the record of each student, and its directory."""

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from tl_distill_floor.distilling.students.save import save_student
from tl_distill_floor.distilling.students.teacher_files import TeacherFiles, teacher_files
from tl_distill_floor.distilling.training.agreement import fail_together
from tl_distill_floor.distilling.training.learning_rates import fit_student
from tl_distill_floor.distilling.training.saved_loss import saved_loss_check
from tl_distill_floor.distilling.training.sharding import gathered_model
from tl_distill_floor.distilling.training.student_state import StudentInTraining
from tl_distill_floor.distilling.training.sweep import SWEEP_CHECKPOINT_FILE, Sweep
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.student import StudentResult
from tl_distill_floor.storage.atomic import atomic_directory, remove_file


def student_results(sweep: Sweep) -> list[StudentResult]:
    """Return the result of every student, in their order.

    Args:
        sweep: students whose training has ended.
    """
    return [_result(sweep, student) for student in sweep.students]


def save_results(sweep: Sweep, directory: Path) -> list[StudentResult]:
    """Save every student, then delete the checkpoint of the sweep.

    If one cannot be saved, the others are saved nevertheless, and the checkpoint is kept. If the students are sharded,
    all processes must call this; the first one writes the files.

    Args:
        sweep: students whose training has ended.
        directory: directory of the students.

    Returns:
        The result of every student, in their order, with its path in the first process.

    Raises:
        InputError: a student cannot be saved, or has another loss when it is read again than it had in training.
    """
    files = teacher_files(sweep.teacher)
    results, failures = [], []
    for student in sweep.students:
        try:
            results.append(_save(sweep, student, files, directory / student.spec.directory))
        except Exception as error:  # raised again when the other students are saved
            failures.append(error)
    if failures:
        raise _joined(failures, [result.name for result in results]) from failures[0]
    if sweep.accelerator.is_main_process:
        remove_file(directory / SWEEP_CHECKPOINT_FILE)
    return results


def _joined(failures: list[Exception], saved: list[str]) -> Exception:
    """Return one error for all students that could not be saved; `saved` are the names of the others."""
    unexpected = next((error for error in failures if not isinstance(error, InputError)), None)
    if unexpected is not None or not saved:
        return unexpected or failures[0]
    reasons = "; ".join(dict.fromkeys(map(str, failures)))
    return InputError(f"{reasons}; {', '.join(saved)} {'is' if len(saved) == 1 else 'are'} saved")


def _result(sweep: Sweep, student: StudentInTraining, warnings: tuple[str, ...] = ()) -> StudentResult:
    model = student.module.student
    fit = fit_student(sweep.config, student.tokens, student.losses) if student.losses else None
    return StudentResult(
        name=student.spec.directory,
        teacher=sweep.teacher.name,
        width=student.spec.width,
        depth=int(model.config.num_hidden_layers),  # type: ignore[union-attr,arg-type]
        n_parameters=int(sum(weight.numel() for weight in model.parameters())),
        tokens=tuple(student.tokens),
        losses=tuple(student.losses),
        floor=fit.floor if fit else 0.0,
        interval=fit.interval if fit else (0.0, 0.0),
        status=student.status or (fit.status if fit else "diverged"),
        heldout_tokens=int(sweep.split.stream.counted(sweep.split.heldout).sum()),
        settings=_settings(sweep, student, warnings),
    )


def _settings(sweep: Sweep, student: StudentInTraining, warnings: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings of a student's training, with the warnings of its text and of its files."""
    settings = dataclasses.asdict(sweep.config)
    settings |= dataclasses.asdict(dataclasses.replace(student.spec, target=None))
    del settings["target"]
    settings |= {"order_seed": sweep.config.seed, "kept_part": student.spec.target is not None, **sweep.split.settings}
    if student.diverged_at:
        settings["diverged"] = student.diverged_at
    if sweep.split.warnings or warnings:
        settings["warnings"] = [*sweep.split.warnings, *warnings]
    return settings


def _save(sweep: Sweep, student: StudentInTraining, files: TeacherFiles, directory: Path) -> StudentResult:
    """Save a student, after gathering a sharded one in the first process."""
    averaged = student.averaged.module
    model = gathered_model(averaged, sweep.accelerator) if sweep.is_sharded else averaged
    # The held-out loss of a student that diverged is not finite.
    check = None if student.diverged_at else saved_loss_check(sweep, student)
    with fail_together(sweep.accelerator) if sweep.is_sharded else nullcontext():
        if model is not None:
            return _write(sweep, student, files, directory, model, check)
    return _result(sweep, student, files.warnings)


def _write(
    sweep: Sweep,
    student: StudentInTraining,
    files: TeacherFiles,
    directory: Path,
    model: nn.Module,
    check: Callable[[Path], None] | None,
) -> StudentResult:
    """Write the files of a student, whose averaged weights a plain model has; of one that diverged, the result."""
    if directory.exists():  # saved before an error interrupted saving the students
        return StudentResult.load(directory)
    result = _result(sweep, student, files.warnings)
    if student.diverged_at:
        with atomic_directory(directory) as partial:
            result.save(partial)
        return result
    return save_student(model, files, result, directory, check)
