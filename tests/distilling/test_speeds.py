"""Speeds of students, measured and interpolated."""

from typing import Any

import pytest

from tl_distill_floor.distilling.planning import speeds
from tl_distill_floor.distilling.planning.speeds import SpeedTimer
from tl_distill_floor.errors import InputError


def test_speeds_between_timed_widths_are_interpolated(bridge: Any) -> None:
    timer = SpeedTimer(bridge)
    timer.timed = {16: 4.0, 64: 1.0}
    assert [timer.at(width) for width in (16, 32, 64)] == pytest.approx([4.0, 2.0, 1.0])
    assert [timer.at(width) for width in (8, 128)] == pytest.approx([4.0, 1.0])


def test_each_student_is_timed_once(bridge: Any) -> None:
    calls: list[tuple[int, int, str]] = []
    timer = SpeedTimer(bridge, depth=1, progress=lambda *call: calls.append(call))
    speed = timer.measure(8)
    assert speed > 0
    assert timer.measure(8) == timer.at(8) == speed
    timer.measure(16)
    assert calls == [(1, 6, "timing students"), (2, 6, "timing students")]
    with pytest.raises(InputError, match="no head size near the teacher's 8 fits a student of width 7"):
        timer.measure(7)
    assert set(timer.timed) == {8, 16}


@pytest.mark.parametrize(("longest", "ratio"), [(60.0, 4.0 / 1.0), (0.0, 6.0 / 2.0)])
def test_the_shortest_passes_after_the_first_are_compared(
    bridge: Any, monkeypatch: pytest.MonkeyPatch, longest: float, ratio: float
) -> None:
    """A slow model is timed once after its first pass."""
    times = {True: iter([1.0, 6.0, 4.0]), False: iter([0.5, 2.0, 1.0])}
    monkeypatch.setattr(speeds, "TIMED_ROUNDS", 2)
    monkeypatch.setattr(speeds, "LONGEST_TIMING", longest)
    monkeypatch.setattr(speeds, "_seconds", lambda model, _ids: next(times[model.config.hidden_size == 24]))
    assert SpeedTimer(bridge).measure(8) == pytest.approx(ratio)
