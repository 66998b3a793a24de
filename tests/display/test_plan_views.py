"""Plans and pilots as tables and figures."""

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from tl_distill_floor import Pilots, Plan
from tl_distill_floor.display.plan_views import pilots_table, plan_figure, plan_table, trained_pilots_table
from tl_distill_floor.results.plan import Candidate, Limits
from tl_distill_floor.theory.regression import PredictedLoss


@pytest.fixture
def plan() -> Plan:
    """Return a plan with two candidates, of which the narrow one was chosen."""
    narrow = Candidate(64, 1_000_000, 2_000_000, 524_288, 3.25, True, 0.21, 0.29, 0.05)
    wide = Candidate(128, 3_000_000, 6_000_000, 1_048_576, 2.0, False, 0.1, None, None)
    return Plan(
        "made", 64, 2, 4, "nats", 0.21, 0.29, False, 1_000_000, 9_000_000, 3.25, None, None, ("known",), ("guessed",),
        "narrowest", Limits(max_loss=0.3, max_memory=8 * 10**6, divisor=64), "bf16", 4096, (narrow, wide),
    )  # fmt: skip


def text_of(table: RenderableType) -> str:
    """Return a table as one line of text with single spaces."""
    console = Console(width=100, file=io.StringIO())
    console.print(table)
    return " ".join(console.file.getvalue().split())


def test_the_table_names_the_rule_and_the_candidates(plan: Plan) -> None:
    shown = text_of(plan_table(plan))
    for expected in (
        "the narrowest student whose loss stays below 0.3 with 90 % confidence, within max_memory=8.00 MB, divisor=64",
        "2.00 MB weights and 524 kB KV cache in bf16, one sequence of 4,096 tokens",
        "width parameters memory speed expected 90 % upper bound head floor",
        "64 1,000,000 2.52 MB 3.2 0.21 0.29 0.05",
        "128 3,000,000 7.05 MB ~2.0 0.1",
        "~: interpolated between students that were timed",
        "All have 2 of 4 layers: what fewer layers cost is not predicted.",
        "2 layers, whose effect on the loss is not predicted",
        "A distillation loss alone does not predict task scores",
    ):
        assert expected in shown


def test_names_with_spaces_are_quoted_in_commands(plan: Plan) -> None:
    named = dataclasses.replace(plan, teacher="my models/a", features=8, kept=6)
    shown = text_of(plan_table(named, Path("My Drive/run")))
    assert "Next: tl-floor distill 'my models/a' --widths 64" in shown
    assert "tl-floor lost 'My Drive/run' --width 64" in shown
    losses = PredictedLoss(0.2, 0.1, 0.3)
    assert "tl-floor calibrate 'My Drive/run'" in text_of(
        pilots_table(Pilots((8, 16, 32), 0.1, losses, losses), named, Path("My Drive/run"))
    )


def test_an_unknown_cache_is_said_and_not_counted(plan: Plan) -> None:
    candidates = tuple(dataclasses.replace(candidate, cache_bytes=None) for candidate in plan.candidates)
    shown = text_of(plan_table(dataclasses.replace(plan, candidates=candidates)))
    assert "2.00 MB weights and a KV cache of unknown size" in shown
    assert "memory: weights alone, as the KV cache is not known" in shown


def test_a_plan_of_an_older_file_has_no_candidates(plan: Plan) -> None:
    old = dataclasses.replace(plan, rule=None, limits=Limits(), context=None, candidates=())
    shown = text_of(plan_table(old))
    assert "2.0 MB of weights in half precision" in shown
    assert "chosen" not in shown
    assert plan_figure(old).data[0].type == "bar"


def test_the_figure_shows_losses_and_the_chosen_student(plan: Plan) -> None:
    curves = {curve.name: curve for curve in plan_figure(plan).data}
    assert curves["expected, by width"].x == (1_000_000, 3_000_000)
    assert curves["expected, by width"].y == (0.21, 0.1)
    assert (curves["chosen: width 64"].x, curves["chosen: width 64"].y) == ((1_000_000,), (0.21,))
    assert curves["90 % upper bound"].y == (0.29,)
    assert curves["head floor"].y == (0.05,)


def test_trained_pilots_show_both_intervals_and_warnings() -> None:
    pilots = Pilots((16, 24), 0.3, PredictedLoss(0.2, 0.14, 0.28), PredictedLoss(0.2, 0.17, 0.24))
    shown = text_of(trained_pilots_table(pilots, 80, PredictedLoss(0.22, 0.19, 0.25), ["not saturated: width16"]))
    assert "before 0.2 nats per token expected at width 80, 80 %: 0.14 to 0.28" in shown
    assert "now 0.22 expected, 80 %: 0.19 to 0.25" in shown
    assert "! not saturated: width16" in shown


def test_a_plan_without_an_upper_bound_claims_none(plan: Plan) -> None:
    shown = text_of(plan_table(dataclasses.replace(plan, upper_bound=None)))
    assert "the narrowest student whose expected loss is at most 0.3, within max_memory=" in shown
    assert "90 % confidence" not in shown
