"""Losses measured in nats: against plain forward passes with a hook, and the curve between them."""

import json
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
from tl_distill_floor import FloorPrediction, InputError, floor_from_stats, measure, predict_floor
from tl_distill_floor.measuring.job import prepare_job
from tl_distill_floor.measuring.removal import _chosen, student_losses, tail_losses
from tl_distill_floor.predicting.simulation import held_out_sequences
from tl_distill_floor.results.tail_loss import TailLoss, rank_grid, ratio_standard_error

SOME = np.array([1, 4, 5, 30])


def kl_without(model: Any, sae: Any, ids: Tensor, dropped: Tensor) -> np.ndarray:
    """Summed KL (nats) of every sequence when features are removed from the tokens that count, by a plain hook."""
    counts = (ids != 0) & (torch.arange(CONTEXT) > 0)
    activation = activation_of(model, ids)
    codes = sae.encode(activation).detach() * counts[..., None]
    without = activation - codes[..., dropped] @ sae.W_dec[dropped].detach()
    p, q = (logits_with(model, ids, a).double().log_softmax(-1) for a in (activation, without))
    return (p.exp() * (p - q)).sum((1, 2)).numpy()


def test_a_tail_loss_is_the_kl_of_plain_forward_passes(bridge: Any, sae: Any, ids: Tensor) -> None:
    job = prepare_job(bridge, [sae], ids, batch_size=3)
    order = np.random.default_rng(0).permutation(FEATURES)
    ranks = np.array([0, 10, 60, FEATURES])
    found = tail_losses(job, order, ranks, np.linspace(3, 0, 4), SOME)
    for rank, loss in zip(ranks, found.loss, strict=True):
        expected = kl_without(bridge, sae, ids[SOME], torch.from_numpy(order[rank:].copy()))
        np.testing.assert_allclose(loss, expected, rtol=1e-3, atol=1e-4)
    assert found.n_tokens.tolist() == [int((ids[i, 1:] != 0).sum()) for i in SOME]
    assert found.loss[-1].max() == 0


def test_features_that_are_not_named_are_removed_with_the_last(bridge: Any, sae: Any, ids: Tensor) -> None:
    job = prepare_job(bridge, [sae], ids)
    order = np.arange(40)
    found = tail_losses(job, order, np.array([0, 40]), np.array([1.0, 0.0]), SOME)
    expected = kl_without(bridge, sae, ids[SOME], torch.arange(40, FEATURES))
    np.testing.assert_allclose(found.loss[1], expected, rtol=1e-3, atol=1e-4)


def test_students_are_judged_by_what_they_give_back(bridge: Any, sae: Any, ids: Tensor) -> None:
    job = prepare_job(bridge, [sae], ids, batch_size=3)
    students = [lambda codes: codes, torch.zeros_like, lambda codes: codes * (torch.arange(FEATURES) < 7)]
    loss, n_tokens = student_losses(job, students, SOME)
    assert loss[0].max() == 0
    for found, kept in zip(loss[1:], (0, 7), strict=True):
        expected = kl_without(bridge, sae, ids[SOME], torch.arange(kept, FEATURES))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert len(n_tokens) == len(SOME)


def test_only_the_chosen_sequences_are_read(bridge: Any, sae: Any, ids: Tensor) -> None:
    found = torch.cat(list(_chosen(prepare_job(bridge, [sae], ids, batch_size=3), SOME)))
    assert torch.equal(found, ids[SOME])
    with pytest.raises(InputError, match="give more text"):
        student_losses(prepare_job(bridge, [sae], ids), [torch.zeros_like], np.array([10**4]))


def made(loss: list[float], additive: list[float]) -> TailLoss:
    """One sequence of one token."""
    n = len(loss)
    return TailLoss(np.arange(n), np.array(additive), np.array(loss)[:, None], np.array([1]), np.array([0]))


def test_the_curve_goes_through_what_was_measured_and_keeps_its_ratio_below() -> None:
    tail = made([8.0, 3.0, 1.2, 0.0], [2.0, 1.0, 0.5, 0.0])
    assert tail.of_additive(np.array([2.0, 1.0, 0.5])) == pytest.approx([8.0, 3.0, 1.2])
    assert tail.of_additive(0.05) == pytest.approx(0.12)  # 1.2 ÷ 0.5 of it
    assert tail.of_additive(0.0) == 0
    assert tail.of_additive(5.0) == tail.total == 8.0
    assert made([0.0], [0.0]).of_additive(0.0) == made([0.0], [2.0]).of_additive(1.0) == 0
    # A power of the costs is a straight line of the logarithms, and met exactly.
    power = made([4.0, 1.0, 0.25], [4.0, 2.0, 1.0])
    assert power.of_additive(3.0) == pytest.approx(2.25)


@given(st.lists(st.tuples(st.floats(1e-6, 10), st.floats(1e-6, 10)), min_size=1, max_size=8))
@example([(1.0000000000000002e-06, 1.0), (1e-06, 1.0)])  # two costs, one logarithm
def test_more_cost_is_never_less_loss(pairs: list[tuple[float, float]]) -> None:
    costs, losses = (np.sort(np.array(values))[::-1] for values in zip(*pairs, strict=True))
    tail = made(losses.tolist(), costs.tolist())
    found = tail.of_additive(np.geomspace(1e-8, 20, 50))
    assert (np.diff(found) >= -1e-9 * found[1:]).all()
    assert (found <= tail.total * (1 + 1e-12)).all()


def test_the_standard_error_by_hand() -> None:
    # Two sequences of one token lose 1 and 3: the mean is 2, the residuals are ∓1, √(2 · 2/1) / 2 = 1.
    assert ratio_standard_error(np.array([[1.0, 3.0]]), np.array([1, 1])) == pytest.approx([1.0])


def test_ranks_begin_at_none_and_are_denser_at_the_top() -> None:
    assert rank_grid(2000).tolist() == [0, 13, 55, 125, 222, 347, 500, 680, 888, 1125, 1388, 1680]
    assert rank_grid(3).tolist() == [0, 1, 2]
    assert rank_grid(0).tolist() == [0]


def test_a_prediction_in_nats_is_made_of_measured_losses(bridge: Any, sae: Any, ids: Tensor, tmp_path: Path) -> None:
    floor = predict_floor(bridge, sae, ids, widths=[2, 8], steps=20)
    assert floor.unit == "nats"
    assert floor.tail is not None
    assert floor.simulation is not None
    stats = measure(bridge, sae, ids)
    assert floor.tail.sequences.tolist() == held_out_sequences(stats).tolist()
    plain = floor_from_stats(stats, [2, 8], steps=0)
    assert floor.additive.tolist() == plain.theorem.tolist()
    np.testing.assert_allclose(floor.theorem, floor.tail.of_additive(plain.theorem))
    held = [int(width * floor.capacity) for width in (2, 8)]
    assert set(held) <= set(floor.tail.ranks.tolist())  # so that Theorem 1's floors are measured, not interpolated
    places = np.searchsorted(floor.tail.ranks, held)
    np.testing.assert_allclose(floor.theorem, floor.tail.mean[places])
    np.testing.assert_allclose(floor.independent, floor.tail.of_additive(plain.independent))
    np.testing.assert_allclose(floor.simulated, floor.simulation.kl[:, 0])
    assert any("do not add up" in warning for warning in plain.warnings)
    assert not any("do not add up" in warning for warning in floor.warnings)
    # What is lost of each feature stays a share of its cost.
    assert (floor.lost_share(2) <= 1.0 + 1e-6).all() or floor.simulation.floor[0, 0] > floor.stats.cost.sum()
    again = FloorPrediction.load(floor.save(tmp_path).parent)
    np.testing.assert_array_equal(again.tail.loss, floor.tail.loss)
    np.testing.assert_allclose(again.expected, floor.expected)
    assert again.floor_at(5) == pytest.approx(floor.floor_at(5))


def test_without_students_the_tail_loss_sizes_what_is_expected(bridge: Any, sae: Any, ids: Tensor) -> None:
    floor = predict_floor(bridge, sae, ids, widths=[2, 8], steps=0, n_codes=0)
    assert floor.simulated is None
    assert floor.expected.tolist() == floor.independent.tolist()
    assert (floor.interval[:, 0] < floor.expected).all()
    assert (floor.interval[:, 1] > floor.expected).all()


def test_a_damaged_tail_loss_is_refused(tmp_path: Path) -> None:
    file = made([2.0, 1.0], [2.0, 1.0]).save(tmp_path)
    assert TailLoss.load(tmp_path).total == 2.0
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InputError, match="missing or not a complete tail-loss file"):
        TailLoss.load(file)
    with pytest.raises(ValueError, match="must rise from 0"):
        TailLoss(np.array([1]), np.array([1.0]), np.array([[1.0]]), np.array([1]), np.array([0]))
    with pytest.raises(ValueError, match="finite numbers of at least 0"):
        made([float("nan")], [1.0])


def test_an_older_prediction_without_a_tail_loss_is_read(bridge: Any, sae: Any, ids: Tensor, tmp_path: Path) -> None:
    floor = predict_floor(bridge, sae, ids, widths=[2, 8], steps=0, cost="energy")
    file = floor.save(tmp_path)
    older = json.loads(file.read_text())
    del older["additive"], older["has_tail"]
    file.write_text(json.dumps(older))
    assert FloorPrediction.load(tmp_path).additive.tolist() == floor.theorem.tolist()


def test_an_interval_is_in_the_unit_of_the_floor(bridge: Any, sae: Any, ids: Tensor) -> None:
    """Students that nobody judged: their error in summed costs is sized as their floor is."""
    whole = predict_floor(bridge, sae, ids, widths=[2, 8], steps=20)
    unjudged = floor_from_stats(whole.stats, [2, 8], steps=20, tail=whole.tail)
    assert unjudged.simulation.kl is None
    sizes = unjudged.expected / unjudged.simulation.floor[:, 0]
    np.testing.assert_allclose(unjudged.measured_error(), unjudged.simulation.standard_error * sizes, rtol=1e-6)


def test_shares_of_the_cost_are_of_the_summed_cost(bridge: Any, sae: Any, ids: Tensor) -> None:
    floor = predict_floor(bridge, sae, ids, widths=[2, 8], steps=20)
    assert floor.total_cost == pytest.approx(floor.stats.cost.sum())
    assert floor.total == pytest.approx(floor.tail.total)


def test_a_bf16_teacher_says_what_rounding_does(teacher_dir: Path, sae: Any, ids: Tensor) -> None:
    floor = predict_floor(str(teacher_dir), sae, ids, widths=[2], steps=0, dtype="bf16")
    assert any("half precision" in warning for warning in floor.warnings)


def test_bad_steps_are_refused_before_anything_is_measured(bridge: Any, sae: Any, ids: Tensor) -> None:
    with pytest.raises(InputError, match="at least 2, or 0"):
        predict_floor(bridge, sae, ids * 10**6, steps=1)
