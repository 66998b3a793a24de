"""Choices among students whose sizes, speeds and losses are given."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.models import save_family
from tl_distill_floor.distilling.planning.candidates import Choice, StudentFamily, choose_student
from tl_distill_floor.distilling.planning.speeds import SpeedTimer
from tl_distill_floor.distilling.students.build import build_student
from tl_distill_floor.distilling.students.model_size import ModelSize
from tl_distill_floor.distilling.training.config import DistillConfig
from tl_distill_floor.distilling.training.distill import distill
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.plan import Limits
from tl_distill_floor.sources.teachers import load_teacher
from tl_distill_floor.theory.regression import PredictedLoss

WIDTHS = tuple(range(8, 257, 8))


class GivenSpeeds(SpeedTimer):
    """Speeds that are not measured: a student of width d runs 256/d times as fast as its teacher."""

    def __init__(self) -> None:
        self.timed: dict[int, float] = {}

    def measure(self, width: int) -> float:
        """Return the speed of a width."""
        self.timed[width] = 256 / width
        return self.timed[width]


class GivenFamily(StudentFamily):
    """Students with d² parameters of two bytes and d · 100 bytes of cache.

    Args:
        not_built: widths that cannot be built.
    """

    def __init__(self, not_built: Sequence[int] = ()) -> None:
        self.timer, self.context, self.memory_dtype = GivenSpeeds(), 100, "bf16"
        self._not_built = not_built

    def size(self, width: int) -> ModelSize:
        """Return the size of a width."""
        return ModelSize(width**2, 2 * width**2, 100 * width)

    def next_narrower(self, width: int | None, divisor: int | None) -> int:
        """Return the next narrower width."""
        step = divisor or 8
        return ((WIDTHS[-1] if width is None else width) - 1) // step * step

    def refusal(self, width: int) -> str:
        """Return why a width cannot be built."""
        return f"width {width} has no heads; try another width" if width in self._not_built else ""


def loss_at(width: int) -> PredictedLoss:
    """Return a loss of 8/d, and an interval of a fifth around it."""
    return PredictedLoss(8 / width, 8 / width / 1.2, 8 / width * 1.2)


def choose(not_built: Sequence[int] = (), **limits: Any) -> Choice:
    """Choose a student among the given ones."""
    return choose_student(GivenFamily(not_built), Limits(**limits), WIDTHS, loss_at)


@pytest.mark.parametrize(
    ("limits", "width", "rule"),
    [
        ({"max_loss": 0.1}, 96, "narrowest"),  # 8/96 · 1.2 = 0.1
        ({"max_loss": 0.1, "max_width": 200, "min_speedup": 2.0}, 96, "narrowest"),
        ({"max_width": 100}, 96, "widest"),
        ({"max_params": 10_000}, 96, "widest"),  # 96² = 9,216 and 104² = 10,816
        ({"max_memory": 50_000}, 136, "widest"),  # 2 · 136² + 13,600 = 50,592 is too much for 136
        ({"min_speedup": 4.0}, 64, "widest"),
        ({"max_params": 10_000, "min_speedup": 4.0}, 64, "widest"),
        ({"max_params": 2_000, "min_speedup": 4.0}, 40, "widest"),
    ],
)
def test_chooses_by_loss_else_the_widest(limits: dict[str, Any], width: int, rule: str) -> None:
    expected = 128 if "max_memory" in limits else width
    chosen = choose(**limits)
    assert (chosen.width, chosen.rule) == (expected, rule)
    assert expected in chosen.widths
    if rule == "narrowest":
        assert chosen.widths[0] == expected
    else:
        assert chosen.widths[-1] == expected
        assert chosen.widths[0] >= expected / 8
    assert 1 <= len(chosen.widths) <= 6


@given(
    limits=st.fixed_dictionaries(
        {"max_width": st.integers(1, 300)},
        optional={
            "max_loss": st.floats(0.03, 2.0),
            "max_params": st.integers(10, 80_000),
            "max_memory": st.integers(500, 200_000),
            "min_speedup": st.floats(0.5, 40.0),
        },
    ),
    not_built=st.sets(st.sampled_from(WIDTHS), max_size=8),
)
def test_the_choice_is_that_of_a_search_through_all_students(limits: dict[str, Any], not_built: set[int]) -> None:
    family = GivenFamily()
    within = [
        width for width in WIDTHS
        if width not in not_built
        and width <= limits["max_width"]
        and family.size(width).n_parameters <= limits.get("max_params", 10**9)
        and 2 * width**2 + 100 * width <= limits.get("max_memory", 10**9)
        and 256 / width >= limits.get("min_speedup", 0)
        and loss_at(width).high <= limits.get("max_loss", 10**9)
    ]  # fmt: skip
    if not within:
        with pytest.raises(InputError):
            choose(tuple(not_built), **limits)
        return
    chosen = choose(tuple(not_built), **limits)
    assert chosen.width == (min(within) if "max_loss" in limits else max(within))
    assert set(chosen.widths) <= set(within)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"max_loss": 0.1, "max_params": 5000},
            r"no student is within all limits: max_loss=0.1 needs width 96, and max_params=5000 allows at most"
            r" width 64; the closest is width 64, which is expected to lose 0.125, and at most 0.15 with 90 % confid",
        ),
        (
            {"max_loss": 0.1, "max_params": 5000, "max_width": 40, "max_memory": 10**9},
            r"max_width=40 allows at most width 40 and max_params=5000 allows at most width 64; the closest is"
            r" width 40,",
        ),
        (
            {"max_loss": 0.1, "max_memory": 3000},
            r"needs width 96, and max_memory=3.00 kB allows at most width 16; the closest is width 16",
        ),
        (
            {"max_loss": 0.1, "min_speedup": 4.0},
            r"needs width 96, which is the closest, but it runs 2.67 times as fast as its teacher on this machine, less"
            r" than min_speedup=4; change one of them, or set depth=",
        ),
        (
            {"max_params": 60, "max_memory": 900},
            r"no student of the teacher's family is as small as that: width 8, the narrowest with a predicted loss, has"
            r" 64 parameters, more than max_params=60 and takes 928 B in bf16 at a context of 100 tokens, more than"
            r" max_memory=900 B; raise max_params= and max_memory=",
        ),
        ({"min_speedup": 33.0}, r"width 8, the narrowest one, runs 32 times as fast as its teacher on this machine"),
        (
            {"max_loss": 0.01},
            r"stays below 0.01 with 90 % confidence: at width 256 0.03125 is expected, at most 0.0375",
        ),
    ],
)
def test_says_which_limit_rules_out_what(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose(**limits)


def test_a_student_that_is_larger_than_a_wider_one_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search assumes that students grow with the width; width 96 breaks this."""
    sizes = {width: width**2 for width in WIDTHS} | {96: 20_000}
    monkeypatch.setattr(GivenFamily, "size", lambda self, width: ModelSize(sizes[width], 2 * sizes[width], 0))
    assert choose(max_params=15_000).width in (88, 120)
    chosen = choose(max_params=15_000, max_loss=0.1)
    assert (chosen.width, 96 in chosen.widths) == (104, False)


def test_a_cache_of_unknown_size_cannot_be_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GivenFamily, "size", lambda self, width: ModelSize(width**2, 2 * width**2, None))
    with pytest.raises(InputError, match="the size of the KV cache of the teacher's family is not known, so max_mem"):
        choose(max_memory=10**6)
    assert choose(max_params=10_000).width == 96


def test_names_no_upper_bound_if_none_is_known() -> None:
    message = (
        "no student of up to 256 dimensions stays below 0.01 with 90 % confidence: at width 256 0.03125 is expected;"
    )
    with pytest.raises(InputError, match=message):
        choose_student(
            GivenFamily(), Limits(max_loss=0.01), WIDTHS, lambda width: PredictedLoss(8 / width, math.nan, math.nan)
        )


def test_rejects_a_divisor_without_widths() -> None:
    with pytest.raises(InputError, match="a width that is a multiple of 300; set a smaller divisor="):
        choose_student(GivenFamily(), Limits(max_loss=0.1, divisor=300), [], loss_at)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"max_width": 100},
            r"^no student of the teacher's family is as small as that: width 96 has no heads; raise max_width= or"
            r" max_params=, or use another teacher$",
        ),
        (
            {"max_loss": 0.1},
            r"^no student with a loss below 0.1 can be built: width 256 has no heads; raise max_loss=, or use another"
            r" teacher$",
        ),
    ],
)
def test_says_why_no_student_can_be_built(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose(WIDTHS, **limits)


def test_says_that_no_width_was_measured() -> None:
    with pytest.raises(InputError, match=r"narrower than its teacher has a predicted loss; measure with smaller wid"):
        choose_student(GivenFamily(), Limits(max_loss=0.1), [], loss_at)


def test_says_why_no_width_has_a_configuration() -> None:
    """Multiples of 40 below 256 are at most 240."""
    with pytest.raises(InputError, match="as small as that: width 240 has no heads; raise max_width="):
        choose_student(GivenFamily([240]), Limits(max_loss=0.1, divisor=40), [], loss_at)
    message = r"width 64, the narrowest with a predicted loss, is wider than max_width=40, and width 56 has no heads;"
    with pytest.raises(InputError, match=message):
        choose_student(GivenFamily([56]), Limits(max_width=40), WIDTHS[7:], loss_at)


class UnevenFamily(GivenFamily):
    """Students of which the one of width 96 has more parameters than wider ones."""

    def size(self, width: int) -> ModelSize:
        """Return the size of a width."""
        return super().size(1000 if width == 96 else width)


def test_says_that_sizes_that_do_not_grow_with_the_width_are_too_large() -> None:
    """Bisection finds that widths up to 104 have at most 11,000 parameters."""
    limits = Limits(max_loss=0.1, max_params=11_000)
    message = "needs width 96, and the limits on its size do not allow that; the closest is width 88"
    with pytest.raises(InputError, match=message):
        choose_student(UnevenFamily([104]), limits, WIDTHS, loss_at)


def test_no_confidence_is_stated_where_no_interval_is_known() -> None:
    """The feature floor has none if the text is one block."""
    limits = Limits(max_loss=0.1, max_width=40)
    with pytest.raises(InputError, match=r"the closest is width 40, which is expected to lose 0\.2$"):
        choose_student(GivenFamily(), limits, WIDTHS, lambda width: PredictedLoss(8 / width, math.nan, math.nan))


def olmoe(directory: Path, tokenizer: Any) -> str:
    """Save a teacher with experts, and return its directory."""
    options = {"num_attention_heads": 2, "num_experts": 4, "num_experts_per_tok": 2}
    return str(save_family(directory / "olmoe", tokenizer, "Olmoe", **options))


def test_students_whose_experts_cannot_run_are_no_candidates(tokenizer: Any, tmp_path: Path) -> None:
    """Kernels of several experts need rows of a multiple of 16 bytes: 12 numbers in fp32, and not 14."""
    loaded = load_teacher(olmoe(tmp_path, tokenizer))
    family = StudentFamily(loaded.model)
    assert [bool(family.refusal(width)) for width in (12, 14, 32)] == [False, True, False]
    assert family.timer.measure(12) > 0
    for build in (lambda: build_student(loaded, 14, start="random"), lambda: family.timer.measure(14)):
        with pytest.raises(InputError, match=r"Olmoe student of width 14 cannot be (run|timed) \(strides should be"):
            build()


def test_experts_that_run_in_fp32_are_trained_in_bf16(tokenizer: Any, tmp_path: Path) -> None:
    """Rows of 12 numbers are no multiple of 16 bytes in bf16, but autocast leaves the experts in fp32."""
    config = DistillConfig(
        n_tokens=32 * 4 * 3, n_heldout_tokens=64, n_evaluations=1, batch_size=4, dtype="bf16", early_stop=False
    )
    rows = torch.randint(3, 300, (16, 32), generator=torch.Generator().manual_seed(0))
    student = distill(olmoe(tmp_path, tokenizer), 12, rows, config=config, out=tmp_path)
    assert student.path is not None
    assert math.isfinite(student.loss)
