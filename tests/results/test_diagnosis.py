"""Tests of the record of a diagnosis."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.learning_curves import diagnosis
from tl_distill_floor import Diagnosis


def test_says_what_is_left_and_when_half_of_it_is_gained() -> None:
    """Of 0.4 nats 0.2 are left; half of it is gained when 2,000 tokens have become 4 · 2,000."""
    record = diagnosis()
    assert record.left == pytest.approx(0.5)
    assert record.tokens_for_half == pytest.approx(6000)
    assert record.loss_at(2000) == pytest.approx(0.4)
    assert record.loss_at(8000) == pytest.approx(0.3)
    assert record.loss_at(32_000) == pytest.approx(0.25)
    assert record.sentence == "under-trained: half is left"
    assert repr(record) == "Diagnosis(checked, width 8: loss 0.4 nats, under-trained)"


def test_without_an_end_nothing_is_said_of_more_tokens() -> None:
    record = dataclasses.replace(diagnosis(), verdict="not known", end=None, half_factor=None)
    assert (record.left, record.tokens_for_half, record.loss_at(4000)) == (None, None, None)


def test_loads_unchanged(tmp_path: Path) -> None:
    record = diagnosis()
    assert record.save(tmp_path) == tmp_path / "diagnosis.json"
    assert Diagnosis.load(tmp_path) == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": (0.4,)}, "one loss for each number of tokens"),
        ({"bound": -0.1}, "losses must be at least 0"),
        ({"half_factor": 1.0}, "half_factor must be above 1"),
        ({"end": None}, "half_factor must be above 1, and is known if the end is"),
    ],
)
def test_rejects_impossible_values(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(diagnosis(), **change)
