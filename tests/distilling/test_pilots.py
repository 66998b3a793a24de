"""Narrow students that are suggested before a wide one."""

import dataclasses
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.records import narrow_head_floor, stats_of
from tl_distill_floor.distilling.planning import pilots as pilots_module
from tl_distill_floor.distilling.planning.pilots import choose_pilots
from tl_distill_floor.distilling.planning.plan import plan
from tl_distill_floor.distilling.students.build import count_parameters
from tl_distill_floor.distilling.students.widths import family_widths
from tl_distill_floor.errors import InputError
from tl_distill_floor.predicting.floors import floor_from_stats
from tl_distill_floor.results.floor_prediction import FloorPrediction


@pytest.fixture(scope="module")
def floor(teacher_dir: Path, bridge: Any) -> FloorPrediction:
    """Return a prediction in nats with a head floor for the random teacher."""
    width = int(bridge.cfg.d_model)
    head = narrow_head_floor(d_model=width)
    sampled = np.zeros(width)
    stats = stats_of(
        1.0 / np.arange(1, 65), d_model=width, model_name=str(teacher_dir), sampled_sum=sampled, cost_unit="nats"
    )
    return dataclasses.replace(floor_from_stats(stats, widths=[2, 4, 8, 16]), head=head)


def test_pilots_narrow_the_interval_for_a_part_of_the_cost(floor: FloorPrediction, bridge: Any) -> None:
    pilots = choose_pilots(floor, bridge, width=16)
    assert len(pilots.widths) == 3
    assert all(2 <= width <= 8 for width in pilots.widths)
    assert pilots.after.high / pilots.after.low < 0.85 * pilots.before.high / pilots.before.low
    parameters = [count_parameters(bridge, width) for width in (*pilots.widths, 16)]
    assert pilots.cost == pytest.approx(sum(parameters[:-1]) / parameters[-1])
    seen = {width: floor.expected_at(width).value for width in pilots.widths}
    assert pilots.after == floor.expected_at(16, 0.8, seen)


def test_of_pilots_with_half_of_the_parameters_those_with_the_narrowest_interval_are_chosen(
    floor: FloorPrediction, bridge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student of width d has d² parameters, so half of those of 16 are 128: 4² + 5² + 8² = 105 are affordable."""
    monkeypatch.setattr(pilots_module, "count_parameters", lambda _model, width: width**2)
    pilots = choose_pilots(floor, bridge, width=16)
    candidates = [width for width in family_widths(bridge) if width <= 8]
    losses = {width: floor.expected_at(width).value for width in candidates}
    ratios = {}
    for widths in combinations(candidates, 3):
        after = floor.expected_at(16, 0.8, {width: losses[width] for width in widths})
        if sum(width**2 for width in widths) <= 128:
            ratios[widths] = after.high / after.low
    assert len(ratios) > 0
    assert pilots.widths == min(ratios, key=lambda widths: ratios[widths])
    assert pilots.cost == sum(width**2 for width in pilots.widths) / 256


def test_rejects_a_width_without_narrower_students(floor: FloorPrediction, bridge: Any) -> None:
    with pytest.raises(InputError, match="measure with smaller widths=, or train the student itself"):
        choose_pilots(floor, bridge, width=4)


def test_rejects_a_prediction_without_an_expected_loss(floor: FloorPrediction, bridge: Any) -> None:
    with pytest.raises(InputError, match="without head=False"):
        choose_pilots(dataclasses.replace(floor, head=None), bridge, width=16)


def test_a_head_floor_alone_is_planned(floor: FloorPrediction, bridge: Any) -> None:
    head = floor.head
    assert head is not None
    chosen = plan(head, bridge, max_loss=1.2 * head.expected_at(16, 0.8).high)
    assert chosen.width <= 16
    assert chosen.loss == head.expected_at(chosen.width).value
    assert (chosen.unit, chosen.features, chosen.kept) == ("nats", None, None)
    assert "of text" in chosen.known[0]
    assert "features" not in chosen._repr_html_()
    pilots = choose_pilots(head, bridge, width=16)
    seen = {width: head.expected_at(width).value for width in pilots.widths}
    assert pilots.after == head.expected_at(16, 0.8, seen)
    with pytest.raises(InputError, match="stays below 1e-06 with 90 % confidence"):
        plan(head, bridge, max_loss=1e-6)
