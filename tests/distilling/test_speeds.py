"""Speeds of students, measured and interpolated."""

from typing import Any

import pytest

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
