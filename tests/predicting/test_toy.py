"""Tests of the toy models: floors against plain dense training and values computed by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import relu

from tl_distill_floor import toy
from tl_distill_floor.predicting.toy import ToyModels, ToyTask, _evaluate
from tl_distill_floor.theory.bootstrap import Z_95

QUICK = {"steps": 800, "learning_rate": 0.02, "n_fresh": 16_384}


def test_samples_have_the_distribution_of_inputs_that_are_not_all_zero() -> None:
    rate = np.array([0.1, 0.4, 0.02, 0.2])
    task = toy.ToyTask.from_arrays(rate, np.ones(4), "cpu")
    x = task.sample(200_000, torch.Generator().manual_seed(0))
    # P(empty) = 0.9 · 0.6 · 0.98 · 0.8 = 0.42336; a feature then fires with p / (1 − P(empty)).
    assert task.p_empty == pytest.approx(0.42336)
    assert (x > 0).any(1).all()
    assert (x > 0).double().mean(0).numpy() == pytest.approx(rate / (1 - 0.42336), rel=0.03)
    assert x.square().sum(0).numpy() / (x > 0).sum(0).numpy() == pytest.approx(1 / 3, rel=0.05)
    together = ((x[:, 1] > 0) & (x[:, 3] > 0)).double().mean()
    assert together == pytest.approx(0.4 * 0.2 / (1 - 0.42336), rel=0.05)


def test_error_of_the_mean_floor_is_that_over_seeds_and_of_the_inputs() -> None:
    ones = np.ones(1)
    two_seeds = np.array([[1.0, 3.0]])  # standard deviation √2, of the mean 1
    kept = np.ones((1, 2), dtype=np.int64)
    result = toy.ToyResult(np.array([2]), ones, ones / 2, two_seeds, np.full((1, 2), 0.1), kept)
    assert result.error_of_mean == pytest.approx([math.hypot(1.0, 0.1)])
    one_seed = toy.ToyResult(np.array([2]), ones, ones / 2, two_seeds[:, :1], np.full((1, 1), 0.1), kept[:, :1])
    assert one_seed.error_of_mean == pytest.approx([0.1])


def test_error_of_the_mean_floor_holds_on_other_inputs() -> None:
    """Four equal models are measured on the same inputs: the spread over them is 0, and that of their mean is not."""
    task = ToyTask.from_arrays(np.full(4, 0.3), np.ones(4), "cpu")
    models = ToyModels(torch.full((4, 1, 4), 0.5), torch.full((4, 1, 4), -0.1))
    true, _, _ = _evaluate(task, models, 200_000, 1000, None)
    ones, held = np.ones(4), []
    for seed in range(100):
        floor, error, _ = _evaluate(task, models, 300, seed, None)
        result = toy.ToyResult(
            np.ones(1, dtype=np.int64), ones, ones / 2, floor[None], error[None], np.ones((1, 4), int)
        )
        held.append(abs(floor.mean() - true.mean()) <= Z_95 * result.error_of_mean[0])
    assert 0.88 <= np.mean(held) <= 0.99


def test_gradient_matches_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    task = toy.ToyTask.from_arrays(np.full(6, 0.2), np.arange(1.0, 7.0), "cpu")
    x = task.sample(32, generator)
    W, b = torch.randn(3, 2, 6, generator=generator), torch.randn(3, 1, 6, generator=generator) / 4
    gradient = toy.ToyModels(torch.empty_like(W), torch.empty_like(b))
    toy._write_gradient(task, toy.ToyModels(W, b), gradient, x, x, torch.empty(3, 32, 6))
    W.requires_grad_(), b.requires_grad_()
    output = relu(torch.einsum("bn,sdn,sdm->sbm", x, W, W) + b)
    loss = (1 - task.p_empty) * ((output - x).square() * task.importance).sum(2).mean(1).sum()
    loss.backward()
    torch.testing.assert_close(gradient.W, W.grad)
    torch.testing.assert_close(gradient.b, b.grad)


def test_one_dimension_per_feature_loses_nothing_and_fewer_lose_less_than_the_variance() -> None:
    # Var[x] = p/3 − (p/2)²: at p = 0.2 this is 0.0667 − 0.01 = 0.0567 a feature, the most a trained model can lose.
    result = toy.train(4, 0.8, [1, 4], importance=np.ones(4), n_seeds=2, **QUICK)
    assert (result.floor[1] < 1e-3).all()
    assert (result.floor[0] < 4 * 0.0567).all()
    assert result.kept[1].tolist() == [4, 4]
    assert result.cost.tolist() == pytest.approx([0.2 / 3] * 4)


def test_one_dimension_holds_an_antipodal_pair() -> None:
    # Two of three equal rare features share the dimension; the third is lost except for its mean: cost p/3 = 0.00667.
    result = toy.train(3, 0.98, [1], importance=np.ones(3), n_seeds=3, **QUICK)
    assert result.floor.min() == pytest.approx(0.02 / 3, rel=0.15)


@pytest.mark.slow
def test_matches_the_floor_of_plain_training() -> None:
    """The mean over seeds agrees within its standard errors with dense inputs, autograd and 20,000 steps of Adam."""
    n, alpha, width = 20, 0.9, 4
    importance = 1.0 / np.arange(1, n + 1)
    plain = plain_floors(n, alpha, width, importance, n_models=4)
    fast = toy.train(n, alpha, [width], n_seeds=4, steps=6000).floor[0]
    error = np.hypot(plain.std(ddof=1), fast.std(ddof=1)) / 2 + 0.01 * fast.mean()
    assert abs(plain.mean() - fast.mean()) < 3 * error


def plain_floors(n: int, alpha: float, width: int, importance: np.ndarray, n_models: int) -> np.ndarray:
    """Train toy models on dense inputs of their own with autograd, and return their floors."""
    torch.manual_seed(0)
    weight = torch.tensor(importance, dtype=torch.float32)
    W, b = (torch.randn(n_models, width, n) * 0.1).requires_grad_(), torch.zeros(n_models, 1, n, requires_grad=True)
    optimizer = torch.optim.Adam([W, b], lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20_000)

    def losses(n_inputs: int) -> torch.Tensor:
        x = torch.rand(n_models, n_inputs, n) * (torch.rand(n_models, n_inputs, n) > alpha)
        return ((relu(x @ W.mT @ W + b) - x).square() @ weight).mean(1)

    for _ in range(20_000):
        optimizer.zero_grad()
        losses(512).sum().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return losses(500_000).numpy()


def test_evaluation_matches_plain_inputs() -> None:
    """The stratified evaluation of random models matches plain inputs, which include inputs that are all zero."""
    generator = torch.Generator().manual_seed(1)
    task = toy.ToyTask.from_arrays(np.full(5, 0.1), np.ones(5), "cpu")
    models = toy.ToyModels(torch.randn(2, 2, 5, generator=generator), torch.randn(2, 1, 5, generator=generator) / 4)
    floor, error, _ = _evaluate(task, models, 100_000, 0, None)
    x = torch.rand(400_000, 5, generator=generator) * (torch.rand(400_000, 5, generator=generator) < 0.1)
    plain = (models(x) - x).square().sum(2).mean(1).numpy()
    assert floor == pytest.approx(plain, rel=0.02)
    assert (error > 0).all()


def test_students_approach_their_teacher() -> None:
    result = toy.train(8, 0.9, [2, 4], n_seeds=2, teacher_width=4, **QUICK)
    assert result.to_teacher is not None
    assert (result.to_teacher[1] < result.to_teacher[0]).all()
    assert (result.to_teacher[1] < 0.2 * result.floor[1] + 2e-3).all()


def test_equal_seeds_give_equal_floors() -> None:
    first, second, other = (toy.train(6, 0.9, [2], n_seeds=2, steps=50, seed=s).floor for s in (3, 3, 4))
    assert first.tolist() == second.tolist() != other.tolist()


def test_result_can_be_saved_and_is_short_as_text(tmp_path: Path) -> None:
    result = toy.train(6, 0.9, [1, 2], n_seeds=2, steps=20, n_fresh=1000)
    loaded = toy.ToyResult.load(result.save(tmp_path))
    assert loaded.to_teacher is None
    for name in ("widths", "cost", "firing_rate", "floor", "standard_error", "kept"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(result, name))
    assert repr(result).startswith("ToyResult(6 features, widths 1 to 2, 2 seeds, floors ")


def test_each_feature_has_its_own_rate() -> None:
    alpha = [0.5, 0.9, 0.99, 0.999]
    result = toy.train(4, alpha, [1, 2], importance=[1, 2, 3, 4], n_seeds=1, **QUICK)
    assert result.firing_rate.tolist() == pytest.approx([0.5, 0.1, 0.01, 0.001], rel=1e-5)
    assert result.cost.tolist() == pytest.approx(np.array([1, 2, 3, 4]) * [0.5, 0.1, 0.01, 0.001] / 3, rel=1e-5)
    assert result.floor[1, 0] < result.floor[0, 0] < result.cost.sum()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.0}, r"inside \(0, 1\), such as 0.9, got 1.0"),
        ({"alpha": [0.9, 0.8]}, "one number or 3"),
        ({"widths": [0]}, "a width must be at least 1, got 0"),
        ({"widths": [1.5]}, r"a width must be an integer, got 1\.5"),
        ({"widths": []}, "widths must be at least one integer"),
        ({"widths": [math.inf]}, "a width must be an integer, got inf"),
        ({"importance": [1, 2]}, "importance must be 3 finite numbers"),
        ({"importance": [1, -2, 3]}, "importance"),
        ({"n_features": 0}, "n_features must be at least 1, got 0"),
        ({"steps": 0}, "steps"),
    ],
)
def test_rejects_invalid_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy.train(**({"n_features": 3, "alpha": 0.9, "widths": [1]} | arguments))
