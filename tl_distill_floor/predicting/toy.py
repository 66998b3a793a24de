"""The toy model of superposition: x̂ = ReLU(WᵀWx + b) on synthetic features that fire independently.

Elhage et al. 2022, "Toy Models of Superposition"; Sarkar and Deka 2026 (arXiv 2604.04037) distil it. A feature fires
with rate p = 1 − α and is then uniform on [0, 1]; the loss is Σ I_i (x_i − x̂_i)², I the importances. What training
reaches here, width by width, is what a predictor of floors is judged on.

All widths and seeds train at once on the same inputs. Most inputs of sparse features are all zero: only the others are
drawn, in proportion to their probability, and the loss of the zero input, Σ I_i ReLU(b_i)², is added exactly.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from tl_distill_floor.theory.capacity import Number

KEPT_NORM_SQ = 0.5
WARM_UP = 0.05
INITIAL_SCALE = 0.08
"""Starting small keeps features out of crowded directions that they would not leave again."""
EVALUATED_AT_ONCE = 2**21


@dataclass(frozen=True, eq=False)
class ToyResult:
    """Floors that toy models reached, in importance-weighted squared error per input."""

    widths: Int64[np.ndarray, " width"]
    cost: Float64[np.ndarray, " feature"]
    """I_i E[x_i²] = I_i p_i / 3: what Theorem 1 and `allocate` call the cost of a feature."""
    firing_rate: Float64[np.ndarray, " feature"]
    floor: Float64[np.ndarray, "width seed"]
    """Σ I_i (x_i − x̂_i)² on fresh inputs."""
    standard_error: Float64[np.ndarray, "width seed"]
    """Of `floor`, from the number of fresh inputs."""
    kept: Int64[np.ndarray, "width seed"]
    """Features with ‖W_i‖² > 0.5."""
    to_teacher: Float64[np.ndarray, "width seed"] | None = None
    """Σ I_i (x̂_i of the teacher − x̂_i)² on fresh inputs; None without a teacher."""


class ToyTask(NamedTuple):
    """Independent features, and how to draw the inputs on which at least one of them fires."""

    rate: Float[Tensor, " feature"]
    importance: Float[Tensor, " feature"]
    first: Float[Tensor, " feature"]
    """Cumulative probability that the first feature to fire is at most the i-th, given that one fires."""
    p_empty: float

    @classmethod
    def of(
        cls, rate: Float64[np.ndarray, " feature"], importance: Float64[np.ndarray, " feature"], device: str
    ) -> "ToyTask":
        none_before = np.concatenate([[1.0], np.cumprod(1.0 - rate)])
        first = np.cumsum(none_before[:-1] * rate)
        tensors = [torch.tensor(a, dtype=torch.float32, device=device) for a in (rate, importance, first / first[-1])]
        return cls(tensors[0], tensors[1], tensors[2], float(none_before[-1]))

    def draw(self, n_inputs: int, generator: torch.Generator) -> Float[Tensor, "input feature"]:
        """Inputs with at least one active feature: the first by its probability, those after it by their rates."""
        n, device = len(self.rate), self.rate.device
        uniform = torch.rand(n_inputs, n, generator=generator, device=device)
        place, value = torch.rand(2, n_inputs, 1, generator=generator, device=device)
        first = torch.searchsorted(self.first, place).clamp_(max=n - 1)
        x = torch.where(uniform < self.rate, uniform / self.rate, 0.0)
        x.masked_fill_(torch.arange(n, device=device) <= first, 0.0)
        return x.scatter_(1, first, value)


class Models(NamedTuple):
    """The toy models of one width, one a seed; views into one flat tensor of all widths."""

    W: Float[Tensor, "seed width feature"]
    b: Float[Tensor, "seed 1 feature"]

    def hidden(self, xT: Float[Tensor, "feature input"]) -> Float[Tensor, "seed width input"]:
        seeds, width, n = self.W.shape
        return (self.W.reshape(seeds * width, n) @ xT).view(seeds, width, -1)

    def output(
        self, hidden: Float[Tensor, "seed width input"], out: Tensor | None = None
    ) -> Float[Tensor, "seed input feature"]:
        return torch.baddbmm(self.b, hidden.transpose(1, 2), self.W, out=out).clamp_(min=0)

    def __call__(self, x: Float[Tensor, "input feature"]) -> Float[Tensor, "seed input feature"]:
        return self.output(self.hidden(x.T))


def train(
    n_features: int,
    alpha: Any,
    widths: Any,
    *,
    importance: Any = None,
    n_seeds: int = 5,
    steps: int = 6000,
    batch_size: int = 256,
    learning_rate: float = 0.01,
    teacher_width: int | None = None,
    n_fresh: int = 65_536,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> ToyResult:
    """Train toy models of every width and measure the floors that they reach.

    Args:
        n_features: features of the task.
        alpha: sparsity, one number or [feature], inside (0, 1): the probability that a feature is inactive.
        widths: [width] hidden dimensions, whole numbers of at least 1.
        importance: [feature], at least 0; 1/i for the i-th feature when left out.
        n_seeds: models a width, which differ in their initial weights.
        steps: of Adam, after a warm-up with a learning rate that falls to 0 as a cosine.
        batch_size: inputs a step, none of them all zero.
        learning_rate: the largest.
        teacher_width: train toy teachers of this width first, one a seed, and students on their outputs instead of x.
        n_fresh: fresh inputs, none all zero, on which the floor is measured.
        seed: of weights and inputs; the result is the same for the same seed on the same device.
        device: torch device.
        progress: called after every hundredth step with steps done and steps in all.

    Raises:
        ValueError: an argument that does not fit.
    """
    sizes = _whole("widths", np.atleast_1d(np.asarray(widths)))
    task = ToyTask.of(*_features(n_features, alpha, importance), device)
    counts = {"n_seeds": n_seeds, "steps": steps, "batch_size": batch_size, "n_fresh": n_fresh}
    for name, count in counts.items():
        _whole(name, np.array([count]))
    generator = torch.Generator(device).manual_seed(seed)
    passes = 1 if teacher_width is None else 2
    report = StepCounter(progress, steps * passes)
    teacher = None
    if teacher_width is not None:
        _whole("teacher_width", np.array([teacher_width]))
        (teacher,) = _fit(task, [teacher_width], n_seeds, steps, batch_size, learning_rate, generator, report, None)
    models = _fit(task, sizes.tolist(), n_seeds, steps, batch_size, learning_rate, generator, report, teacher)
    floors, errors, distances = zip(*(_evaluate(task, m, n_fresh, seed, teacher) for m in models), strict=True)
    rate, weight = task.rate.double().cpu().numpy(), task.importance.double().cpu().numpy()
    return ToyResult(
        widths=sizes,
        cost=weight * rate / 3.0,
        firing_rate=rate,
        floor=np.stack(floors),
        standard_error=np.stack(errors),
        kept=np.stack([(m.W.square().sum(1) > KEPT_NORM_SQ).sum(1).cpu().numpy() for m in models]),
        to_teacher=None if teacher is None else np.stack(distances),
    )


@torch.no_grad()
def _fit(
    task: ToyTask,
    widths: list[int],
    n_seeds: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    report: "StepCounter",
    teacher: Models | None,
) -> list[Models]:
    n, device = len(task.rate), task.rate.device
    flat = torch.zeros(sum(n_seeds * (width + 1) * n for width in widths), device=device, requires_grad=True)
    flat.grad = torch.zeros_like(flat)
    models, slopes = (_views(t, widths, n_seeds, n) for t in (flat.data, flat.grad))
    for model, width in zip(models, widths, strict=True):
        noise = torch.randn(model.W.shape, generator=generator, device=device)
        model.W.copy_(noise * (INITIAL_SCALE / math.sqrt(width)))
    optimizer = torch.optim.Adam([flat], lr=learning_rate, eps=1e-12, fused=True)
    output = torch.empty(n_seeds, batch_size, n, device=device)
    # What the empty input wants: nothing, or what the teacher makes of it.
    empty_target = 0.0 if teacher is None else teacher.b.clamp(min=0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * _schedule(step / steps)
        x = task.draw(batch_size, generator)
        target = x if teacher is None else teacher(x)
        for model, slope in zip(models, slopes, strict=True):
            _gradient(task, model, slope, x, target, output)
            empty = model.b.clamp(min=0)
            slope.b.add_((empty - empty_target).mul_(model.b > 0) * task.importance, alpha=2.0 * task.p_empty)
        optimizer.step()
        report.step()
    return models


def _gradient(
    task: ToyTask,
    model: Models,
    slope: Models,
    x: Float[Tensor, "input feature"],
    target: Float[Tensor, "*seed input feature"],
    output: Float[Tensor, "seed input feature"],
) -> None:
    """Write the gradient of the loss on inputs that are not empty, weighted with their probability, into `slope`."""
    seeds, width, n = model.W.shape
    hidden = model.hidden(x.T)
    model.output(hidden, out=output)
    error = torch.sub(output, target).mul_(task.importance * (2.0 * (1.0 - task.p_empty) / len(x)))
    torch.ops.aten.threshold_backward.grad_input(error, output, 0, grad_input=error)  # no slope where ReLU is at 0
    from_hidden = torch.bmm(model.W, error.transpose(1, 2))
    torch.bmm(hidden, error, out=slope.W)
    slope.W.view(seeds * width, n).addmm_(from_hidden.view(seeds * width, -1), x)
    torch.sum(error, 1, keepdim=True, out=slope.b)


@torch.no_grad()
def _evaluate(
    task: ToyTask, models: Models, n_fresh: int, seed: int, teacher: Models | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(floor, its standard error, distance to the teacher), each [seed], on the same fresh inputs for every width."""
    generator = torch.Generator(task.rate.device).manual_seed(seed + 1)
    n_seeds, _, n = models.W.shape
    at_once = max(1, EVALUATED_AT_ONCE // (n_seeds * n))
    losses, distances = [], []
    for start in range(0, n_fresh, at_once):
        x = task.draw(min(at_once, n_fresh - start), generator)
        output = models(x)
        losses.append((output - x).square_().matmul(task.importance).double())
        if teacher is not None:
            distances.append((output - teacher(x)).square_().matmul(task.importance).double())
    of_empty = models.b[:, 0].clamp(min=0)
    loss = torch.cat(losses, 1)
    p_other = 1.0 - task.p_empty
    floor = p_other * loss.mean(1) + task.p_empty * of_empty.square().matmul(task.importance).double()
    error = p_other * loss.std(1, correction=0) / math.sqrt(n_fresh)
    if teacher is None:
        return floor.cpu().numpy(), error.cpu().numpy(), None
    empty = (of_empty - teacher.b[:, 0].clamp(min=0)).square().matmul(task.importance).double()
    distance = p_other * torch.cat(distances, 1).mean(1) + task.p_empty * empty
    return floor.cpu().numpy(), error.cpu().numpy(), distance.cpu().numpy()


def _views(flat: Tensor, widths: list[int], n_seeds: int, n: int) -> list[Models]:
    parts = torch.split(flat, [n_seeds * rows * n for width in widths for rows in (width, 1)])
    return [
        Models(W.view(n_seeds, width, n), b.view(n_seeds, 1, n))
        for width, W, b in zip(widths, parts[::2], parts[1::2], strict=True)
    ]


def _schedule(done: float) -> float:
    """Share of the largest learning rate: a linear warm-up under a cosine that ends at 0."""
    return min(1.0, done / WARM_UP + 1e-2) * 0.5 * (1.0 + math.cos(math.pi * done))


class StepCounter:
    """Steps done, told to whoever listens."""

    def __init__(self, progress: Callable[[int, int], None] | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def step(self) -> None:
        self.done = min(self.done + 1, self.total)
        if self.progress and (self.done % 100 == 0 or self.done == self.total):
            self.progress(self.done, self.total)


def _features(
    n_features: Number, alpha: Any, importance: Any
) -> tuple[Float64[np.ndarray, " feature"], Float64[np.ndarray, " feature"]]:
    """(firing rate, importance) of every feature."""
    (n,) = _whole("n_features", np.array([n_features])).tolist()
    sparsity = np.asarray(alpha, dtype=np.float64)
    if sparsity.ndim > 1 or sparsity.shape not in ((), (n,)):
        raise ValueError(f"alpha must be one number or {n}, one a feature, got shape {sparsity.shape}")
    if not ((sparsity > 0) & (sparsity < 1)).all():
        wrong = sparsity if sparsity.ndim == 0 else sparsity[~((sparsity > 0) & (sparsity < 1))][0]
        raise ValueError(f"alpha, the sparsity, must lie inside (0, 1), got {wrong}")
    weight = 1.0 / np.arange(1, n + 1) if importance is None else np.asarray(importance, dtype=np.float64)
    if weight.shape != (n,) or not np.isfinite(weight).all() or (weight < 0).any() or not weight.any():
        raise ValueError(f"importance must be {n} finite numbers of at least 0, not all of them 0")
    return 1.0 - np.broadcast_to(sparsity, (n,)), weight


def _whole(name: str, values: np.ndarray) -> Int64[np.ndarray, " value"]:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or not numbers.size or not ((numbers >= 1) & (numbers == np.floor(numbers))).all():
        raise ValueError(f"{name} must be whole numbers of at least 1, got {np.asarray(values).tolist()}")
    return numbers.astype(np.int64)
