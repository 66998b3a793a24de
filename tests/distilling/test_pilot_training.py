"""Pilots that a run has are not trained again. The training itself is tested in `tests/cli/test_plan.py`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.records import narrow_head_floor
from tl_distill_floor import FloorPrediction, Pilots, StudentResult, StudentSpec, train_pilots
from tl_distill_floor.distilling.training.sweep import KIND, SWEEP_CHECKPOINT_FILE
from tl_distill_floor.errors import InputError
from tl_distill_floor.storage.checkpoints import save_checkpoint
from tl_distill_floor.theory.regression import PredictedLoss

LOSSES = {4: 0.9, 6: 0.7, 8: 0.5}


@pytest.fixture
def floor(teacher_dir: Path) -> FloorPrediction:
    """Return the prediction of a teacher that was measured without an SAE."""
    head = narrow_head_floor(
        model_name=str(teacher_dir), text_name="prose.txt", d_model=24, settings={"context_size": 32}
    )
    return FloorPrediction.from_head(head)


@pytest.fixture
def pilots() -> Pilots:
    """Return three pilots of a student of width 16."""
    return Pilots(tuple(LOSSES), 0.4, PredictedLoss(0.2, 0.1, 0.4), PredictedLoss(0.2, 0.15, 0.3))


class RecordedTraining:
    """Saves results in place of training, and records what was to be trained."""

    def __init__(self) -> None:
        self.widths: list[int] = []
        self.options: dict[str, Any] = {}

    def __call__(self, teacher: Any, specs: Sequence[StudentSpec], text: Any, *, out: Path, **options: Any) -> None:
        """Save a result for each student."""
        self.widths, self.options = [spec.width for spec in specs], options | {"text": text}
        for spec in specs:
            save_student(out, teacher.name, spec.width)


def save_student(run: Path, teacher: str, width: int, depth: int = 3) -> None:
    """Save the result of a student in a run."""
    directory = run / "students" / f"width{width}"
    directory.mkdir(parents=True, exist_ok=True)
    loss = LOSSES[width]
    StudentResult(
        directory.name, teacher, width, depth, 100 * width, (10, 20), (loss + 0.1, loss), loss, (0.0, loss),
        "under-trained", 64,
    ).save(directory)  # fmt: skip


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> RecordedTraining:
    """Replace the training."""
    recorded = RecordedTraining()
    monkeypatch.setattr("tl_distill_floor.distilling.planning.pilots.distill_students", recorded)
    return recorded


def test_trains_what_is_missing_and_calibrates(
    floor: FloorPrediction, pilots: Pilots, training: RecordedTraining, bridge: Any, teacher_dir: Path, tmp_path: Path
) -> None:
    save_student(tmp_path, str(teacher_dir), 4)
    save_student(tmp_path, str(teacher_dir), 8, depth=2)  # a student with fewer layers is no pilot
    calibrated = train_pilots(floor, pilots, tmp_path, text="prose.txt")
    assert training.widths == [6, 8]
    assert training.options["context_size"] == 32
    assert training.options["resume"] is False
    assert {width: student.loss for width, student in calibrated.student_losses.items()} == LOSSES
    before, after = floor.expected_at(16, 0.8), calibrated.expected_at(16, 0.8)
    assert after.high / after.low < before.high / before.low
    assert FloorPrediction.from_head(floor.head_floor).student_losses == {}
    training.widths = []
    again = train_pilots(floor, pilots, tmp_path, text="prose.txt")
    assert training.widths == []
    assert again.expected_at(16, 0.8) == after


@pytest.mark.parametrize(("interrupted", "expected"), [((4, 6, 8), [4, 6, 8]), ((6, 8), [6, 8])])
def test_an_interrupted_training_is_continued_with_all_its_students(
    floor: FloorPrediction,
    pilots: Pilots,
    training: RecordedTraining,
    teacher_dir: Path,
    tmp_path: Path,
    interrupted: tuple[int, ...],
    expected: list[int],
) -> None:
    """The student of width 4 is saved: by that training, or by an earlier one, which is not in the checkpoint."""
    save_student(tmp_path, str(teacher_dir), 4)
    identity = {"students": [{"width": width, "name": ""} for width in interrupted]}
    save_checkpoint(tmp_path / "students" / SWEEP_CHECKPOINT_FILE, KIND, {}, identity, 1)
    train_pilots(floor, pilots, tmp_path, text="prose.txt")
    assert training.widths == expected
    assert training.options["resume"] is True


def test_a_damaged_checkpoint_is_refused(
    floor: FloorPrediction, pilots: Pilots, training: RecordedTraining, tmp_path: Path
) -> None:
    (tmp_path / "students").mkdir()
    (tmp_path / "students" / SWEEP_CHECKPOINT_FILE).write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"is not a complete checkpoint .*; delete it"):
        train_pilots(floor, pilots, tmp_path, text="prose.txt")
    assert training.widths == []


def test_needs_a_training_text_if_the_run_has_another(
    floor: FloorPrediction, pilots: Pilots, training: RecordedTraining, tmp_path: Path
) -> None:
    message = "measured on prose.txt, of which only the name is known; name a text of the same kind with text="
    with pytest.raises(InputError, match=message):
        train_pilots(floor, pilots, tmp_path)
    assert not list(tmp_path.iterdir())
