"""Tests of the head floor against closed forms, brute-force optimisation and real students."""

import copy
import dataclasses
import json
import math
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from tests.helpers.models import CONTEXT, VOCABULARY, WIDTH, save_family
from tests.helpers.records import made_head_floor
from tl_distill_floor import HeadFloor, InputError, build_student, head_floor, predict_floor
from tl_distill_floor.measuring.kl import forward_kl
from tl_distill_floor.measuring.logit_map import LogitMap
from tl_distill_floor.measuring.token_stream import open_token_stream
from tl_distill_floor.predicting import head_floor as head_floor_module
from tl_distill_floor.predicting import low_rank_head
from tl_distill_floor.predicting.checks import head_warnings
from tl_distill_floor.predicting.head_contexts import best_logits
from tl_distill_floor.predicting.head_floor import _train_and_evaluate
from tl_distill_floor.predicting.head_tokens import (
    MAX_HELDOUT_SHARE,
    TOKENS_PER_KEPT,
    HeadTokens,
    TeacherHead,
    _teacher_head,
    read_head_tokens,
)
from tl_distill_floor.predicting.low_rank_head import LowRankHead, principal_directions, train_step
from tl_distill_floor.sources.teachers import load_teacher

ATLAS = Path(__file__).parents[2] / "benchmarks" / "atlas"
OPTIONS: dict[str, Any] = {"steps": 20, "n_tokens": 1000, "n_heldout_tokens": 200, "batch_size": 8}


@pytest.fixture(scope="module")
def head(bridge: Any, ids: Tensor) -> HeadFloor:
    """Return the head floor of the random teacher."""
    return head_floor(bridge, ids, widths=[4, 8, 16, 24, 30], **OPTIONS)


def linear_teacher(weight: Tensor, bias: Tensor, n_tokens: int = 6000, cap: float | None = None) -> HeadTokens:
    """Return a teacher without layers: Gaussian last hidden states and an unembedding."""
    random = torch.Generator().manual_seed(5)
    hidden = torch.randn(n_tokens, weight.shape[1], generator=random)
    n_heldout = n_tokens // 3
    sequence = torch.arange(n_heldout) // 10
    return HeadTokens(TeacherHead(weight, bias, LogitMap(1.0, cap)), hidden[n_heldout:], hidden[:n_heldout], sequence)


def test_small_gaussian_logits_have_the_floor_of_an_eigenproblem() -> None:
    """To second order the KL is ½ Δᵀ(diag u − u uᵀ)Δ: the floor is half the sum of the smallest eigenvalues."""
    random = torch.Generator().manual_seed(1)
    weight = 0.1 * torch.randn(40, 8, generator=random) * torch.linspace(1.5, 0.5, 8)
    bias = torch.randn(40, generator=random)
    tokens = linear_teacher(weight, bias, n_tokens=15_000)
    u = bias.double().softmax(0)
    metric = weight.double().T @ (torch.diag(u) - torch.outer(u, u)) @ weight.double()
    eigenvalues = torch.linalg.eigvalsh(metric)
    widths = [2, 4, 6]
    losses = _train_and_evaluate(tokens, widths, steps=100, seed=0, progress=None)
    expected = [0.5 * float(eigenvalues[: 8 - width].sum()) for width in widths]
    np.testing.assert_allclose(losses.best.mean(1), expected, rtol=0.08)


def test_logits_of_rank_r_have_no_floor_from_width_r_on() -> None:
    random = torch.Generator().manual_seed(2)
    weight = torch.randn(50, 3, generator=random) @ torch.randn(3, 10, generator=random)
    losses = _train_and_evaluate(linear_teacher(weight, torch.zeros(50)), [2, 3, 6], steps=40, seed=0, progress=None)
    below, exact, above = losses.best.mean(1)
    assert below > 0.05
    assert max(exact, above) < 1e-5


@pytest.mark.parametrize("cap", [None, 3.0])
def test_best_logits_match_brute_force_optimisation(cap: float | None) -> None:
    random = torch.Generator().manual_seed(3)
    decode, bias = torch.randn(12, 3, generator=random).double(), torch.randn(12, generator=random).double()
    log_p = (2 * torch.randn(8, 12, generator=random).double()).log_softmax(-1)
    logit_map = LogitMap(1.0, cap)
    result = best_logits(log_p, decode, bias, torch.zeros(8, 3).double(), logit_map, torch.float64)

    def loss(z: np.ndarray, token: int) -> float:
        logits = logit_map(torch.as_tensor(z) @ decode.T + bias)
        return float(forward_kl(log_p[token], logits)) if cap is None else float(_kl(log_p[token], logits))

    for token in range(8):
        best = minimize(
            loss, np.zeros(3), args=(token,), method="Nelder-Mead", options={"xatol": 1e-6, "maxiter": 4000}
        )
        assert float(result.kl[token]) <= best.fun + 1e-3 * (1 + best.fun)
        assert loss(result.z[token].numpy(), token) == pytest.approx(float(result.kl[token]), abs=1e-5)


def _kl(log_p: Tensor, logits: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - logits.log_softmax(-1))).sum()


@pytest.mark.parametrize("cap", [None, 2.0])
def test_training_steps_follow_the_gradient_of_the_kl(cap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients that are propagated by hand, some tokens at a time, are those of autograd."""
    random = torch.Generator().manual_seed(8)
    tokens = linear_teacher(torch.randn(30, 5, generator=random), torch.randn(30, generator=random), 60, cap)
    low_rank = LowRankHead(principal_directions(tokens.head, tokens.train), 2, cap, seed=0)
    hidden = tokens.train[:7]
    log_p = tokens.head.log_probs(hidden)
    z = low_rank.encode(hidden)
    logits = low_rank.logit_map(z @ low_rank.decode.T + low_rank.bias)
    _kl(log_p, logits).div(7).backward()
    expected = {name: weight.grad.clone() for name, weight in low_rank.named_parameters()}
    low_rank.zero_grad()
    monkeypatch.setattr(low_rank_head, "LOGIT_BYTES_CPU", 3 * 30 * 4)
    before = {name: weight.detach().clone() for name, weight in low_rank.named_parameters()}
    train_step(low_rank, torch.optim.SGD(low_rank.parameters(), lr=1.0), hidden, log_p.exp(), torch.float32)
    for name, weight in low_rank.named_parameters():
        torch.testing.assert_close(before[name] - weight.detach(), expected[name], atol=1e-5, rtol=1e-4)


def test_half_precision_does_not_round_large_common_logits() -> None:
    """GPT-2's logits are about −100. What they have in common changes no probability, and is not rounded."""
    random = torch.Generator().manual_seed(2)
    weight = 0.3 * torch.randn(40, 6, generator=random)
    steps = []
    for offset, dtype in ((0.0, torch.float32), (-100.0, torch.bfloat16)):
        tokens = linear_teacher(weight, torch.full((40,), offset))
        low_rank = LowRankHead(principal_directions(tokens.head, tokens.train), 3, None, seed=0)
        before = {name: value.detach().clone() for name, value in low_rank.named_parameters()}
        p = tokens.head.probabilities(tokens.train[:512], dtype)
        train_step(low_rank, torch.optim.SGD(low_rank.parameters(), lr=1.0), tokens.train[:512], p, dtype)
        steps.append({name: before[name] - value.detach() for name, value in low_rank.named_parameters()})
    for name in ("decode", "bias", "linear"):
        exact, rounded = (step[name] for step in steps)
        assert float((rounded - exact).norm()) < 0.05 * float(exact.norm()), name


def test_heldout_tokens_are_spread_over_many_sequences(bridge: Any, ids: Tensor) -> None:
    stream = open_token_stream(load_teacher(bridge), ids, CONTEXT, 8)
    tokens = read_head_tokens(stream, ids.numel(), n_train_tokens=10 * CONTEXT, n_heldout_tokens=20)
    assert 9 * CONTEXT < len(tokens.train) <= 10 * CONTEXT
    n_sequences = int(len(ids) * MAX_HELDOUT_SHARE)
    assert len(tokens.heldout) == 20
    assert len(tokens.heldout_sequence.unique()) == min(n_sequences, 20 * TOKENS_PER_KEPT // CONTEXT) == 5
    few = read_head_tokens(stream, ids.numel(), 10**6, n_heldout_tokens=10**6)
    assert len(few.heldout_sequence.unique()) == n_sequences


def test_tokens_that_never_occur_cost_nothing() -> None:
    """A logit of −inf has probability 0 in teacher and student."""
    random = torch.Generator().manual_seed(4)
    weight, bias = torch.randn(20, 6, generator=random), torch.zeros(20)
    weight[7:9], bias[7:9] = 0.0, -torch.inf
    tokens = linear_teacher(weight, bias)
    losses = _train_and_evaluate(tokens, [4], steps=20, seed=0, progress=None)
    rest = [i for i in range(20) if i not in (7, 8)]
    without = linear_teacher(weight[rest], bias[rest])
    expected = _train_and_evaluate(without, [4], steps=20, seed=0, progress=None)
    assert np.isfinite(losses.best).all()
    assert losses.best.mean() == pytest.approx(expected.best.mean(), rel=0.05)


def test_known_share_is_the_part_of_the_entropy_that_the_context_removes() -> None:
    """Two contexts with p = (3/4, 1/4) and (1/4, 3/4), and a third token that never occurs."""
    weight = torch.tensor([[1.0], [-1.0], [0.0]]) * np.log(3.0) / 2
    head = TeacherHead(weight, torch.tensor([0.0, 0.0, -torch.inf]), LogitMap())
    hidden = torch.tensor([[1.0], [-1.0]])
    conditional = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert head.known_share(hidden) == pytest.approx(1 - conditional / np.log(2), abs=1e-6)
    assert head.known_share(hidden[:1]) == pytest.approx(0.0, abs=1e-6)
    assert head.known_share(100 * hidden) == pytest.approx(1.0, abs=1e-6)


def test_a_file_without_a_known_share_is_read(head: HeadFloor, tmp_path: Path) -> None:
    assert head.known_share is not None
    assert 0 < head.known_share < 1
    file = head.save(tmp_path)
    values = json.loads(file.read_text())
    del values["known_share"]
    file.write_text(json.dumps(values))
    loaded = HeadFloor.load(tmp_path)
    assert loaded.known_share is None
    assert loaded.expected_at(8).value > 0


def test_principal_coordinates_are_uncorrelated_and_decode_to_the_logits() -> None:
    random = torch.Generator().manual_seed(6)
    tokens = linear_teacher(torch.randn(30, 5, generator=random), torch.randn(30, generator=random))
    directions = principal_directions(tokens.head, tokens.train)
    coordinates = (tokens.train - directions.mean) @ directions.encode
    np.testing.assert_allclose(torch.cov(coordinates.T, correction=0), np.eye(5), atol=1e-3)
    log_q = (coordinates @ directions.decode.T + directions.bias).log_softmax(-1)
    np.testing.assert_allclose(log_q, tokens.head.log_probs(tokens.train), atol=1e-3)


def test_the_head_floor_falls_with_the_width_to_exactly_zero(head: HeadFloor) -> None:
    assert head.widths == (4, 8, 16, 24, 30)
    assert head.floor[0] > head.floor[1] > head.floor[2] > 0
    assert head.floor[3:] == head.standard_error[3:] == (0.0, 0.0)
    assert all(low <= high for low, high in zip(head.floor, head.encoded, strict=True))
    assert all(error > 0 for error in head.standard_error[:3])


def test_a_trained_student_loses_more_than_the_bound(bridge: Any, ids: Tensor, head: HeadFloor) -> None:
    with torch.no_grad():
        teacher_logits = bridge(ids)[:, 1:]
    for width in (8, 16):
        student = build_student(bridge, width)
        optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
        losses = []
        for _ in range(60):
            loss = forward_kl(teacher_logits, student(ids).logits[:, 1:]).mean()
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert losses[0] > 1.5 * losses[-1] > 1.5 * head.floor_at(width)


def test_two_seeds_agree(bridge: Any, ids: Tensor, head: HeadFloor) -> None:
    other = head_floor(bridge, ids, widths=[4, 8, 16], seed=1, **OPTIONS)
    np.testing.assert_allclose(other.floor, head.floor[:3], rtol=0.03)


def test_a_teacher_of_low_rank_is_bounded_by_its_rank(bridge: Any, ids: Tensor) -> None:
    teacher = copy.deepcopy(bridge)
    weight = teacher.original_model.get_output_embeddings().weight
    random = torch.Generator().manual_seed(7)
    factors = torch.randn(VOCABULARY, 4, generator=random), torch.randn(4, WIDTH, generator=random)
    with torch.no_grad():
        weight.copy_(0.3 * factors[0] @ factors[1])
    bounds = head_floor(teacher, ids, widths=[2, 4], **OPTIONS)
    assert bounds.floor[0] > 1e-2
    assert bounds.floor[1] < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_weights_of_an_unembedding_are_not_rounded_with_its_bias(dtype: torch.dtype) -> None:
    """With biases a hundred times as large as the weights, the outputs for unit vectors of length 1 have few digits."""
    random = torch.Generator().manual_seed(12)
    unembed = torch.nn.Linear(8, 40, dtype=dtype).requires_grad_(False)
    unembed.weight.copy_(0.05 * torch.randn(40, 8, generator=random))
    unembed.bias.copy_(5.0 * torch.randn(40, generator=random))
    unembed.bias[3] = -torch.inf
    head = _teacher_head(unembed, LogitMap(), 8)
    expected = unembed.weight.float().index_fill(0, torch.tensor([3]), 0.0)
    assert float((head.weight - expected).abs().max()) < 6 * torch.finfo(dtype).eps * 0.05
    torch.testing.assert_close(head.bias, unembed.bias.float())


def test_interpolates_between_widths_and_inverts(head: HeadFloor) -> None:
    for width, floor in zip(head.widths, head.floor, strict=True):
        assert head.floor_at(width) == pytest.approx(floor)
    assert head.floor[2] < head.floor_at(12) < head.floor[1]
    assert 0 < head.floor_at(20) < head.floor[2]
    for loss in (head.floor[0], 0.5 * (head.floor[1] + head.floor[2]), 0.0):
        width = head.width_for(loss)
        assert head.floor_at(width) <= loss + 1e-9
        assert width == 4 or head.floor_at(width - 1) > loss
    for width in (3, np.nan):
        with pytest.raises(InputError, match="narrowest width of this head floor is 4"):
            head.floor_at(width)
    with pytest.raises(ValueError, match="at least 0"):
        head.width_for(-1.0)


def test_the_lower_end_falls_with_the_bound_up_to_the_teachers_width() -> None:
    """The floor of width 32 is known within 1.96 · 2 % + 10 %; that of the teacher's own width, 64, is 0."""
    columns = {name: (*getattr(made_head_floor(), name), 0.0) for name in
               ("floor", "standard_error", "half_steps", "encoded")}  # fmt: skip
    head = made_head_floor(widths=(4, 8, 16, 32, 64), **columns)
    for width in (32, 40, 56, 63):
        assert head.least_at(width) == pytest.approx(head.floor_at(width) * (1 - 1.96 * 0.02 - 0.1))
    assert head.least_at(64) == 0.0


def test_the_error_of_a_width_is_that_of_the_nearest_in_the_logarithm() -> None:
    """Width 11.5 is nearer to 16 than to 8, since √(8 · 16) = 11.3; the losses there are 0.05 and 0.2."""
    head = made_head_floor()
    assert head.least_at(11.5) == pytest.approx(head.floor_at(11.5) * (1 - (1.96 * 0.001 + 0.002) / 0.05))
    assert head.least_at(11.0) == pytest.approx(head.floor_at(11.0) * (1 - (1.96 * 0.005 + 0.01) / 0.2))


def test_a_loss_that_rose_in_the_second_half_of_the_steps_leaves_nothing() -> None:
    assert made_head_floor(half_steps=(0.41, 0.19, 0.05, 0.011)).training_left == pytest.approx((0.01, 0.0, 0.0, 0.001))


def test_above_the_widest_width_the_power_law_of_the_last_two_ends_at_the_teachers_width() -> None:
    """From width 16 to 32 the floor falls by a factor of 5, the encoded loss by one of 4; the teacher has 64."""
    head = made_head_floor()
    assert head.floor_at(48) == pytest.approx(0.01 * 1.5 ** -math.log2(5) * 0.5)
    assert head.encoded_at(48) == pytest.approx(0.03 * 1.5**-2 * 0.5)
    assert made_head_floor(
        widths=(32,), floor=(0.01,), standard_error=(0.0,), half_steps=(0.01,), encoded=(0.03,)
    ).floor_at(48) == pytest.approx(0.01 * 1.5**-1.5 * 0.5)


def test_a_single_width_of_a_teacher_of_the_atlas_is_extrapolated_within_a_factor() -> None:
    """To every computed width up to 4 times as wide."""
    ratios = []
    for file in sorted(ATLAS.glob("*.json")):
        row = json.loads(file.read_text())
        widths, floors, d_model = row["predictions"]["widths"], row["predictions"]["head"], row["recipe"]["d_model"]
        for (width, floor), (wider, expected) in combinations(zip(widths, floors, strict=True), 2):
            if wider < d_model and wider <= 4 * width:
                head = made_head_floor(
                    d_model=d_model, widths=(width,), floor=(floor,), half_steps=(floor,), encoded=(floor,),
                    standard_error=(0.0,),
                )  # fmt: skip
                ratios.append(head.floor_at(wider) / expected)
    assert len(ratios) > 90
    np.testing.assert_allclose(np.quantile(ratios, (0.1, 0.5, 0.9)), (0.75, 1.13, 2.5), rtol=0.1)


def test_nothing_is_lost_from_the_first_width_on_that_loses_nothing() -> None:
    """From width 8 to 16 the floor falls by a factor of 4; the line ends at width 32, not at the teacher's 64."""
    head = made_head_floor(floor=(0.4, 0.2, 0.05, 0.0), half_steps=(0.41, 0.21, 0.05, 0.0))
    assert head.floor_at(24) == pytest.approx(0.05 * 1.5**-2 * 0.5)
    assert [head.floor_at(width) for width in (16, 32, 40, 63, 64)] == [0.05, 0.0, 0.0, 0.0, 0.0]
    assert [made_head_floor(floor=(0.0,) * 4).floor_at(width) for width in (4, 6, 40)] == [0.0, 0.0, 0.0]


def test_the_widest_width_of_every_teacher_of_the_atlas_is_extrapolated() -> None:
    """From the two next narrower widths; a line to 0 would be 1.8 to 7 times too high."""
    errors = []
    for file in sorted(ATLAS.glob("*.json")):
        row = json.loads(file.read_text())
        columns, d_model = row["predictions"], row["recipe"]["d_model"]
        narrower = [i for i, width in enumerate(columns["widths"]) if width < d_model]
        *known, last = narrower
        losses = {name: tuple(columns[column][i] for i in known) for name, column in
                  (("floor", "head"), ("encoded", "head_encoded"))}  # fmt: skip
        zeros = (0.0,) * len(known)
        head = made_head_floor(d_model=d_model, widths=tuple(columns["widths"][i] for i in known),
                               standard_error=zeros, half_steps=zeros, **losses)  # fmt: skip
        width = columns["widths"][last]
        errors += [math.log(head.floor_at(width) / columns["head"][last]),
                   math.log(head.encoded_at(width) / columns["head_encoded"][last])]  # fmt: skip
    assert np.abs(errors).mean() < 0.2
    assert np.abs(errors).max() < 0.7


def test_a_head_floor_is_saved_loaded_and_displayed(head: HeadFloor, tmp_path: Path) -> None:
    assert HeadFloor.load(head.save(tmp_path)) == head
    assert "widths 4 to 30" in repr(head)
    assert "Least and expected loss of a student" in head._repr_html_()
    (bound,) = (trace for trace in head.plot().data if trace.name == "head floor (95 %)")
    assert list(bound.x) == [4, 8, 16]


def test_progress_counts_the_steps(bridge: Any, ids: Tensor) -> None:
    calls: list[tuple[int, int]] = []
    head_floor(bridge, ids, widths=[4], **OPTIONS, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(step + 1, 20) for step in range(20)]


def test_rejects_bad_input_by_name(bridge: Any, ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, words in (
        ({"widths": [0]}, "widths must be integers above 0"),
        ({"steps": 1}, "steps must be at least 2, got 1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"n_heldout_tokens": 0}, "n_heldout_tokens must be at least 1, got 0"),
    ):
        with pytest.raises(InputError, match=words):
            head_floor(bridge, ids, **options)
    with pytest.raises(InputError, match=r"gave 1 sequence\(s\) of 32 tokens .* needs at least 2"):
        head_floor(bridge, ids[:1])
    with pytest.raises(InputError, match=r"within 20 tokens, .*; give more text with text=, more n_tokens="):
        head_floor(bridge, ids, n_tokens=20)
    monkeypatch.setattr(head_floor_module.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(InputError, match=r"GB are free; name fewer or narrower widths with widths=, or read"):
        head_floor(bridge, ids)


def test_rejects_a_teacher_that_reads_later_tokens(ids: Tensor, tokenizer: Any, tmp_path: Path) -> None:
    directory = save_family(tmp_path, tokenizer, "Bert", head="LMHeadModel")
    with pytest.raises(InputError, match="depend on later tokens, so it is not a causal language model"):
        head_floor(str(directory), ids, widths=[4], **OPTIONS)


def test_rejects_hidden_states_that_are_not_finite(bridge: Any, ids: Tensor) -> None:
    teacher = copy.deepcopy(bridge)
    with torch.no_grad():
        next(p for name, p in teacher.named_parameters() if "final_layer_norm" in name or "ln_final" in name).fill_(
            torch.nan
        )
    with pytest.raises(InputError, match="NaN"):
        head_floor(teacher, ids, widths=[4], **OPTIONS)


def test_warns_of_little_text_and_little_training(bridge: Any, ids: Tensor) -> None:
    head = head_floor(bridge, ids[:8], widths=[16], steps=4, batch_size=4)
    assert any("fewer than 50 per dimension" in warning for warning in head.warnings)
    assert head.n_train_tokens + head.n_heldout_tokens <= 8 * CONTEXT
    # One sequence is held out, so that its tokens tell the error: a spread of the losses of 0.5 to 2 times their mean.
    assert head.n_heldout_tokens < CONTEXT
    assert 0.3 < head.standard_error[0] * head.n_heldout_tokens**0.5 / head.floor[0] < 3


@pytest.mark.parametrize(("gain", "warns"), [(0.0031, True), (0.0029, False)])
def test_warns_if_the_second_half_of_the_training_lowered_the_floor_much(gain: float, warns: bool) -> None:
    warnings = head_warnings([4, 8], np.array([0.2, 0.1]), np.array([0.004, gain]), n_train=1000)
    expected = [
        "the second half of the training lowered the head floor by up to 3%, so more steps would lower it further"
    ]
    assert warnings == (expected if warns else [])


def test_impossible_records_are_rejected(head: HeadFloor) -> None:
    for name, value, message in (
        ("floor", (1.0,), "one loss for each width"),
        ("widths", (8, 4, 16, 24, 30), "in rising order"),
        ("floor", (-1.0, 0.0, 0.0, 0.0, 0.0), "losses must be at least 0"),
        ("n_heldout_tokens", 0, "must be above 0"),
        ("known_share", 1.2, "known share must be from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(head, **{name: value})


def test_a_prediction_without_a_head_floor_says_why(bridge: Any, sae: Any, ids: Tensor) -> None:
    """One sequence, or a few steps, are enough for a prediction, but not for the head floor."""
    one_sequence = predict_floor(bridge, sae, ids[:1], widths=[4, 8], steps=20)
    few_steps = predict_floor(bridge, sae, ids[:8], widths=[4, 8], steps=4)
    for floor in (one_sequence, few_steps):
        assert floor.bound is None
        assert any("the head floor was not computed" in warning for warning in floor.warnings)
    assert predict_floor(bridge, sae, ids[:8], widths=[4, 8], steps=20, head=False).head is None


def test_large_vocabularies_are_evaluated_on_fewer_tokens(
    bridge: Any, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_floor_module, "MIN_HELDOUT_TOKENS", 32)
    monkeypatch.setattr(head_floor_module, "MAX_HELDOUT_LOGITS", 70 * VOCABULARY)
    head = head_floor(bridge, ids, widths=[4], steps=2, batch_size=8)
    assert 60 < head.n_heldout_tokens < 96
