"""Toy models of superposition, x̂ = ReLU(WᵀWx + b), on synthetic features that fire independently.

Sources: Elhage et al. 2022, "Toy Models of Superposition"; Sarkar and Deka 2026 (arXiv 2604.04037), who distil them. A
feature is active with probability p = 1 − α, and is then uniform on [0, 1]. The loss is Σ I_i (x_i − x̂_i)² with the
importances I. Predictors of floors are compared with the floors that training reaches here.

All widths and seeds train at once on the same inputs. Most inputs of sparse features are all zero. Only the others are
sampled, in proportion to their probability, and the loss of the zero input, Σ I_i ReLU(b_i)², is added exactly.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tl_distill_floor.annotations import ArrayLike, ProgressCallback, WidthsLike
from tl_distill_floor.errors import InputError, as_integer
from tl_distill_floor.predicting.progress import StepCounter
from tl_distill_floor.results.toy import ToyResult as ToyResult
from tl_distill_floor.sources.torch_state import neutral_torch_state
from tl_distill_floor.theory.capacity import Number

KEPT_NORM_SQ = 0.5
"""A feature is kept if ‖W_i‖² is above this."""
WARM_UP_SHARE = 0.05
"""Share of the steps in which the learning rate rises."""
INITIAL_SCALE = 0.08
"""Scale of the initial weights. Small weights keep features out of crowded directions that they would not leave."""
MAX_OUTPUTS_PER_PART = 2**21
"""Outputs, models × inputs × features, that are in memory at once in an evaluation."""


class ToyTask(NamedTuple):
    """Independent features, and how to sample the inputs on which at least one of them is active."""

    rate: Float[Tensor, " feature"]
    """Firing rate of each feature."""
    importance: Float[Tensor, " feature"]
    first: Float[Tensor, " feature"]
    """Cumulative distribution of the first active feature, given that one is active."""
    p_empty: float
    """Probability that no feature is active."""

    @classmethod
    def from_arrays(
        cls, rate: Float64[np.ndarray, " feature"], importance: Float64[np.ndarray, " feature"], device: str
    ) -> "ToyTask":
        """Build the task on a torch device from firing rates and importances."""
        none_before = np.concatenate([[1.0], np.cumprod(1.0 - rate)])
        first = np.cumsum(none_before[:-1] * rate)
        arrays = (rate, importance, first / first[-1])
        tensors = [torch.tensor(array, dtype=torch.float32, device=device) for array in arrays]
        return cls(tensors[0], tensors[1], tensors[2], float(none_before[-1]))

    def sample(self, n_inputs: int, generator: torch.Generator) -> Float[Tensor, "input feature"]:
        """Sample inputs with at least one active feature: the first by its probability, later ones by their rates."""
        n, device = len(self.rate), self.rate.device
        uniform = torch.rand(n_inputs, n, generator=generator, device=device)
        quantile, value = torch.rand(2, n_inputs, 1, generator=generator, device=device)
        first = torch.searchsorted(self.first, quantile).clamp_(max=n - 1)
        x = torch.where(uniform < self.rate, uniform / self.rate, 0.0)
        x.masked_fill_(torch.arange(n, device=device) <= first, 0.0)
        return x.scatter_(1, first, value)


class ToyTraining(NamedTuple):
    """How toy models are trained."""

    n_seeds: int
    """Models per width."""
    steps: int
    batch_size: int
    """Inputs per step."""
    learning_rate: float
    """Highest learning rate."""
    generator: torch.Generator
    """Source of the weights and inputs."""
    counter: StepCounter


class ToyModels(NamedTuple):
    """The toy models of one width, one per seed, as views of one flat tensor of all widths."""

    W: Float[Tensor, "seed width feature"]
    b: Float[Tensor, "seed 1 feature"]

    def hidden(self, xT: Float[Tensor, "feature input"]) -> Float[Tensor, "seed width input"]:
        """Compute the hidden states Wx."""
        n_seeds, width, n = self.W.shape
        return (self.W.reshape(n_seeds * width, n) @ xT).view(n_seeds, width, -1)

    def output(
        self, hidden: Float[Tensor, "seed width input"], out: Tensor | None = None
    ) -> Float[Tensor, "seed input feature"]:
        """Compute the outputs ReLU(Wᵀ hidden + b)."""
        return torch.baddbmm(self.b, hidden.transpose(1, 2), self.W, out=out).clamp_(min=0)

    def __call__(self, x: Float[Tensor, "input feature"]) -> Float[Tensor, "seed input feature"]:
        """Compute the outputs of all models."""
        return self.output(self.hidden(x.T))


@neutral_torch_state()
def train(
    n_features: int,
    alpha: ArrayLike | Number,
    widths: WidthsLike,
    *,
    importance: ArrayLike | None = None,
    n_seeds: int = 5,
    steps: int = 6000,
    batch_size: int = 256,
    learning_rate: float = 0.01,
    teacher_width: int | None = None,
    n_fresh: int = 65_536,
    seed: int = 0,
    device: str = "cpu",
    progress: ProgressCallback | None = None,
) -> ToyResult:
    """Train toy models of every width and measure the floors that they reach.

    Sources: Elhage et al. 2022, "Toy Models of Superposition"; Sarkar and Deka 2026 (arXiv 2604.04037), section 4.

    Args:
        n_features: number of features.
        alpha: sparsity, one number or [feature], inside (0, 1): the probability that a feature is inactive.
        widths: [width] hidden dimensions, integers of at least 1.
        importance: [feature] importances, at least 0; 1/i for the i-th feature if None.
        n_seeds: models per width, which differ in their initial weights.
        steps: training steps of Adam. The learning rate warms up and then falls to 0 as a cosine.
        batch_size: inputs per step, without inputs that are all zero.
        learning_rate: highest learning rate.
        teacher_width: if given, toy teachers of this width are trained first, one per seed, and the models are trained
            on the teachers' outputs instead of x.
        n_fresh: number of new inputs on which the floor is measured, without inputs that are all zero.
        seed: seed of weights and inputs. Equal seeds give equal results on the same device.
        device: torch device.
        progress: called at every hundredth step with the steps done and the total.

    Returns:
        ToyResult: `.floor` [width, seed] in importance-weighted squared error, `.kept` [width, seed].

    Raises:
        InputError: an argument is not valid.

    Example:
        >>> from tl_distill_floor import toy
        >>> toy.train(6, alpha=0.9, widths=[1, 2], n_seeds=2, steps=20, n_fresh=1000).floor.shape
        (2, 2)
    """
    sizes = [as_integer("a width", width, 1) for width in np.atleast_1d(np.asarray(widths)).tolist()]
    if not sizes:
        raise InputError("widths must be at least one integer above 0, got none")
    n_seeds, steps = as_integer("n_seeds", n_seeds, 1), as_integer("steps", steps, 1)
    batch_size, n_fresh = as_integer("batch_size", batch_size, 1), as_integer("n_fresh", n_fresh, 1)
    n_features = as_integer("n_features", n_features, 1)
    task = ToyTask.from_arrays(*_rates_and_importances(n_features, alpha, importance), device)
    generator = torch.Generator(device).manual_seed(seed)
    n_trainings = 1 if teacher_width is None else 2
    counter = StepCounter(progress, steps * n_trainings)
    training = ToyTraining(n_seeds, steps, batch_size, learning_rate, generator, counter)
    teacher = None
    if teacher_width is not None:
        (teacher,) = _train_models(task, [as_integer("teacher_width", teacher_width, 1)], training, None)
    models = _train_models(task, sizes, training, teacher)
    evaluations = [_evaluate(task, of_width, n_fresh, seed, teacher) for of_width in models]
    floors, errors, distances = zip(*evaluations, strict=True)
    rate, weight = task.rate.double().cpu().numpy(), task.importance.double().cpu().numpy()
    return ToyResult(
        widths=np.array(sizes),
        cost=weight * rate / 3.0,
        firing_rate=rate,
        floor=np.stack(floors),
        standard_error=np.stack(errors),
        kept=np.stack([(m.W.square().sum(1) > KEPT_NORM_SQ).sum(1).cpu().numpy() for m in models]),
        to_teacher=None if teacher is None else np.stack(distances),
    )


@torch.no_grad()
def _train_models(
    task: ToyTask, widths: list[int], training: ToyTraining, teacher: ToyModels | None
) -> list[ToyModels]:
    """Train the models of all widths and seeds together; return the models of each width."""
    n, device, n_seeds = len(task.rate), task.rate.device, training.n_seeds
    flat = torch.zeros(sum(n_seeds * (width + 1) * n for width in widths), device=device, requires_grad=True)
    flat.grad = torch.zeros_like(flat)
    models, gradients = (_views(tensor, widths, n_seeds, n) for tensor in (flat.data, flat.grad))
    for model, width in zip(models, widths, strict=True):
        noise = torch.randn(model.W.shape, generator=training.generator, device=device)
        model.W.copy_(noise * (INITIAL_SCALE / math.sqrt(width)))
    optimizer = torch.optim.Adam([flat], lr=training.learning_rate, eps=1e-12, fused=True)
    output = torch.empty(n_seeds, training.batch_size, n, device=device)
    # The target of the zero input is 0, or the teacher's output for it.
    empty_target = 0.0 if teacher is None else teacher.b.clamp(min=0)
    for step in range(training.steps):
        optimizer.param_groups[0]["lr"] = training.learning_rate * _schedule(step / training.steps)
        x = task.sample(training.batch_size, training.generator)
        target = x if teacher is None else teacher(x)
        for model, gradient in zip(models, gradients, strict=True):
            _write_gradient(task, model, gradient, x, target, output)
            empty = model.b.clamp(min=0)
            gradient.b.add_((empty - empty_target).mul_(model.b > 0) * task.importance, alpha=2.0 * task.p_empty)
        optimizer.step()
        training.counter.step()
    return models


def _write_gradient(
    task: ToyTask,
    model: ToyModels,
    gradient: ToyModels,
    x: Float[Tensor, "input feature"],
    target: Float[Tensor, "*seed input feature"],
    output: Float[Tensor, "seed input feature"],
) -> None:
    """Write the gradient of the loss on inputs that are not all zero, weighted by their probability.

    Args:
        task: the features.
        model: the models.
        gradient: the gradient is written here.
        x: inputs.
        target: targets of the outputs.
        output: a buffer for the outputs.
    """
    n_seeds, width, n = model.W.shape
    hidden = model.hidden(x.T)
    model.output(hidden, out=output)
    error = torch.sub(output, target).mul_(task.importance * (2.0 * (1.0 - task.p_empty) / len(x)))
    torch.ops.aten.threshold_backward.grad_input(error, output, 0, grad_input=error)  # the gradient of ReLU at 0 is 0
    hidden_gradient = torch.bmm(model.W, error.transpose(1, 2))
    torch.bmm(hidden, error, out=gradient.W)
    gradient.W.view(n_seeds * width, n).addmm_(hidden_gradient.view(n_seeds * width, -1), x)
    torch.sum(error, 1, keepdim=True, out=gradient.b)


@torch.no_grad()
def _evaluate(
    task: ToyTask, models: ToyModels, n_fresh: int, seed: int, teacher: ToyModels | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Measure the floor, its standard error and the distance to the teacher, each [seed].

    The inputs are the same for every width.
    """
    generator = torch.Generator(task.rate.device).manual_seed(seed + 1)
    n_seeds, _, n = models.W.shape
    inputs_per_part = max(1, MAX_OUTPUTS_PER_PART // (n_seeds * n))
    losses, distances = [], []
    for start in range(0, n_fresh, inputs_per_part):
        x = task.sample(min(inputs_per_part, n_fresh - start), generator)
        output = models(x)
        losses.append((output - x).square_().matmul(task.importance).double())
        if teacher is not None:
            distances.append((output - teacher(x)).square_().matmul(task.importance).double())
    empty_output = models.b[:, 0].clamp(min=0)
    loss = torch.cat(losses, 1)
    p_other = 1.0 - task.p_empty
    floor = p_other * loss.mean(1) + task.p_empty * empty_output.square().matmul(task.importance).double()
    error = p_other * loss.std(1, correction=0) / math.sqrt(n_fresh)
    if teacher is None:
        return floor.cpu().numpy(), error.cpu().numpy(), None
    empty_difference = (empty_output - teacher.b[:, 0].clamp(min=0)).square().matmul(task.importance).double()
    distance = p_other * torch.cat(distances, 1).mean(1) + task.p_empty * empty_difference
    return floor.cpu().numpy(), error.cpu().numpy(), distance.cpu().numpy()


def _views(flat: Tensor, widths: list[int], n_seeds: int, n: int) -> list[ToyModels]:
    """Return the models of each width as views of one flat tensor."""
    parts = torch.split(flat, [n_seeds * rows * n for width in widths for rows in (width, 1)])
    return [
        ToyModels(W.view(n_seeds, width, n), b.view(n_seeds, 1, n))
        for width, W, b in zip(widths, parts[::2], parts[1::2], strict=True)
    ]


def _schedule(done: float) -> float:
    """Return the share of the highest learning rate: a linear warm-up times a cosine that falls to 0."""
    return min(1.0, done / WARM_UP_SHARE + 1e-2) * 0.5 * (1.0 + math.cos(math.pi * done))


def _rates_and_importances(
    n: int, alpha: ArrayLike | Number, importance: ArrayLike | None
) -> tuple[Float64[np.ndarray, " feature"], Float64[np.ndarray, " feature"]]:
    """Return the firing rate and the importance of every feature, or raise an InputError."""
    sparsity = np.asarray(alpha, dtype=np.float64)
    if sparsity.ndim > 1 or sparsity.shape not in ((), (n,)):
        raise InputError(f"alpha must be one number or {n} numbers, one per feature, got shape {sparsity.shape}")
    inside = (sparsity > 0) & (sparsity < 1)
    if not inside.all():
        invalid = sparsity if sparsity.ndim == 0 else sparsity[~inside][0]
        raise InputError(f"alpha, the sparsity, must be inside (0, 1), such as 0.9, got {invalid}")
    weight = 1.0 / np.arange(1, n + 1) if importance is None else np.asarray(importance, dtype=np.float64)
    if weight.shape != (n,) or not np.isfinite(weight).all() or (weight < 0).any() or not weight.any():
        raise InputError(f"importance must be {n} finite numbers of at least 0, not all of them 0")
    return 1.0 - np.broadcast_to(sparsity, (n,)), weight
