"""The bottleneck on sparse codes: slopes against autograd on dense codes, and floors that are known by hand."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torch.nn.functional import relu

from tests.helpers.records import stats_of
from tl_distill_floor import InputError, floor_from_stats
from tl_distill_floor.measuring.sparse_rows import quiet_sparse
from tl_distill_floor.predicting import bottleneck, simulation
from tl_distill_floor.predicting.bottleneck import Batch, Bottleneck, Columns
from tl_distill_floor.predicting.toy import StepCounter
from tl_distill_floor.results.codes import Codes
from tl_distill_floor.results.simulation import Simulation

N, WIDTH = 6, 2


def some_codes(n_tokens: int, seed: int = 0) -> np.ndarray:
    """[token, 6], about a third of them not 0; the last feature never fires."""
    random = np.random.default_rng(seed)
    found = random.uniform(0.5, 2.0, (n_tokens, N)) * (random.random((n_tokens, N)) < 0.35)
    found[:, -1] = 0.0
    return found.astype(np.float32)


def some_model() -> Bottleneck:
    generator = torch.Generator().manual_seed(0)
    return Bottleneck(torch.randn(N, WIDTH, generator=generator), torch.randn(N, generator=generator) / 4)


WEIGHT = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 1.0])


def dense_slopes(model: Bottleneck, codes: np.ndarray) -> Bottleneck:
    """Autograd on dense codes."""
    W, b = (each.clone().requires_grad_() for each in model)
    x = torch.from_numpy(codes)
    ((relu(x @ W @ W.T + b) - x).square() @ WEIGHT).mean().backward()
    return Bottleneck(W.grad, b.grad)


def sparse_slopes(model: Bottleneck, codes: np.ndarray, n_inactive: int) -> Bottleneck:
    batch = Batch.of(Codes.from_dense(codes))
    with quiet_sparse():
        return bottleneck.slopes(model, batch, Columns.of(batch, N), WEIGHT, n_inactive)


@pytest.mark.parametrize("n_tokens", [1, 7, 40])
def test_with_every_inactive_entry_the_slopes_are_autograds(n_tokens: int) -> None:
    codes, model = some_codes(n_tokens), some_model()
    for found, expected in zip(sparse_slopes(model, codes, n_tokens), dense_slopes(model, codes), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("n_inactive", [1, 2, 3])
def test_over_all_orders_of_the_tokens_the_mean_slope_is_the_dense_one(n_inactive: int) -> None:
    codes, model = some_codes(4, seed=3), some_model()
    orders = [sparse_slopes(model, codes[list(order)], n_inactive) for order in permutations(range(4))]
    for found, expected in zip(zip(*orders, strict=True), dense_slopes(model, codes), strict=True):
        torch.testing.assert_close(torch.stack(found).mean(0), expected)
    assert not torch.allclose(orders[0].W, orders[-1].W)  # one order alone is not


def test_tokens_count_by_their_shares() -> None:
    # Three times the share is three times the token.
    codes, model = some_codes(4), some_model()
    batch = Batch.of(Codes.from_dense(codes))._replace(share=torch.tensor([0.5, 1 / 6, 1 / 6, 1 / 6]))
    with quiet_sparse():
        found = bottleneck.slopes(model, batch, Columns.of(batch, N), WEIGHT, 4)
    expected = dense_slopes(model, codes[[0, 0, 0, 1, 2, 3]])
    torch.testing.assert_close(found.W, expected.W)
    torch.testing.assert_close(found.b, expected.b)


def test_costly_tokens_are_drawn_more_often_and_count_for_less() -> None:
    """Over many batches every token counts as much as any other; one that costs half of all stands in each batch."""
    codes = some_codes(40)
    codes[7] *= 20
    cost = (codes.astype(np.float64) ** 2).sum(1)
    assert cost[7] > 0.5 * cost.sum()
    made = bottleneck._batches(Codes.from_dense(codes), cost, 8, 0, torch.device("cpu"))
    counted = np.zeros(40)
    for _, (batch, _) in zip(range(5000), made, strict=False):
        dense = torch.zeros(8, N)
        dense[batch.token, batch.feature] = batch.value
        places = [int(np.abs(codes - row).sum(1).argmin()) for row in dense.numpy()]
        np.add.at(counted, places, batch.share.numpy())
        assert places.count(7) >= 2
    filled = codes.any(1)  # the empty tokens cannot be told from each other
    assert counted[filled] / 5000 == pytest.approx(np.full(filled.sum(), 1 / 40), rel=0.15)


def test_a_few_huge_tokens_do_not_keep_the_others_from_being_learned() -> None:
    """One token in 500 is 100 times as large; without it the features of the others fit their width."""
    codes = np.concatenate([exclusive(6000, 3, 4), np.zeros((6000, 2), dtype=np.float32)], axis=1)
    codes[::500, -2:] = 100.0
    stats = stats_with(codes)
    found = simulation.simulate(stats, np.array([4]), steps=800, batch_size=128)
    assert found.lost_cost[0, :-2].sum() < 0.05 * stats.cost[:-2].sum()


def test_the_loss_is_the_dense_one() -> None:
    codes, model = some_codes(30), some_model()
    x = torch.from_numpy(codes)
    dense = (relu(x @ model.W @ model.W.T + model.b) - x).square() * WEIGHT
    torch.testing.assert_close(model.lost(Batch.of(Codes.from_dense(codes)), WEIGHT), dense)


def stats_with(codes: np.ndarray, sequence: np.ndarray | None = None, norm: np.ndarray | None = None) -> object:
    """Statistics by energy whose codes are all of their tokens."""
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
    """One group of features fires on a token, all of it and with one amplitude."""
    random = np.random.default_rng(seed)
    codes = np.zeros((n_tokens, n_groups * size), dtype=np.float32)
    group = random.integers(n_groups, size=n_tokens)
    for place in range(size):
        codes[np.arange(n_tokens), group * size + place] = 1.0
    return codes


def test_features_that_always_fire_together_need_one_direction() -> None:
    # 3 groups of 4 features, one at a time: independent features would need 12 dimensions, these need 3, and 2 suffice
    # with three directions at 120° (w·w' = -1/2, which ReLU removes).
    stats = stats_with(exclusive(4000, 3, 4))
    found = simulation.simulate(stats, np.array([1, 2, 3]), steps=600, batch_size=128)
    assert (found.floor[1:] < 0.01 * stats.cost.sum()).all()
    assert found.floor[0, 0] > 0.1 * stats.cost.sum()


def test_independent_features_reach_what_water_filling_says() -> None:
    random = np.random.default_rng(0)
    codes = (random.random((60_000, 24)) * (random.random((60_000, 24)) < 0.1)).astype(np.float32)
    codes *= np.arange(1, 25) ** -0.5
    floor = floor_from_stats(stats_with(codes), [2, 4, 8], steps=1500)
    assert floor.simulation is not None
    assert floor.structure_gain == pytest.approx(np.ones(3), abs=0.12)


def test_the_unit_is_that_of_the_costs_whatever_the_decoders_norms() -> None:
    codes = some_codes(3000)
    norm = np.array([1.0, 2.0, 0.5, 1.0, 4.0, 1.0])
    widths = np.array([2])
    one = simulation.simulate(stats_with(codes), widths, steps=200, batch_size=128)
    scaled = simulation.simulate(
        stats_with((codes / norm).astype(np.float32), norm=norm), widths, steps=200, batch_size=128
    )
    assert scaled.floor == pytest.approx(one.floor, rel=1e-3)
    assert one.lost_cost.sum() == pytest.approx(one.floor.sum())
    assert one.lost_cost[0, -1] == 0  # never fired


def test_one_seed_one_result_and_seeds_differ() -> None:
    stats = stats_with(some_codes(500))
    first, again = (simulation.simulate(stats, np.array([1, 2]), steps=40, n_seeds=2, batch_size=64) for _ in range(2))
    assert first.floor.tolist() == again.floor.tolist()
    assert first.floor.shape == (2, 2)
    assert first.reached[0, 0] != first.reached[0, 1]


def test_the_shorter_training_is_one_of_half_the_steps_by_itself() -> None:
    """What it shares with the longer one, and with other widths, is only the work."""
    codes = Codes.from_dense(some_codes(400))
    amplitude, report = torch.ones(N), StepCounter(None, 1)
    cost = (codes.dense().astype(np.float64) ** 2 * WEIGHT.numpy()).sum(1)
    options = {"steps": 40, "batch_size": 64, "seed": 3}
    (_, (shorter, longer)) = bottleneck.train(codes, WEIGHT, amplitude, [1, 2], report=report, **options)
    for n, found in ((20, shorter), (40, longer)):
        student = bottleneck.BottleneckTrainer(2, WEIGHT, amplitude, 3, 1.0)
        batches = bottleneck._batches(codes, cost, 64, 3, torch.device("cpu"))
        with torch.no_grad(), quiet_sparse():
            for step, batch in zip(range(n), batches, strict=False):
                student.step(*batch, bottleneck._share_of_rate(step, n, 1.0))  # the warm-up is of one step in both
        torch.testing.assert_close(student.model.W, found.W)
        torch.testing.assert_close(student.model.b, found.b)


def loss_of(lost: list[float], cost: list[float]) -> simulation.Loss:
    """One feature, one token a sequence."""
    return simulation.Loss(np.array([sum(lost)]), np.array(lost), np.array([sum(cost)]), np.array(cost))


def test_the_floor_is_at_least_half_of_what_was_reached_and_at_most_what_the_shorter_reached() -> None:
    task = simulation.BottleneckTask.of(stats_with(some_codes(60)), np.ones(N, dtype=bool), 0, "cpu")
    n = task.held_out.n_tokens
    model = Bottleneck(torch.zeros(N, 1), torch.zeros(N))

    def at_the_end(shorter: float, longer: float) -> float:
        alike = (np.ones(N), np.ones(n))
        losses = (simulation.Loss(np.full(N, share), np.full(n, share), *alike) for share in (shorter, longer))
        return task._at_the_end((model, model), *losses).floor / task.total

    assert at_the_end(0.5, 0.4) == pytest.approx(0.3)
    assert at_the_end(0.9, 0.4) == pytest.approx(0.2)
    assert at_the_end(0.4, 0.5) == pytest.approx(0.4)


def test_the_standard_error_by_hand() -> None:
    # Shares 0.2 and 0.4 of two sequences of cost 1: together 0.3, residuals -0.1 and 0.1, √0.02 · √(2/1) / 2 = 0.1.
    assert loss_of([0.2, 0.4], [1.0, 1.0]).standard_error(np.array([0, 1])) == pytest.approx(0.1)
    assert simulation.effective_number(np.array([3.0, 3.0, 3.0])) == pytest.approx(3)
    assert simulation.effective_number(np.array([100.0, 1.0, 1.0])) == pytest.approx(1.04, abs=0.01)


def test_features_that_fired_seldom_share_what_is_lost_of_them() -> None:
    loss = simulation.Loss(np.array([1.0, 0.0, 3.0]), np.ones(1), np.array([2.0, 4.0, 4.0]), np.ones(1))
    # The last two fired 7 and 3 times: (0 + 3) of (4 + 4).
    assert loss.shares(np.array([8, 7, 3])).tolist() == [0.5, 0.375, 0.375]


def test_held_out_sequences_are_whole_and_not_trained_on() -> None:
    sequence = np.repeat(np.arange(30), 20)
    task = simulation.BottleneckTask.of(stats_with(some_codes(600), sequence), np.ones(N, dtype=bool), 0, "cpu")
    assert len(np.unique(task.held_out.sequence)) == 5  # a sixth
    assert not set(task.held_out.sequence) & set(task.training.sequence)
    assert task.held_out.n_tokens + task.training.n_tokens == 600


def test_features_below_the_least_count_are_left_out() -> None:
    stats = stats_with(some_codes(400))
    fired = stats.firing_count
    found = simulation.simulate(stats, np.array([1]), steps=10, min_count=int(fired.max()))
    assert (found.lost_cost[0] > 0).tolist() == (fired == fired.max()).tolist()


@pytest.mark.parametrize("steps", [1, -3])
def test_steps_that_make_no_training_are_refused(steps: int) -> None:
    with pytest.raises(InputError, match="steps must be at least 2, or 0"):
        floor_from_stats(stats_with(some_codes(100)), [1], steps=steps)


def test_widths_above_the_number_of_features_need_no_training() -> None:
    floor = floor_from_stats(stats_with(exclusive(400, 5, 1)), [5, 10], steps=10)
    assert floor.simulation is None
    assert floor.expected.tolist() == [0, 0]


def test_codes_of_both_signs_are_not_simulated() -> None:
    codes = some_codes(200)
    codes[::2] *= -1
    floor = floor_from_stats(stats_with(codes), [1, 2], steps=10)
    assert floor.simulated is None
    assert any("some codes are negative" in warning for warning in floor.warnings)


def test_text_whose_cost_stands_in_one_sequence_is_called_so() -> None:
    codes = some_codes(300)
    codes[::50] *= 300
    floor = floor_from_stats(stats_with(codes), [1, 2], steps=10)
    assert any("stands in few sequences" in warning for warning in floor.warnings)


def test_progress_counts_every_step() -> None:
    seen: list[tuple[int, int]] = []
    stats = stats_with(some_codes(200))
    simulation.simulate(stats, np.array([1, 2]), steps=100, progress=lambda *done: seen.append(done))
    assert seen == [(100, 250), (200, 250), (250, 250)]  # two widths, 100 steps and the last 25 of half as many


def test_a_diverging_rate_is_lowered_and_then_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = stats_with(some_codes(300))
    tried: list[tuple[float, list[int]]] = []

    def wild(codes: object, weight: object, amplitude: object, widths: list[int], *, rate: float, **_: object) -> list:
        tried.append((rate, widths))
        wrong = [float("nan") if rate > 0.5 and width == 2 else 0.0 for width in widths]
        return [(Bottleneck(torch.full((5, 2), value), torch.zeros(5)),) * 2 for value in wrong]

    monkeypatch.setattr(simulation, "train", wild)
    found = simulation.simulate(stats, np.array([1, 2, 3]), steps=10)
    assert tried == [(1.0, [1, 2, 3]), (0.3, [2])]  # only the width that diverged is trained again
    assert found.floor[1, 0] == pytest.approx(stats.cost.sum())  # an output of 0 loses every cost
    monkeypatch.setattr(simulation, "RATES", (1.0,))
    with pytest.raises(InputError, match="width 2 diverged"):
        simulation.simulate(stats, np.array([2]), steps=10)


def test_too_few_codes_are_said_and_nothing_is_lost() -> None:
    one_sequence = stats_with(some_codes(50), np.zeros(50, dtype=np.int64))
    floor = floor_from_stats(one_sequence, [1, 2])
    assert floor.simulated is None
    assert any("nothing was simulated: codes of 50 tokens are too few" in warning for warning in floor.warnings)
    assert not any("simulated" in warning for warning in floor_from_stats(one_sequence, [1, 2], steps=0).warnings)
    with pytest.raises(InputError, match="no codes were kept"):
        simulation.simulate(stats_of(np.ones(3)), np.array([1]), steps=10)


def test_what_was_learned_by_heart_is_called_so() -> None:
    seen = Simulation(
        np.array([1, 2]), *(np.array([[4.0], [2.0]]),) * 2, np.zeros(2), np.full((2, 4), [[1.0], [0.5]]),
        np.array([[3.9], [1.0]]), 100.0, steps=10,
    )  # fmt: skip
    floor = floor_from_stats(stats_of(np.full(4, 2.0)), [1, 2], simulation=seen)
    assert any("of width 2 lost less" in warning and "50% of" in warning for warning in floor.warnings)


def test_at_most_eight_widths_are_trained() -> None:
    stats = stats_with(exclusive(400, 20, 1))
    floor = floor_from_stats(stats, range(1, 31), steps=10)
    assert floor.simulation is not None
    assert floor.simulation.widths.tolist() == [1, 4, 6, 9, 11, 14, 16, 19]
    assert floor.simulated is not None
    assert floor.simulated[-1] == 0  # wider than there are features
