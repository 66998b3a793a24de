"""`tl-floor measure --device cuda` on the embedded teacher."""

from pathlib import Path

import pytest

from tests.helpers.cli import run
from tests.helpers.devices import DEVICE, STATISTICS, assert_close
from tl_distill_floor import FloorPrediction, floor_from_stats, measure

N_TOKENS = 8192


def test_measures_the_embedded_teacher_on_the_device(tmp_path: Path) -> None:
    """The CPU computes the statistics only: the tail loss takes it a minute."""
    result = run("measure", "tiny-prose", "--device", DEVICE, "--steps", 0, "--tokens", N_TOKENS, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    floor = FloorPrediction.load(tmp_path)
    expected = floor_from_stats(measure("tiny-prose", "tiny-prose-sae", n_tokens=N_TOKENS), steps=0)
    assert floor.n_features == pytest.approx(expected.n_features, abs=2)
    assert_close(floor.alpha, expected.alpha, 1e-5)
    assert_close(floor.critical_width, expected.critical_width, STATISTICS)
    assert_close(floor.stats.fvu, expected.stats.fvu, STATISTICS)
    assert_close(floor.stats.cost.sum(), expected.stats.cost.sum(), STATISTICS)
    # One sampled output of thousands may differ, which changes the costs of some features.
    assert_close(floor.additive, expected.additive, 5 * STATISTICS)
    assert floor.tail is not None
    assert 0 <= floor.tail.loss[-1].sum() < floor.tail.loss[0].sum()
