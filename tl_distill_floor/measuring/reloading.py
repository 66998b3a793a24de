"""Load again the teacher and the SAE that statistics were measured with."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from tl_distill_floor.annotations import Dtype, SaeLike, TeacherLike
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.fingerprints import compare_fingerprints, compare_with_fingerprint
from tl_distill_floor.results.feature_stats import STATS_FILE, FeatureStats
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.head_floor import HEAD_FILE, HeadFloor
from tl_distill_floor.results.student import StudentResult
from tl_distill_floor.results.teacher_fingerprint import TeacherFingerprint
from tl_distill_floor.sources.devices import TORCH_DTYPES
from tl_distill_floor.sources.saes import SaeSource, load_sae, sae_digest
from tl_distill_floor.sources.teacher import Teacher
from tl_distill_floor.sources.teacher_checks import TOLERANCE
from tl_distill_floor.sources.teachers import load_teacher

LOG_PROBABILITIES = "log-probabilities"
"""What is compared of two teachers, in messages."""
Measured: TypeAlias = FloorPrediction | FeatureStats | HeadFloor
"""What names the teacher that was measured, and holds its fingerprint."""


def load_measured_sae(stats: FeatureStats, sae: SaeLike | None, device: str) -> SaeSource:
    """Load an SAE, and check that it is the one that was measured.

    Args:
        stats: the statistics.
        sae: see `load_sae`; None takes the SAE that is known for the teacher and its layer.
        device: torch device of an SAE that is loaded here.

    Raises:
        InputError: the SAE cannot be loaded, or is another one.
    """
    from sae_lens.util import extract_layer_from_tlens_hook_name

    layer = extract_layer_from_tlens_hook_name(stats.hook_name)
    source = load_sae(sae, model_name=stats.model_name, layer=layer, device=device)
    measured = stats.settings.get("sae")
    if measured is not None and measured != sae_digest(source.sae):
        raise InputError(
            f"the prediction was made with the SAE {stats.sae_name}, and this SAE is another; name that with --sae"
        )
    return source


def load_measured_teacher(
    stats: FeatureStats, teacher: TeacherLike | None, source: SaeSource, device: str
) -> tuple[Teacher, tuple[str, ...]]:
    """Load a teacher, and check that it is the one that was measured.

    Args:
        stats: the statistics.
        teacher: see `load_teacher`; None loads it by the name in the statistics.
        source: the SAE that was measured.
        device: torch device of a teacher that is loaded here.

    Returns:
        The teacher, and warnings.

    Raises:
        InputError: the teacher cannot be loaded, or is another one.
    """
    loaded = load_teacher(
        stats.model_name if teacher is None else teacher,
        device=device,
        dtype=measured_dtype(stats),
        model_kwargs=source.model_kwargs,
    )
    return loaded, check_measured_teacher(stats, loaded)


def check_measured_teacher(stats: FeatureStats, teacher: Teacher) -> tuple[str, ...]:
    """Check that a teacher computes what the measured one does, and return warnings.

    Args:
        stats: the statistics; those of older files do not tell.
        teacher: the teacher.

    Raises:
        InputError: it computes something else.
    """
    return () if stats.fingerprint is None else _check(stats.fingerprint, stats.model_name, teacher, stats.hook_name)


def check_outputs(measured: Measured, teacher: Teacher) -> None:
    """Check that a teacher has the outputs of the measured one; its weights may be folded or centred in another way.

    Args:
        measured: a prediction or a measurement; those of older files do not tell.
        teacher: the teacher.

    Raises:
        InputError: it has other outputs.
    """
    if (fingerprint := _fingerprint_of(measured)) is not None:
        _check(fingerprint, measured.model_name, teacher, None)


def check_teacher_of_run(directory: Path, teacher: Teacher) -> None:
    """Check that a teacher has the outputs of the one that was measured in a run directory, if one was.

    Args:
        directory: the run directory.
        teacher: the teacher.

    Raises:
        InputError: it has other outputs, or a file of the run is damaged.
    """
    if (measured := _measurement_of_run(directory)) is not None:
        check_outputs(measured, teacher)


def check_teacher_of_students(floor: FloorPrediction, students: Sequence[StudentResult]) -> None:
    """Check that the teacher of saved students is that of a prediction, as far as their runs hold a measurement.

    Args:
        floor: the prediction.
        students: the students.

    Raises:
        InputError: the teachers output something else for the same tokens.
    """
    expected = _fingerprint_of(floor)
    if expected is None:
        return
    for run in sorted({Path(student.path).resolve().parent.parent for student in students if student.path}):
        measured = _measurement_of_run(run)
        fingerprint = None if measured is None else _fingerprint_of(measured)
        if fingerprint is None:
            continue
        difference, is_same = compare_fingerprints(expected, fingerprint, outputs_only=True)
        if not is_same:
            raise InputError(
                f"the students in {run} have other weights of the teacher {floor.model_name} than the prediction:"
                f" {_apart(difference, LOG_PROBABILITIES)}; give students of the teacher that was measured, or measure"
                " it again"
            )


def _measurement_of_run(directory: Path) -> FeatureStats | HeadFloor | None:
    """Return the features that were measured in a run directory, else its head floor, else None."""
    if (directory / STATS_FILE).is_file():
        return FeatureStats.load(directory)
    return HeadFloor.load(directory) if (directory / HEAD_FILE).is_file() else None


def _fingerprint_of(measured: Measured) -> TeacherFingerprint | None:
    """Return the fingerprint of the teacher that was measured; None in older files."""
    if isinstance(measured, FloorPrediction):
        measured = measured.head_floor if measured.stats is None else measured.stats
    stored = measured.fingerprint
    return TeacherFingerprint.from_text(stored) if isinstance(stored, str) else stored


def _check(
    fingerprint: TeacherFingerprint, measured_name: str, teacher: Teacher, hook_name: str | None
) -> tuple[str, ...]:
    """Raise an InputError if a teacher is not the measured one, and return a warning if that is not known.

    Args:
        fingerprint: that of the measured teacher.
        measured_name: its name.
        teacher: the teacher.
        hook_name: hook point whose activation is compared too; None for the outputs alone.
    """
    difference, may_be_rounding = compare_with_fingerprint(
        fingerprint, teacher.model, hook_name, outputs_only=hook_name is None
    )
    compared = LOG_PROBABILITIES if hook_name is None else f"activations at {hook_name} or its {LOG_PROBABILITIES}"
    apart = _apart(difference, compared)
    if not may_be_rounding:
        raise InputError(
            f"the prediction was made with other weights of the teacher {measured_name} than those of {teacher.name}"
            f" now, or they were loaded in another way ({apart}); give the teacher that was measured, or measure again"
        )
    if difference <= TOLERANCE:
        return ()
    return (f"whether the teacher is the one that was measured is not known: {apart}, which rounding can explain",)


def _apart(difference: float, compared: str) -> str:
    """Return how far two teachers are apart; `difference` is that of `compare_with_fingerprint`."""
    if math.isnan(difference):
        return (
            "they cannot be compared on the same tokens, since their vocabularies, contexts or activations have other"
            " sizes"
        )
    if math.isinf(difference):
        return f"on the same tokens its {compared} are infinite or not a number in one of the two"
    return f"on the same tokens its {compared} differ by {difference:.2g} of their standard deviation"


def measured_dtype(stats: FeatureStats) -> Dtype:
    """Return the dtype in which the teacher was measured."""
    loading = stats.settings.get("teacher")
    return "bf16" if isinstance(loading, dict) and loading.get("dtype") == TORCH_DTYPES["bf16"] else "fp32"
