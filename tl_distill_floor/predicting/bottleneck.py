"""Train bottleneck students x̂ = ReLU(WᵀWx + b) on the codes of an SAE.

A bottleneck student of width d is the toy model of superposition (Elhage et al. 2022) on real features. Its loss on
held-out codes is what d dimensions can hold of these features, with their firing rates, amplitudes and co-activation.
x is the activation times the norm of the feature's decoder row, so that the scale of the features does not depend on
the SAE.

Codes stay sparse. The encoder reads only the rows of W whose features are active, and so does the decoder for active
features. For inactive features the loss is w · ReLU(z)², which needs z of every feature. This part is computed with all
features, on the first tokens of each batch, whose order is random. It is unbiased, and at equal cost less noisy than a
sample of features on all tokens, with which each row of W would see its interference only now and then. Tokens are
sampled by importance, in proportion to their cost.
"""

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import embedding_bag

from tl_distill_floor.predicting.processor import product_dtype, threads_for
from tl_distill_floor.predicting.progress import StepCounter
from tl_distill_floor.predicting.sparse_batches import SparseBatch, TrainingBatch, training_batches
from tl_distill_floor.predicting.toy import INITIAL_SCALE
from tl_distill_floor.results.codes import Codes
from tl_distill_floor.sources.torch_state import quiet_sparse

W_LEARNING_RATE, BIAS_LEARNING_RATE = 0.05, 0.03
"""Learning rate of W, times width^-½, and of the biases, in units of a feature's amplitude."""
BETAS = (0.8, 0.95)
"""Adam's averaging of the gradient and of its square."""
WARM_UP_SHARE, CONSTANT_SHARE = 0.05, 0.5
"""Share of the shorter training in which the learning rate rises, and share of each training before it falls."""
MAX_PARALLEL_WEIGHTS = 2**22
"""Weights of the widest student up to which several students are trained at the same time. All threads share the work
on a larger one, whose gradients take more memory."""


class Bottleneck(NamedTuple):
    """The parameters of x̂ = ReLU(WᵀWx + b), or a gradient with respect to them."""

    W: Float[Tensor, "feature width"]
    b: Float[Tensor, " feature"]

    def hidden(self, codes: SparseBatch, value: Float[Tensor, " entry"] | None = None) -> Float[Tensor, "token width"]:
        """Compute Σ value · W_i over the entries of each token. Only the rows of W in the codes are read.

        Args:
            codes: the codes.
            value: values of the entries; those of the codes if None.
        """
        weights = codes.value if value is None else value
        return embedding_bag(codes.feature, self.W, codes.row_start[:-1], mode="sum", per_sample_weights=weights)

    def output(self, hidden: Float[Tensor, "token width"]) -> Float[Tensor, "token feature"]:
        """Compute the output of every feature from the hidden state."""
        return (hidden @ self.W.T).add_(self.b).relu_()

    def loss(self, codes: SparseBatch, weight: Float[Tensor, " feature"]) -> Float[Tensor, "token feature"]:
        """Compute w_i (x̂_i − x_i)² of every token and feature."""
        error = self.output(self.hidden(codes))
        error[codes.token, codes.feature] -= codes.value
        return error.square_().mul_(weight)


@torch.no_grad()
def loss_gradient(model: Bottleneck, batch: TrainingBatch) -> Bottleneck:
    """Estimate the gradient of the weighted mean loss per token with respect to W and b.

    Active features count on every token. Inactive features count on the first tokens of the batch, scaled up to all
    tokens. The mean over all orders of the tokens is the exact gradient.

    Args:
        model: the bottleneck student.
        batch: the batch.
    """
    codes, scale = batch.codes, batch.inactive_scale
    n_decoded, dtype = len(scale), scale.dtype
    hidden = model.hidden(codes)
    pattern = torch.sparse_csr_tensor(codes.row_start, codes.feature, codes.value, (codes.n_tokens, len(model.b)))
    z = torch.sparse.sampled_addmm(pattern, hidden, model.W.T, beta=0.0).values() + model.b[codes.feature]
    error = (z.relu() - codes.value).mul_(batch.entry_scale).mul_(z > 0)

    decoded = Bottleneck(model.W.to(dtype), model.b.to(dtype))
    decoded_hidden = hidden[:n_decoded].to(dtype)
    inactive = decoded.output(decoded_hidden).mul_(scale)

    hidden_gradient = model.hidden(codes, error)
    hidden_gradient[:n_decoded] += inactive @ decoded.W
    # W is in the decoder and in the encoder.
    W_gradient = batch.by_feature.weighted_sum(hidden, error)
    W_gradient += inactive.T @ decoded_hidden
    W_gradient += batch.by_feature.weighted_sum(hidden_gradient)
    return Bottleneck(W_gradient, inactive.sum(0, dtype=torch.float32).index_add_(0, codes.feature, error))


class BottleneckTrainer:
    """A bottleneck student in training with Adam, from small random weights."""

    def __init__(
        self,
        width: int,
        weight: Float[Tensor, " feature"],
        amplitude: Float[Tensor, " feature"],
        seed: int,
        rate: float,
    ) -> None:
        noise = torch.randn(len(weight), width, generator=torch.Generator().manual_seed(seed))
        self.W = (noise * (INITIAL_SCALE / math.sqrt(width))).to(weight.device).requires_grad_()
        self.scaled_b = torch.zeros_like(amplitude).requires_grad_()
        self.weight, self.amplitude = weight, amplitude
        peaks = ((self.W, rate * W_LEARNING_RATE / math.sqrt(width)), (self.scaled_b, rate * BIAS_LEARNING_RATE))
        groups = [{"params": [parameter], "peak": peak} for parameter, peak in peaks]
        self.optimizer = torch.optim.Adam(groups, betas=BETAS, eps=1e-12, fused=True)

    @property
    def model(self) -> Bottleneck:
        """The student with its current parameters."""
        return Bottleneck(self.W.detach(), self.scaled_b.detach() * self.amplitude)

    @torch.no_grad()
    def step(self, batch: TrainingBatch, rate_share: float) -> None:
        """Train on one batch with a share of the highest learning rate."""
        gradient = loss_gradient(self.model, batch)
        self.W.grad, self.scaled_b.grad = gradient.W, gradient.b * self.amplitude
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate_share
        self.optimizer.step()

    def copy(self) -> "BottleneckTrainer":
        """Return a trainer that continues from here; constant tensors are shared."""
        shared: dict[int, object] = {id(tensor): tensor for tensor in (self.weight, self.amplitude)}
        return copy.deepcopy(self, shared)


def train(
    codes: Codes,
    weight: Float[Tensor, " feature"],
    amplitude: Float[Tensor, " feature"],
    widths: Sequence[int],
    *,
    steps: int,
    batch_size: int,
    seed: int,
    counter: StepCounter,
    rate: float = 1.0,
) -> list[tuple[Bottleneck, Bottleneck]]:
    """Train bottleneck students of all widths on the same batches, once for half of the steps and once for all.

    The learning rate warms up, stays constant, and falls to 0 in the last half. The two trainings of a width are equal
    up to where the rate of the shorter one begins to fall; these steps are done once.

    Source: Elhage et al. 2022, "Toy Models of Superposition", for the model.

    Args:
        codes: codes to train on, of at least one token.
        weight: [feature] cost of a squared error.
        amplitude: [feature] root mean square of each feature's value where it is active; the unit of its bias.
        widths: [width] dimensions.
        steps: steps of the longer training.
        batch_size: tokens per step, at most the number of tokens.
        seed: seed of the weights and of the order of the tokens.
        counter: counts every step of every model, see `n_steps_per_width`.
        rate: factor of the learning rates.

    Returns:
        For each width, the student after half of the steps and the student after all of them.

    Example:
        >>> codes = Codes.from_dense(np.eye(4))
        >>> counter = StepCounter(None, n_steps_per_width(4))
        >>> students = train(codes, torch.ones(4), torch.ones(4), [2], steps=4, batch_size=4, seed=0, counter=counter)
        >>> students[0][1].W.shape
        torch.Size([4, 2])
    """
    entry_cost = codes.value.astype(np.float64) ** 2 * weight.double().cpu().numpy()[codes.feature]
    token_cost = np.bincount(codes.token, entry_cost, codes.n_tokens)
    longer = [BottleneckTrainer(width, weight, amplitude, seed, rate) for width in widths]
    shorter: list[BottleneckTrainer] = []
    half, warm_up = steps // 2, WARM_UP_SHARE * (steps // 2)
    batches = training_batches(codes, token_cost, weight, batch_size, seed, gradient_dtype(weight.device))
    n_parallel = len(widths) if len(weight) * max(widths) <= MAX_PARALLEL_WEIGHTS else 1
    with quiet_sparse(), threads_for(n_parallel, weight.device) as for_each:
        for step, batch in zip(range(steps), batches, strict=False):
            if step == int(CONSTANT_SHARE * half):
                shorter = [trainer.copy() for trainer in longer]
            trainings = [(trainer, steps) for trainer in longer]
            trainings += [(trainer, half) for trainer in shorter] if step < half else []
            for_each(partial(_train_step, batch=batch, step=step, warm_up=warm_up), trainings[::-1])
            for _ in trainings:
                counter.step()
    return [(one.model, other.model) for one, other in zip(shorter, longer, strict=True)]


def gradient_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of the products with all features: bf16 on a CPU with units for it, where they take most time.

    Args:
        device: device of the training.
    """
    return product_dtype(device) if device.type == "cpu" else torch.float32


def n_steps_per_width(steps: int) -> int:
    """Return the number of steps that `train` does for one width.

    Example:
        >>> n_steps_per_width(100)
        125
    """
    half = steps // 2
    return steps + half - int(CONSTANT_SHARE * half)


def _train_step(training: tuple[BottleneckTrainer, int], batch: TrainingBatch, step: int, warm_up: float) -> None:
    """Do one step of a training of a number of steps."""
    trainer, n_steps = training
    trainer.step(batch, _rate_share(step, n_steps, warm_up))


def _rate_share(step: int, steps: int, warm_up: float) -> float:
    """Return the share of the highest learning rate: a linear warm-up, then constant, then linear to 0."""
    return min(1.0, step / warm_up + 1e-2, (1.0 - step / steps) / (1.0 - CONSTANT_SHARE))
