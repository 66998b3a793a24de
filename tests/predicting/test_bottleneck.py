"""Tests of bottleneck students: gradients against autograd on dense codes, and floors that are known by hand."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torch.nn.functional import relu

from tests.helpers.records import stats_of
from tl_distill_floor import InputError, floor_from_stats
from tl_distill_floor.predicting import bottleneck, bottleneck_task, simulation
from tl_distill_floor.predicting.bottleneck import Bottleneck
from tl_distill_floor.predicting.bottleneck_task import BottleneckTask, CodesLoss
from tl_distill_floor.predicting.progress import StepCounter
from tl_distill_floor.predicting.sparse_batches import SparseBatch, TrainingBatch, training_batches
from tl_distill_floor.results.codes import Codes
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.simulation import Simulation
from tl_distill_floor.sources.torch_state import quiet_sparse

N, WIDTH = 6, 2


def some_codes(n_tokens: int, seed: int = 0) -> np.ndarray:
    """Return codes [token, 6], about a third of them not 0; the last feature never fires."""
    random = np.random.default_rng(seed)
    codes = random.uniform(0.5, 2.0, (n_tokens, N)) * (random.random((n_tokens, N)) < 0.35)
    codes[:, -1] = 0.0
    return codes.astype(np.float32)


def some_model() -> Bottleneck:
    """Return a random bottleneck."""
    generator = torch.Generator().manual_seed(0)
    return Bottleneck(torch.randn(N, WIDTH, generator=generator), torch.randn(N, generator=generator) / 4)


WEIGHT = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 1.0])


def dense_gradient(model: Bottleneck, codes: np.ndarray) -> Bottleneck:
    """Compute the gradient by autograd on dense codes."""
    W, b = (each.clone().requires_grad_() for each in model)
    x = torch.from_numpy(codes)
    ((relu(x @ W @ W.T + b) - x).square() @ WEIGHT).mean().backward()
    return Bottleneck(W.grad, b.grad)


def sparse_gradient(model: Bottleneck, codes: np.ndarray, n_inactive: int) -> Bottleneck:
    """Compute the gradient on sparse codes."""
    batch = SparseBatch.from_codes(Codes.from_dense(codes))
    with quiet_sparse():
        return bottleneck.loss_gradient(model, TrainingBatch.prepare(batch, WEIGHT, n_inactive))


@pytest.mark.parametrize("n_tokens", [1, 7, 40])
def test_gradient_with_all_inactive_entries_matches_autograd(n_tokens: int) -> None:
    codes, model = some_codes(n_tokens), some_model()
    for sparse, dense in zip(sparse_gradient(model, codes, n_tokens), dense_gradient(model, codes), strict=True):
        torch.testing.assert_close(sparse, dense)


@pytest.mark.parametrize("n_inactive", [1, 2, 3])
def test_mean_gradient_over_all_orders_of_the_tokens_matches_autograd(n_inactive: int) -> None:
    codes, model = some_codes(4, seed=3), some_model()
    orders = [sparse_gradient(model, codes[list(order)], n_inactive) for order in permutations(range(4))]
    for sparse, dense in zip(zip(*orders, strict=True), dense_gradient(model, codes), strict=True):
        torch.testing.assert_close(torch.stack(sparse).mean(0), dense)
    assert not torch.allclose(orders[0].W, orders[-1].W)  # a single order does not match


def test_gradient_with_products_in_half_precision_is_close() -> None:
    codes, model = some_codes(200), some_model()
    batch = SparseBatch.from_codes(Codes.from_dense(codes))
    with quiet_sparse():
        gradient = bottleneck.loss_gradient(model, TrainingBatch.prepare(batch, WEIGHT, 200, torch.bfloat16))
    for rounded, exact in zip(gradient, dense_gradient(model, codes), strict=True):
        assert float((rounded - exact).norm()) < 5e-3 * float(exact.norm())


def test_gradient_weights_tokens() -> None:
    # Three times the weight is the same as three copies of the token.
    codes, model = some_codes(4), some_model()
    batch = SparseBatch.from_codes(Codes.from_dense(codes))._replace(
        token_weight=torch.tensor([0.5, 1 / 6, 1 / 6, 1 / 6])
    )
    with quiet_sparse():
        gradient = bottleneck.loss_gradient(model, TrainingBatch.prepare(batch, WEIGHT, 4))
    expected = dense_gradient(model, codes[[0, 0, 0, 1, 2, 3]])
    torch.testing.assert_close(gradient.W, expected.W)
    torch.testing.assert_close(gradient.b, expected.b)


def test_costly_tokens_are_sampled_more_often_with_smaller_weights() -> None:
    """Over many batches all tokens have equal total weight; a token with half of the cost is in each batch."""
    codes = some_codes(40)
    codes[7] *= 20
    cost = (codes.astype(np.float64) ** 2).sum(1)
    assert cost[7] > 0.5 * cost.sum()
    batches = training_batches(Codes.from_dense(codes), cost, WEIGHT, 8, 0)
    total_weight = np.zeros(40)
    for _, batch in zip(range(2000), batches, strict=False):
        dense = torch.zeros(8, N)
        dense[batch.token, batch.codes.feature] = batch.codes.value
        tokens = [int(np.abs(codes - row).sum(1).argmin()) for row in dense.numpy()]
        np.add.at(total_weight, tokens, batch.codes.token_weight.numpy())
        assert tokens.count(7) >= 2
    filled = codes.any(1)  # tokens without active features are all equal
    assert total_weight[filled] / 2000 == pytest.approx(np.full(filled.sum(), 1 / 40), rel=0.2)


def test_a_few_huge_tokens_do_not_prevent_learning_the_others() -> None:
    """One token in 500 is 100 times as large; the features of all other tokens fit into the width."""
    codes = np.concatenate([exclusive(6000, 3, 4), np.zeros((6000, 2), dtype=np.float32)], axis=1)
    codes[::500, -2:] = 100.0
    stats = stats_with(codes)
    simulated = simulation.train_bottlenecks(stats, np.array([4]), steps=800, batch_size=128).simulation()
    assert simulated.lost_cost[0, :-2].sum() < 0.05 * stats.cost[:-2].sum()


def test_loss_matches_dense_codes() -> None:
    codes, model = some_codes(30), some_model()
    x = torch.from_numpy(codes)
    dense = (relu(x @ model.W @ model.W.T + model.b) - x).square() * WEIGHT
    torch.testing.assert_close(model.loss(SparseBatch.from_codes(Codes.from_dense(codes)), WEIGHT), dense)


def stats_with(codes: np.ndarray, sequence: np.ndarray | None = None, norm: np.ndarray | None = None) -> FeatureStats:
    """Return statistics with energy costs whose codes cover all of their tokens."""
    norm = np.ones(codes.shape[1]) if norm is None else norm
    fired, square = (codes > 0).sum(0), (codes.astype(np.float64) ** 2).sum(0)
    energy = square * norm**2
    halves = (np.array([len(codes) // 2, len(codes) - len(codes) // 2]), np.stack([fired // 2, fired - fired // 2]))
    return stats_of(
        None,
        blocks=(*halves, np.stack([energy / 2, energy / 2])),
        sum_act=codes.sum(0).astype(np.float64),
        sum_act_sq=square,
        sum_cost=energy,
        decoder_norm=norm,
        codes=Codes.from_dense(codes, sequence),
    )


def exclusive(n_tokens: int, n_groups: int, size: int, seed: int = 0) -> np.ndarray:
    """Return codes in which one group of features fires on each token, all with the same amplitude."""
    random = np.random.default_rng(seed)
    codes = np.zeros((n_tokens, n_groups * size), dtype=np.float32)
    group = random.integers(n_groups, size=n_tokens)
    for member in range(size):
        codes[np.arange(n_tokens), group * size + member] = 1.0
    return codes


def test_features_that_always_fire_together_need_one_dimension() -> None:
    # 3 groups of 4 features, one at a time: independent features would need 12 dimensions, these need 3, and 2 suffice
    # with three directions at 120° (w·w' = -1/2, which ReLU removes).
    stats = stats_with(exclusive(4000, 3, 4))
    simulated = simulation.train_bottlenecks(stats, np.array([1, 2, 3]), steps=600, batch_size=128).simulation()
    assert (simulated.floor[1:] < 0.01 * stats.cost.sum()).all()
    assert simulated.floor[0, 0] > 0.1 * stats.cost.sum()


@pytest.mark.slow
def test_independent_features_reach_the_water_filling_floor() -> None:
    random = np.random.default_rng(0)
    codes = (random.random((60_000, 24)) * (random.random((60_000, 24)) < 0.1)).astype(np.float32)
    codes *= np.arange(1, 25) ** -0.5
    floor = floor_from_stats(stats_with(codes), [2, 4, 8], steps=1500)
    assert floor.simulation is not None
    assert floor.structure_gain == pytest.approx(np.ones(3), abs=0.12)


def test_floor_does_not_depend_on_the_norms_of_the_decoder_rows() -> None:
    codes = some_codes(3000)
    norm = np.array([1.0, 2.0, 0.5, 1.0, 4.0, 1.0])
    widths = np.array([2])
    unscaled = simulation.train_bottlenecks(stats_with(codes), widths, steps=200, batch_size=128).simulation()
    scaled = simulation.train_bottlenecks(
        stats_with((codes / norm).astype(np.float32), norm=norm), widths, steps=200, batch_size=128
    ).simulation()
    assert scaled.floor == pytest.approx(unscaled.floor, rel=1e-3)
    assert unscaled.lost_cost.sum() == pytest.approx(unscaled.floor.sum())
    assert unscaled.lost_cost[0, -1] == 0  # it never fires


def test_equal_seeds_give_equal_results_and_other_seeds_do_not() -> None:
    stats = stats_with(some_codes(500))
    first, second, other = (
        simulation.train_bottlenecks(stats, np.array([1, 2]), steps=40, batch_size=64, seed=seed).simulation()
        for seed in (0, 0, 1)
    )
    assert first.floor.shape == (2, 1)
    assert first.floor.tolist() == second.floor.tolist()
    assert first.reached[0, 0] != other.reached[0, 0]


def test_shorter_training_matches_a_separate_training_of_half_the_steps() -> None:
    """The shorter training shares work with the longer one and with other widths, but not results."""
    codes = Codes.from_dense(some_codes(400))
    amplitude, counter = torch.ones(N), StepCounter(None, 1)
    cost = (codes.dense().astype(np.float64) ** 2 * WEIGHT.numpy()).sum(1)
    options = {"steps": 40, "batch_size": 64, "seed": 3}
    (_, (shorter, longer)) = bottleneck.train(codes, WEIGHT, amplitude, [1, 2], counter=counter, **options)
    for n, model in ((20, shorter), (40, longer)):
        student = bottleneck.BottleneckTrainer(2, WEIGHT, amplitude, 3, 1.0)
        batches = training_batches(codes, cost, WEIGHT, 64, 3, bottleneck.gradient_dtype(WEIGHT.device))
        with quiet_sparse():
            for step, batch in zip(range(n), batches, strict=False):
                student.step(batch, bottleneck._rate_share(step, n, 1.0))  # both warm up for one step
        torch.testing.assert_close(student.model.W, model.W)
        torch.testing.assert_close(student.model.b, model.b)


def test_students_trained_at_the_same_time_are_those_trained_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, n_threads, floors = Codes.from_dense(some_codes(400)), torch.get_num_threads(), []
    options = {"steps": 6, "batch_size": 64, "seed": 3}
    torch.set_num_threads(2)
    for most in (bottleneck.MAX_PARALLEL_WEIGHTS, 0):
        monkeypatch.setattr(bottleneck, "MAX_PARALLEL_WEIGHTS", most)
        counter = StepCounter(None, 1)
        floors.append(bottleneck.train(codes, WEIGHT, torch.ones(N), [1, 2, 3], counter=counter, **options))
    torch.set_num_threads(n_threads)
    for pairs in zip(*floors, strict=True):
        for parallel, one_by_one in zip(*pairs, strict=True):
            torch.testing.assert_close(parallel, one_by_one)


def codes_loss(lost: list[float], cost: list[float]) -> CodesLoss:
    """Return the loss of one feature on sequences of one token."""
    return CodesLoss(np.array([sum(lost)]), np.array(lost), np.array([sum(cost)]), np.array(cost))


def test_floor_is_between_half_of_the_longer_loss_and_the_shorter_loss() -> None:
    task = BottleneckTask.from_stats(stats_with(some_codes(60)), np.ones(N, dtype=bool), 0, "cpu")
    n = task.heldout.n_tokens
    model = Bottleneck(torch.zeros(N, 1), torch.zeros(N))

    def extrapolated(shorter: float, longer: float) -> float:
        costs = (np.ones(N), np.ones(n))
        losses = (CodesLoss(np.full(N, share), np.full(n, share), *costs) for share in (shorter, longer))
        return task._extrapolate((model, model), *losses).floor / task.total_cost

    assert extrapolated(0.5, 0.4) == pytest.approx(0.3)
    assert extrapolated(0.9, 0.4) == pytest.approx(0.2)
    assert extrapolated(0.4, 0.5) == pytest.approx(0.4)


def test_standard_error_by_hand() -> None:
    # Shares 0.2 and 0.4 of two sequences of cost 1: mean 0.3, residuals -0.1 and 0.1, √0.02 · √(2/1) / 2 = 0.1. The
    # quantile of Student's t for two units is 12.706 instead of 1.960.
    loss = codes_loss([0.2, 0.4], [1.0, 1.0])
    assert loss.standard_error(np.array([0, 1])) == pytest.approx(0.1 * 12.7062 / 1.959964)


def test_rare_features_have_a_common_lost_share() -> None:
    loss = CodesLoss(np.array([1.0, 0.0, 3.0]), np.ones(1), np.array([2.0, 4.0, 4.0]), np.ones(1))
    # The last two fired 7 and 3 times: (0 + 3) of (4 + 4).
    assert loss.lost_shares(np.array([8, 7, 3])).tolist() == [0.5, 0.375, 0.375]


def test_amplitude_is_the_root_mean_square_of_the_active_codes_times_the_norm() -> None:
    codes, norm = some_codes(60), np.array([1.0, 2.0, 0.5, 1.0, 4.0, 1.0])
    task = BottleneckTask.from_stats(stats_with(codes, norm=norm), np.ones(N, dtype=bool), 0, "cpu")
    active = [column[column > 0] for column in codes[:, :-1].T]
    expected = [np.sqrt(np.mean(values**2)) for values in active] * norm[:-1]
    assert task.amplitude.tolist() == pytest.approx([*expected, 0.0], rel=1e-5)  # the last never fires


def test_a_range_of_a_batch_is_the_batch_of_its_tokens() -> None:
    codes = some_codes(12)
    part = SparseBatch.from_codes(Codes.from_dense(codes)).select_range(5, 9)
    dense = torch.zeros(4, N)
    dense[part.token, part.feature.long()] = part.value
    assert dense.tolist() == codes[5:9].tolist()
    assert part.start_on_cpu.tolist() == part.row_start.tolist()
    assert (part.n_tokens, len(part.token_weight)) == (4, 4)


def test_heldout_sequences_are_complete_and_not_trained_on() -> None:
    sequence = np.repeat(np.arange(30), 20)
    task = BottleneckTask.from_stats(stats_with(some_codes(600), sequence), np.ones(N, dtype=bool), 0, "cpu")
    assert len(np.unique(task.heldout.sequence)) == 5  # a sixth
    assert not set(task.heldout.sequence) & set(task.training.sequence)
    assert task.heldout.n_tokens + task.training.n_tokens == 600


def test_features_below_min_count_are_left_out() -> None:
    stats = stats_with(some_codes(400))
    fired = stats.firing_count
    simulated = simulation.train_bottlenecks(stats, np.array([1]), steps=10, min_count=int(fired.max())).simulation()
    assert (simulated.lost_cost[0] > 0).tolist() == (fired == fired.max()).tolist()


@pytest.mark.parametrize("steps", [1, -3])
def test_rejects_invalid_steps(steps: int) -> None:
    with pytest.raises(InputError, match="steps must be at least 2, or 0"):
        floor_from_stats(stats_with(some_codes(100)), [1], steps=steps)


def test_widths_above_the_number_of_features_need_no_training() -> None:
    floor = floor_from_stats(stats_with(exclusive(400, 5, 1)), [5, 10], steps=10)
    assert floor.simulation is None
    assert floor.feature_floor.tolist() == [0, 0]


def test_codes_of_both_signs_are_not_simulated() -> None:
    codes = some_codes(200)
    codes[::2] *= -1
    floor = floor_from_stats(stats_with(codes), [1, 2], steps=10)
    assert floor.simulated is None
    assert any("some codes are negative" in warning for warning in floor.warnings)


def test_warns_if_the_cost_is_concentrated_in_few_sequences() -> None:
    codes = some_codes(300)
    codes[::50] *= 300
    floor = floor_from_stats(stats_with(codes), [1, 2], steps=10)
    assert any("concentrated in few sequences" in warning for warning in floor.warnings)


@pytest.mark.parametrize("seed", [1, 3, 5])
def test_loss_on_training_text_is_known_if_features_fire_on_few_tokens(seed: int) -> None:
    codes = np.zeros((120, 3), dtype=np.float32)
    codes[::15] = [1.0, 2.0, 0.5]
    simulated = simulation.train_bottlenecks(stats_with(codes), np.array([1]), steps=2, seed=seed).simulation()
    assert 0 < simulated.on_training_text[0, 0] < 5.25 * 8 / 120


def test_progress_counts_every_step() -> None:
    calls: list[tuple[int, int]] = []
    stats = stats_with(some_codes(200))
    simulation.train_bottlenecks(stats, np.array([1, 2]), steps=100, progress=lambda *done: calls.append(done))
    assert calls == [(100, 250), (200, 250), (250, 250)]  # two widths, 100 steps and the last 25 of half as many


def test_lowers_the_learning_rate_after_divergence_and_then_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = stats_with(some_codes(300))
    calls: list[tuple[float, list[int]]] = []

    def diverge(
        codes: object, weight: object, amplitude: object, widths: list[int], *, rate: float, **_: object
    ) -> list:
        calls.append((rate, widths))
        values = [float("nan") if rate > 0.5 and width == 2 else 0.0 for width in widths]
        return [(Bottleneck(torch.full((5, 2), value), torch.zeros(5)),) * 2 for value in values]

    monkeypatch.setattr(bottleneck_task, "train", diverge)
    simulated = simulation.train_bottlenecks(stats, np.array([1, 2, 3]), steps=10).simulation()
    assert calls == [(1.0, [1, 2, 3]), (0.3, [2])]  # only the width that diverged is trained again
    assert simulated.floor[1, 0] == pytest.approx(stats.cost.sum())  # an output of 0 loses every cost
    monkeypatch.setattr(bottleneck_task, "LEARNING_RATE_FACTORS", (1.0,))
    with pytest.raises(InputError, match="width 2 diverged"):
        simulation.train_bottlenecks(stats, np.array([2]), steps=10)


def test_warns_about_too_few_codes_and_predicts_without_them() -> None:
    one_sequence = stats_with(some_codes(50), np.zeros(50, dtype=np.int64))
    floor = floor_from_stats(one_sequence, [1, 2])
    assert floor.simulated is None
    assert any("nothing was simulated: codes of 50 tokens are too few" in warning for warning in floor.warnings)
    assert not any("simulated" in warning for warning in floor_from_stats(one_sequence, [1, 2], steps=0).warnings)
    with pytest.raises(InputError, match="no codes were kept"):
        simulation.train_bottlenecks(stats_of(np.ones(3)), np.array([1]), steps=10)


def test_warns_about_overfitted_students() -> None:
    overfitted = Simulation(
        np.array([1, 2]), *(np.array([[4.0], [2.0]]),) * 2, np.zeros(2), np.full((2, 4), [[1.0], [0.5]]),
        np.array([[3.9], [1.0]]), 100.0, steps=10,
    )  # fmt: skip
    floor = floor_from_stats(stats_of(np.full(4, 2.0)), [1, 2], simulation=overfitted)
    assert any("of width 2 lost less" in warning and "50% of" in warning for warning in floor.warnings)


def test_at_most_eight_widths_are_trained() -> None:
    stats = stats_with(exclusive(400, 20, 1))
    floor = floor_from_stats(stats, range(1, 31), steps=10)
    assert floor.simulation is not None
    assert floor.simulation.widths.tolist() == [1, 4, 6, 9, 11, 14, 16, 19]
    assert floor.simulated is not None
    assert floor.simulated[-1] == 0  # wider than the number of features
