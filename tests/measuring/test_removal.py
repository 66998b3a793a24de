"""Losses measured in nats, compared with forward passes with plain hooks, and the curve through them."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.forward_passes import activation_of, logits_with
from tests.helpers.models import CONTEXT, FEATURES
from tests.helpers.records import stats_of
from tl_distill_floor import FloorPrediction, InputError, floor_from_stats, measure, predict_floor
from tl_distill_floor.measuring import active_codes, removal
from tl_distill_floor.measuring.config import LoadConfig
from tl_distill_floor.measuring.job import prepare_job
from tl_distill_floor.measuring.removal import _select_sequences, measure_restored_loss, measure_tail_loss
from tl_distill_floor.measuring.rerun import ALL_POSITIONS, Positions
from tl_distill_floor.predicting.bottleneck_task import heldout_sequences
from tl_distill_floor.predicting.simulation import train_if_possible
from tl_distill_floor.results.tail_loss import TailLoss, effective_number, rank_grid, ratio_standard_error
from tl_distill_floor.theory.bootstrap import Z_95

SEQUENCES = np.array([1, 4, 5, 30])


def kl_without(
    model: Any, sae: Any, ids: Tensor, removed: Tensor, positions: Positions = ALL_POSITIONS, first: int = 1
) -> np.ndarray:
    """Return KL(teacher ‖ teacher without some features), summed over positions of each sequence, by a plain hook.

    The features are removed at all positions from `first` on. The outputs at special tokens are not counted.
    """
    counted = (ids != 0) & (torch.arange(CONTEXT) >= first)
    activation = activation_of(model, ids)
    codes = sae.encode(activation).detach() * counted[..., None]
    without = activation - codes[..., removed] @ sae.W_dec[removed].detach()
    p, q = (logits_with(model, ids, a).double().log_softmax(-1) for a in (activation, without))
    kl = (p.exp() * (p - q)).sum(-1) * (ids != 0)
    return kl[:, positions].sum(1).numpy()


def test_tail_loss_matches_kl_of_plain_forward_passes(bridge: Any, sae: Any, ids: Tensor) -> None:
    job = prepare_job(bridge, [sae], ids, LoadConfig(batch_size=3))
    order = np.random.default_rng(0).permutation(FEATURES)
    ranks = np.array([0, 10, 60, FEATURES])
    tail = measure_tail_loss(job, order, ranks, np.linspace(3, 0, 4), SEQUENCES)
    for rank, loss in zip(ranks, tail.loss, strict=True):
        expected = kl_without(bridge, sae, ids[SEQUENCES], torch.from_numpy(order[rank:].copy()))
        np.testing.assert_allclose(loss, expected, rtol=1e-3, atol=1e-4)
    assert tail.n_tokens.tolist() == [int((ids[i, 1:] != 0).sum()) for i in SEQUENCES]
    assert tail.loss[-1].max() == 0


def test_losses_at_special_tokens_are_not_counted(bridge: Any, sae: Any, ids: Tensor) -> None:
    """Neither the losses of students nor the head floor count them."""
    chat = ids.where(torch.arange(CONTEXT) % 3 > 0, 0)
    job = prepare_job(bridge, [sae], chat, LoadConfig(batch_size=3))
    tail = measure_tail_loss(job, np.arange(FEATURES), np.array([0]), np.array([1.0]), SEQUENCES)
    expected = kl_without(bridge, sae, chat[SEQUENCES], torch.arange(FEATURES))
    np.testing.assert_allclose(tail.loss[0], expected, rtol=1e-3)
    assert tail.n_tokens.tolist() == [int((chat[i] != 0).sum()) for i in SEQUENCES]
    loss, _ = measure_restored_loss(job, [torch.zeros_like], SEQUENCES)
    np.testing.assert_allclose(loss[0], tail.loss[0], rtol=1e-4)


def test_codes_of_few_tokens_are_in_memory_at_once(
    bridge: Any, sae: Any, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes are much larger than activations: those of a whole batch would be gigabytes."""
    options: Any = (np.arange(FEATURES), np.array([0, 40]), np.array([1.0, 0.0]), SEQUENCES)
    expected = measure_tail_loss(prepare_job(bridge, [sae], ids), *options)
    monkeypatch.setattr(active_codes, "CODES_AT_ONCE", 0)
    monkeypatch.setattr(active_codes, "LEAST_AT_ONCE", 7)
    sae, n_tokens = copy.deepcopy(sae), []
    monkeypatch.setattr(sae, "encode", lambda acts: n_tokens.append(len(acts)) or type(sae).encode(sae, acts))
    tail = measure_tail_loss(prepare_job(bridge, [sae], ids), *options)
    np.testing.assert_allclose(tail.loss, expected.loss, rtol=1e-4)
    assert max(n_tokens) == 7


def test_long_sequences_are_measured_at_one_of_each_four_positions(
    bridge: Any, sae: Any, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "MIN_CONTEXT_SIZE", CONTEXT)
    job = prepare_job(bridge, [sae], ids, LoadConfig(batch_size=3))
    positions = removal._measured_positions(job.token_stream)
    assert isinstance(positions, Tensor)
    assert ((positions - 1) // 4).tolist() == list(range(len(positions)))
    assert positions[0] == 1
    assert len(set((positions % 4).tolist())) > 1  # no fixed distance
    tail = measure_tail_loss(job, np.arange(FEATURES), np.array([0, 40]), np.array([1.0, 0.0]), SEQUENCES)
    expected = kl_without(bridge, sae, ids[SEQUENCES], torch.arange(40, FEATURES), positions)
    np.testing.assert_allclose(tail.loss[1], expected, rtol=1e-3, atol=1e-4)
    assert tail.n_tokens.tolist() == [int((ids[i, positions] != 0).sum()) for i in SEQUENCES]
    loss, n_tokens = measure_restored_loss(job, [torch.zeros_like], SEQUENCES)
    np.testing.assert_allclose(loss[0], tail.loss[0], rtol=1e-4)
    assert n_tokens.tolist() == tail.n_tokens.tolist()


@pytest.mark.parametrize("seqpos_slice", [(-4, None), (-1, None)])
def test_losses_of_an_sae_that_reads_some_positions_are_measured_at_every_position(
    bridge: Any, sae: Any, ids: Tensor, seqpos_slice: tuple[int, None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "MIN_CONTEXT_SIZE", CONTEXT)
    of_last_tokens = copy.deepcopy(sae)
    of_last_tokens.cfg.metadata.seqpos_slice = seqpos_slice
    job = prepare_job(bridge, [of_last_tokens], ids, LoadConfig(batch_size=3))
    tail = measure_tail_loss(job, np.arange(FEATURES), np.array([0]), np.array([1.0]), SEQUENCES)
    first = CONTEXT + seqpos_slice[0]
    expected = kl_without(bridge, sae, ids[SEQUENCES], torch.arange(FEATURES), first=first)
    np.testing.assert_allclose(tail.loss[0], expected, rtol=1e-3, atol=1e-4)
    assert tail.n_tokens.tolist() == [int((ids[i, first:] != 0).sum()) for i in SEQUENCES]


def test_features_outside_the_order_are_removed_with_the_last(bridge: Any, sae: Any, ids: Tensor) -> None:
    job = prepare_job(bridge, [sae], ids)
    order = np.arange(40)
    tail = measure_tail_loss(job, order, np.array([0, 40]), np.array([1.0, 0.0]), SEQUENCES)
    expected = kl_without(bridge, sae, ids[SEQUENCES], torch.arange(40, FEATURES))
    np.testing.assert_allclose(tail.loss[1], expected, rtol=1e-3, atol=1e-4)


def test_restored_loss_matches_kl_of_plain_forward_passes(bridge: Any, sae: Any, ids: Tensor) -> None:
    job = prepare_job(bridge, [sae], ids, LoadConfig(batch_size=3))
    students = [lambda codes: codes, torch.zeros_like, lambda codes: codes * (torch.arange(FEATURES) < 7)]
    loss, n_tokens = measure_restored_loss(job, students, SEQUENCES)
    assert loss[0].max() == 0
    for loss_of_student, n_kept in zip(loss[1:], (0, 7), strict=True):
        expected = kl_without(bridge, sae, ids[SEQUENCES], torch.arange(n_kept, FEATURES))
        np.testing.assert_allclose(loss_of_student, expected, rtol=1e-3, atol=1e-4)
    assert len(n_tokens) == len(SEQUENCES)


def test_selected_sequences_are_read_in_order(bridge: Any, sae: Any, ids: Tensor) -> None:
    selected = torch.cat(list(_select_sequences(prepare_job(bridge, [sae], ids, LoadConfig(batch_size=3)), SEQUENCES)))
    assert torch.equal(selected, ids[SEQUENCES])
    with pytest.raises(InputError, match="give more text"):
        measure_restored_loss(prepare_job(bridge, [sae], ids), [torch.zeros_like], np.array([10**4]))


def tail_loss_of(loss: list[float], additive: list[float]) -> TailLoss:
    """Return the tail loss of one sequence of one token."""
    n = len(loss)
    return TailLoss(np.arange(n), np.array(additive), np.array(loss)[:, None], np.array([1]), np.array([0]))


def test_curve_passes_through_measured_losses_and_is_linear_below() -> None:
    tail = tail_loss_of([8.0, 3.0, 1.2, 0.0], [2.0, 1.0, 0.5, 0.0])
    assert tail.loss_of_cost(np.array([2.0, 1.0, 0.5])) == pytest.approx([8.0, 3.0, 1.2])
    assert tail.loss_of_cost(0.05) == pytest.approx(0.12)  # the ratio 1.2 / 0.5 of the last rank
    assert tail.loss_of_cost(0.0) == 0
    assert tail.loss_of_cost(5.0) == tail.total == 8.0
    assert tail_loss_of([0.0], [0.0]).loss_of_cost(0.0) == tail_loss_of([0.0], [2.0]).loss_of_cost(1.0) == 0
    # A power of the costs is a straight line in the logarithms, and is reproduced exactly.
    power = tail_loss_of([4.0, 1.0, 0.25], [4.0, 2.0, 1.0])
    assert power.loss_of_cost(3.0) == pytest.approx(2.25)


def test_features_of_cost_0_lose_what_was_measured() -> None:
    """They do not fire on the tokens on which costs were measured, but on those on which the tail loss was."""
    ranks, losses = np.array([0, 2, 4]), np.array([[8.0], [0.3], [0.1]])
    tail = TailLoss(ranks, np.array([2.0, 0.0, 0.0]), losses, np.array([1]), np.array([0]))
    at_ranks = [tail.loss_at_rank(rank, cost) for rank, cost in enumerate([2.0, 1.0, 0.0, 0.0, 0.0, 0.0])]
    assert at_ranks == pytest.approx([8.0, 4.0, 0.3, 0.1, 0.1, 0.0])
    # Of eight features that fire on 31.9 % of the tokens, g(α) = 2.745 or two are held at width 1, five at width 2.
    stats = stats_of(np.array([1.5, 0.5, 0, 0, 0, 0, 0, 0]), rate=0.319, cost_unit="nats")
    floor = floor_from_stats(stats, [1, 2], tail=tail)
    assert (
        floor.theorem.tolist() == [floor.predicted("theorem", width) for width in (1, 2)] == pytest.approx([0.3, 0.0])
    )


@given(st.lists(st.tuples(st.floats(1e-6, 10), st.floats(1e-6, 10)), min_size=1, max_size=8))
@example([(1.0000000000000002e-06, 1.0), (1e-06, 1.0)])  # two costs with the same logarithm
def test_loss_does_not_fall_as_cost_rises(pairs: list[tuple[float, float]]) -> None:
    costs, losses = (np.sort(np.array(values))[::-1] for values in zip(*pairs, strict=True))
    tail = tail_loss_of(losses.tolist(), costs.tolist())
    curve = tail.loss_of_cost(np.geomspace(1e-8, 20, 50))
    assert (np.diff(curve) >= -1e-9 * curve[1:]).all()
    assert (curve <= tail.total * (1 + 1e-12)).all()


def test_standard_error_matches_hand_computation() -> None:
    # Two sequences of one token lose 1 and 3: the mean is 2, the residuals are ∓1, √(2 · 2/1) / 2 = 1. The quantile of
    # Student's t for two units is 12.706 instead of 1.960, and for eight 2.3646.
    assert ratio_standard_error(np.array([[1.0, 3.0]]), np.array([1, 1])) == pytest.approx([12.7062 / 1.959964])
    # Of 16 sequences 8 lose 1 and 8 lose 3, √(16 · 16/15) / 16; in turn, or in pairs, which are groups of sum ∓2,
    # √(8 · 4 · 8/7) / 16; and one sequence does not show its error.
    ones, student = np.ones(16, dtype=np.int64), 2.364624 / 1.959964
    in_turn, in_pairs = np.array([1.0, 3.0] * 8), np.array([1.0, 1.0, 3.0, 3.0] * 4)
    expected = [math.sqrt(16 * 16 / 15) / 16 * student, math.sqrt(32 * 8 / 7) / 16 * student]
    assert ratio_standard_error(np.stack([in_turn, in_pairs]), ones) == pytest.approx(expected)
    assert ratio_standard_error(np.array([3.0]), ones[:1]) == 0.0


def test_effective_number_of_units_by_hand() -> None:
    assert effective_number(np.array([3.0, 3.0, 3.0])) == pytest.approx(3)
    assert effective_number(np.array([100.0, 1.0, 1.0])) == pytest.approx(1.04, abs=0.01)


@pytest.mark.parametrize(("of_documents", "least", "most"), [(0.2, 0.88, 0.99), (0.0, 0.94, 1.0)])
def test_standard_error_holds_on_other_documents(of_documents: float, least: float, most: float) -> None:
    """Of 64 sequences some eight are of each document; if it counts, errors over sequences hold in three cases of four.

    In 200 texts the mean loss of all documents is 1. Where documents are alike, intervals are at most half too wide.
    """
    held, errors, means = [], [], []
    for seed in range(200):
        random = np.random.default_rng(seed)
        document = np.cumsum(random.random(64) < 1 / 8)
        factors = 1.0 + of_documents * random.standard_normal(65)
        n_tokens = random.integers(50, 64, 64)
        loss = n_tokens * (factors[document] + 0.5 * random.standard_normal(64))
        mean, error = float(loss.sum() / n_tokens.sum()), float(ratio_standard_error(loss, n_tokens))
        held.append(abs(mean - 1.0) <= Z_95 * error)
        errors.append(error)
        means.append(mean)
    assert least <= np.mean(held) <= most
    assert np.mean(errors) <= 1.5 * np.std(means)


def test_rank_grid_starts_at_0_and_is_denser_at_low_ranks() -> None:
    assert rank_grid(2000).tolist() == [0, 13, 55, 125, 222, 347, 500, 680, 888, 1125, 1388, 1680]
    assert rank_grid(3).tolist() == [0, 1, 2]
    assert rank_grid(0).tolist() == [0]


def test_prediction_in_nats_uses_measured_losses(bridge: Any, sae: Any, ids: Tensor, tmp_path: Path) -> None:
    floor = predict_floor(bridge, sae, ids, widths=[2, 8], steps=20)
    assert floor.unit == "nats"
    assert floor.tail is not None
    assert floor.simulation is not None
    stats = measure(bridge, sae, ids)
    assert floor.tail.sequences.tolist() == heldout_sequences(stats).tolist()
    additive = floor_from_stats(stats, [2, 8], steps=0)
    assert floor.additive.tolist() == additive.theorem.tolist()
    np.testing.assert_allclose(floor.theorem, floor.tail.loss_of_cost(additive.theorem))
    n_kept = [int(width * floor.capacity) for width in (2, 8)]
    assert set(n_kept) <= set(floor.tail.ranks.tolist())  # so Theorem 1's floors are measured, not interpolated
    np.testing.assert_allclose(floor.theorem, floor.tail.mean[np.searchsorted(floor.tail.ranks, n_kept)])
    np.testing.assert_allclose(floor.independent, floor.tail.loss_of_cost(additive.independent))
    np.testing.assert_allclose(floor.simulated, floor.simulation.kl[:, 0])
    assert any("do not add up" in warning for warning in additive.warnings)
    assert not any("do not add up" in warning for warning in floor.warnings)
    # The loss of each feature is a share of its cost.
    assert (floor.lost_share(2) <= 1.0 + 1e-6).all() or floor.simulation.floor[0, 0] > floor.stats.cost.sum()
    loaded = FloorPrediction.load(floor.save(tmp_path).parent)
    np.testing.assert_array_equal(loaded.tail.loss, floor.tail.loss)
    np.testing.assert_allclose(loaded.feature_floor, floor.feature_floor)
    assert loaded.floor_at(5) == pytest.approx(floor.floor_at(5))


def test_feature_floor_without_students_is_the_independent_floor(bridge: Any, sae: Any, ids: Tensor) -> None:
    floor = predict_floor(bridge, sae, ids, widths=[2, 8], steps=0, n_codes=0)
    assert floor.simulated is None
    assert floor.feature_floor.tolist() == floor.independent.tolist()
    assert (floor.sampling_interval[:, 0] < floor.feature_floor).all()
    assert (floor.sampling_interval[:, 1] > floor.feature_floor).all()


def test_rejects_damaged_tail_loss(tmp_path: Path) -> None:
    file = tail_loss_of([2.0, 1.0], [2.0, 1.0]).save(tmp_path)
    assert TailLoss.load(tmp_path).total == 2.0
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InputError, match="missing or not a complete tail-loss file"):
        TailLoss.load(file)
    with pytest.raises(ValueError, match="must rise from 0"):
        TailLoss(np.array([1]), np.array([1.0]), np.array([[1.0]]), np.array([1]), np.array([0]))
    with pytest.raises(ValueError, match="finite numbers of at least 0"):
        tail_loss_of([float("nan")], [1.0])


def test_loads_older_prediction_without_tail_loss(bridge: Any, sae: Any, ids: Tensor, tmp_path: Path) -> None:
    floor = predict_floor(bridge, sae, ids, widths=[2, 8], steps=0, cost="energy")
    file = floor.save(tmp_path)
    older = json.loads(file.read_text())
    del older["additive"], older["has_tail"]
    file.write_text(json.dumps(older))
    assert FloorPrediction.load(tmp_path).additive.tolist() == floor.theorem.tolist()


def test_measured_error_is_in_the_unit_of_the_floor(bridge: Any, sae: Any, ids: Tensor) -> None:
    """The error of students whose loss was not measured is scaled from summed costs like their floor, and the tail loss
    adds its own."""
    measured = predict_floor(bridge, sae, ids, widths=[2, 8], steps=20)
    unmeasured = floor_from_stats(measured.stats, [2, 8], steps=20, tail=measured.tail)
    assert unmeasured.simulation.kl is None
    scale = unmeasured.feature_floor / unmeasured.simulation.floor[:, 0]
    of_tail = [unmeasured.tail.relative_error(cost) for cost in unmeasured.simulation.floor[:, 0]]
    assert min(of_tail) > 0
    expected = np.hypot(unmeasured.simulation.standard_error * scale, unmeasured.feature_floor * of_tail)
    np.testing.assert_allclose(unmeasured.measured_error(), expected, rtol=1e-6)


def test_what_the_second_half_of_the_training_gains_is_subtracted_once_more(bridge: Any, sae: Any, ids: Tensor) -> None:
    """The gain is measured on one of each four held-out sequences; half of the loss is left at least."""
    floor = predict_floor(bridge, sae, ids, widths=[2, 8], steps=20, head=False)
    trained, _ = train_if_possible(floor.stats, np.array([2, 8]), steps=20)
    assert trained is not None
    job, sequences = prepare_job(bridge, [sae], ids), heldout_sequences(floor.stats, 0)
    longer, n_tokens = measure_restored_loss(job, trained.restore_functions(), sequences)
    shorter, _ = measure_restored_loss(job, trained.restore_functions(after_half=True), sequences[::4])
    reached = longer.sum(1) / n_tokens.sum()
    gain = (shorter - longer[:, ::4]).sum(1) / n_tokens[::4].sum()
    assert (gain > 0.01 * reached).all()
    np.testing.assert_allclose(floor.simulation.kl_reached[:, 0], reached, rtol=1e-4)
    np.testing.assert_allclose(floor.simulated, np.maximum(reached - gain, reached / 2), rtol=1e-3)


def test_total_cost_is_summed_and_total_loss_is_measured(bridge: Any, sae: Any, ids: Tensor) -> None:
    floor = predict_floor(bridge, sae, ids, widths=[2, 8], steps=20)
    assert floor.total_cost == pytest.approx(floor.stats.cost.sum())
    assert floor.total_loss == pytest.approx(floor.tail.total)


def test_warns_about_rounding_with_a_bf16_teacher(teacher_dir: Path, sae: Any, ids: Tensor) -> None:
    floor = predict_floor(str(teacher_dir), sae, ids, widths=[2], steps=0, dtype="bf16")
    assert any("half precision" in warning for warning in floor.warnings)


def test_rejects_bad_steps_before_measuring(bridge: Any, sae: Any, ids: Tensor) -> None:
    with pytest.raises(InputError, match="at least 2, or 0"):
        predict_floor(bridge, sae, ids * 10**6, steps=1)
