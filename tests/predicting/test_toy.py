"""The toy model: floors against plain dense training and cases worked by hand."""

import numpy as np
import pytest
import torch
from torch.nn.functional import relu

from tl_distill_floor import toy

QUICK = {"steps": 800, "learning_rate": 0.02, "n_fresh": 16_384}


def test_inputs_are_drawn_as_they_would_be_with_the_empty_ones_left_out() -> None:
    rate = np.array([0.1, 0.4, 0.02, 0.2])
    task = toy.ToyTask.of(rate, np.ones(4), "cpu")
    x = task.draw(200_000, torch.Generator().manual_seed(0))
    # P(empty) = 0.9 · 0.6 · 0.98 · 0.8 = 0.42336; a feature then fires with p / (1 − P(empty)).
    assert task.p_empty == pytest.approx(0.42336)
    assert (x > 0).any(1).all()
    assert (x > 0).double().mean(0).numpy() == pytest.approx(rate / (1 - 0.42336), rel=0.03)
    assert x.square().sum(0).numpy() / (x > 0).sum(0).numpy() == pytest.approx(1 / 3, rel=0.05)
    together = ((x[:, 1] > 0) & (x[:, 3] > 0)).double().mean()
    assert together == pytest.approx(0.4 * 0.2 / (1 - 0.42336), rel=0.05)


def test_the_gradient_is_autograds() -> None:
    generator = torch.Generator().manual_seed(0)
    task = toy.ToyTask.of(np.full(6, 0.2), np.arange(1.0, 7.0), "cpu")
    x = task.draw(32, generator)
    W, b = torch.randn(3, 2, 6, generator=generator), torch.randn(3, 1, 6, generator=generator) / 4
    slope = toy.Models(torch.empty_like(W), torch.empty_like(b))
    toy._gradient(task, toy.Models(W, b), slope, x, x, torch.empty(3, 32, 6))
    W.requires_grad_(), b.requires_grad_()
    output = relu(torch.einsum("bn,sdn,sdm->sbm", x, W, W) + b)
    loss = (1 - task.p_empty) * ((output - x).square() * task.importance).sum(2).mean(1).sum()
    loss.backward()
    torch.testing.assert_close(slope.W, W.grad)
    torch.testing.assert_close(slope.b, b.grad)


def test_as_many_dimensions_as_features_lose_nothing_and_none_lose_the_variance() -> None:
    # Var[x] = p/3 − (p/2)²: at p = 0.2 this is 0.0667 − 0.01 = 0.0567 a feature, the most a trained model can lose.
    result = toy.train(4, 0.8, [1, 4], importance=np.ones(4), n_seeds=2, **QUICK)
    assert (result.floor[1] < 1e-3).all()
    assert (result.floor[0] < 4 * 0.0567).all()
    assert result.kept[1].tolist() == [4, 4]
    assert result.cost.tolist() == pytest.approx([0.2 / 3] * 4)


def test_one_dimension_holds_an_antipodal_pair() -> None:
    # Of three equal rare features two share the dimension; the third is lost, but for its mean: p/3 = 0.00667 of cost.
    result = toy.train(3, 0.98, [1], importance=np.ones(3), n_seeds=3, **QUICK)
    assert result.floor.min() == pytest.approx(0.02 / 3, rel=0.15)


@pytest.mark.slow
def test_the_fast_way_reaches_the_floor_of_plain_training() -> None:
    """Dense inputs, autograd, Adam at 1e-3 for 20,000 steps: the mean over seeds agrees within its standard errors."""
    n, alpha, width = 20, 0.9, 4
    importance = 1.0 / np.arange(1, n + 1)
    plain = np.array([_plain(n, alpha, width, importance, seed) for seed in range(4)])
    fast = toy.train(n, alpha, [width], n_seeds=4, steps=6000).floor[0]
    error = np.hypot(plain.std(ddof=1), fast.std(ddof=1)) / 2 + 0.01 * fast.mean()
    assert abs(plain.mean() - fast.mean()) < 3 * error


def _plain(n: int, alpha: float, width: int, importance: np.ndarray, seed: int) -> float:
    torch.manual_seed(seed)
    weight = torch.tensor(importance, dtype=torch.float32)
    W, b = (torch.randn(width, n) * 0.1).requires_grad_(), torch.zeros(n, requires_grad=True)
    optimizer = torch.optim.Adam([W, b], lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20_000)
    draw = lambda size: torch.rand(size, n) * (torch.rand(size, n) > alpha)  # noqa: E731
    for _ in range(20_000):
        x = draw(512)
        loss = ((relu(x @ W.T @ W + b) - x).square() @ weight).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        x = draw(500_000)
        return ((relu(x @ W.T @ W + b) - x).square() @ weight).mean().item()


def test_floors_are_the_models_loss_on_the_task() -> None:
    """The stratified evaluation against plain inputs, empty ones included, on a model that was hardly trained."""
    generator = torch.Generator().manual_seed(1)
    task = toy.ToyTask.of(np.full(5, 0.1), np.ones(5), "cpu")
    models = toy.Models(torch.randn(2, 2, 5, generator=generator), torch.randn(2, 1, 5, generator=generator) / 4)
    floor, error, _ = toy._evaluate(task, models, 100_000, 0, None)
    x = torch.rand(400_000, 5, generator=generator) * (torch.rand(400_000, 5, generator=generator) < 0.1)
    plain = (models(x) - x).square().sum(2).mean(1).numpy()
    assert floor == pytest.approx(plain, rel=0.02)
    assert (error > 0).all()


def test_a_student_of_a_teacher() -> None:
    result = toy.train(8, 0.9, [2, 4], n_seeds=2, teacher_width=4, **QUICK)
    assert result.to_teacher is not None
    assert (result.to_teacher[1] < result.to_teacher[0]).all()
    assert (result.to_teacher[1] < 0.2 * result.floor[1] + 2e-3).all()


def test_the_same_seed_gives_the_same_floors() -> None:
    first, again, other = (toy.train(6, 0.9, [2], n_seeds=2, steps=50, seed=s).floor for s in (3, 3, 4))
    assert first.tolist() == again.tolist() != other.tolist()


def test_rates_one_by_one() -> None:
    alpha = [0.5, 0.9, 0.99, 0.999]
    result = toy.train(4, alpha, [1, 2], importance=[1, 2, 3, 4], n_seeds=1, **QUICK)
    assert result.firing_rate.tolist() == pytest.approx([0.5, 0.1, 0.01, 0.001], rel=1e-5)
    assert result.cost.tolist() == pytest.approx(np.array([1, 2, 3, 4]) * [0.5, 0.1, 0.01, 0.001] / 3, rel=1e-5)
    assert result.floor[1, 0] < result.floor[0, 0] < result.cost.sum()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"alpha": 1.0}, r"inside \(0, 1\), got 1.0"),
        ({"alpha": [0.9, 0.8]}, "one number or 3"),
        ({"widths": [0]}, r"widths must be whole numbers of at least 1, got \[0\]"),
        ({"widths": [1.5]}, "widths must be whole numbers"),
        ({"importance": [1, 2]}, "importance must be 3 finite numbers"),
        ({"importance": [1, -2, 3]}, "importance"),
        ({"n_features": 0}, "n_features must be whole numbers"),
        ({"steps": 0}, "steps"),
    ],
)
def test_refuses(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        toy.train(**({"n_features": 3, "alpha": 0.9, "widths": [1]} | arguments))
