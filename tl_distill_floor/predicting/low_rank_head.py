"""Logits of low rank: their start from principal components, and their training."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from tl_distill_floor.measuring.logit_map import LogitMap
from tl_distill_floor.predicting.head_tokens import TeacherHead, some_tokens

LR = 0.03
"""Peak learning rate of the logits' weights, as a share of their standard deviation, at a first loss of 1 nat. It is
proportional to the root of that loss: the KL is quadratic in the error of the logits, so that the weights of a wide
student, whose first loss is small, start closer to their optimum."""
BIAS_LR_FACTOR, NETWORK_LR_FACTOR = 2.0, 0.15
"""Learning rates of the logits' bias and of the encoder's network relative to `LR`."""
WARMUP_STEPS, DECAY_SHARE = 20, 0.5
"""Steps in which the learning rate rises, and share of the steps in which it falls linearly to 0."""
HIDDEN_FACTOR = 2
"""Hidden units of the encoder's network, as a multiple of the teacher's width."""
SMALLEST_EIGENVALUE = 1e-10
"""Smallest eigenvalue of a metric that is kept, as a share of the largest."""
START_TOKENS_PER_CHUNK = 1024
"""Tokens that the principal directions are summed over at a time."""
LOGIT_BYTES_CPU, LOGIT_BYTES_GPU = 31 * 2**20, 2**28
"""Size of an array of logits that a training step computes at a time: on a CPU, a block that it keeps when freed."""


@dataclass(frozen=True)
class PrincipalDirections:
    """Directions of a teacher's last hidden states, in falling order of what they contribute to the KL.

    The coordinates x = (h − mean) · encode have variance 1. The logits are about decode · x + bias, up to a number for
    each token that changes no probability.
    """

    mean: Float[Tensor, " d_model"]
    encode: Float[Tensor, "d_model d_model"]
    decode: Float[Tensor, "vocabulary n_decoded"]
    bias: Float[Tensor, " vocabulary"]

    def coordinates(self, hidden: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        """Return the coordinates of some last hidden states."""
        return (hidden - self.mean) @ self.encode

    def without_decoder(self) -> "PrincipalDirections":
        """Return the directions without `decode`, which is as large as the unembedding."""
        return dataclasses.replace(self, decode=self.decode.new_empty(len(self.bias), 0))


def principal_directions(
    head: TeacherHead, hidden: Float[Tensor, "token d_model"], n_metric_tokens: int = 8192
) -> PrincipalDirections:
    """Compute principal components of last hidden states in the metric of the KL.

    They are the eigenvectors of G^½ Σ G^½ with Σ = Cov(h) and G = E[Wᵀ(diag p − p pᵀ)W], the mean Fisher information
    of the logits' softmax: the best linear projection of h to second order in the loss.

    Args:
        head: the teacher's unembedding.
        hidden: last hidden states.
        n_metric_tokens: tokens that G is averaged over.
    """
    mean, covariance = _mean_and_covariance(hidden)
    sampled = some_tokens(hidden, n_metric_tokens)
    mean_p = torch.zeros(len(head.weight), device=hidden.device)
    outer = torch.zeros_like(covariance)
    for chunk in torch.split(sampled, START_TOKENS_PER_CHUNK):
        p = head.log_probs(chunk).exp()
        mean_p += p.sum(0) / len(sampled)
        expected = (p @ head.weight).double()
        outer += expected.T @ expected / len(sampled)
    metric = ((head.weight.T * mean_p) @ head.weight).double() - outer
    values, vectors = torch.linalg.eigh(metric)
    values = values.clamp(min=float(values.max()) * SMALLEST_EIGENVALUE + 1e-30)
    root = (vectors * values.sqrt()) @ vectors.T
    inverse_root = (vectors / values.sqrt()) @ vectors.T
    variances, components = torch.linalg.eigh(root @ covariance @ root)
    variances, components = variances.flip(0), components.flip(1)
    deviations = variances.clamp(min=float(variances.max()) * SMALLEST_EIGENVALUE + 1e-30).sqrt()
    scale = head.logit_map.scale
    decode = scale * (head.weight @ (inverse_root @ components * deviations).float())
    bias = scale * (head.weight @ mean.float() + head.bias)
    if head.logit_map.cap is None:
        # The same change of all logits changes no probability. Likely tokens get small logits, which bf16 rounds less.
        decode -= mean_p @ decode
        bias -= mean_p @ bias.nan_to_num(0.0, 0.0, 0.0)
    return PrincipalDirections(mean.float(), (root @ components / deviations).float(), decode, bias)


def _mean_and_covariance(
    hidden: Float[Tensor, "token d_model"],
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, "d_model d_model"]]:
    """Return mean and covariance in double precision, without a copy of all hidden states."""
    chunks = torch.split(hidden, START_TOKENS_PER_CHUNK)
    mean = torch.stack([chunk.double().sum(0) for chunk in chunks]).sum(0) / len(hidden)
    covariance = torch.zeros((len(mean), len(mean)), dtype=mean.dtype, device=mean.device)
    for chunk in chunks:
        centred = chunk.double() - mean
        covariance += centred.T @ centred / len(hidden)
    return mean, covariance


class LowRankHead(nn.Module):
    """Logits decode · z + bias of a given rank, and an encoder from last hidden states to z.

    The encoder is linear plus a network of one hidden layer. It serves the training, and as the start of the search for
    each context's best z. Weights start at the principal components.

    Args:
        directions: principal components of the last hidden states.
        width: rank of the logits.
        cap: cap of the teacher's logits, which its students have too; None for none.
        seed: seed of the network's initial weights.
    """

    def __init__(self, directions: PrincipalDirections, width: int, cap: float | None, seed: int) -> None:
        super().__init__()
        d_model, device = len(directions.mean), directions.mean.device
        n_hidden = HIDDEN_FACTOR * d_model
        random = torch.Generator().manual_seed(seed)
        self.logit_map = LogitMap(1.0, cap)
        self.decode = nn.Parameter(directions.decode[:, :width].clone())
        self.bias = nn.Parameter(directions.bias.clone())
        self.linear = nn.Parameter(torch.eye(d_model, width, device=device))
        self.shift = nn.Parameter(torch.zeros(width, device=device))
        hidden = torch.randn(d_model, n_hidden, generator=random) / d_model**0.5
        self.network_in = nn.Parameter(hidden.to(device))
        self.network_bias = nn.Parameter(torch.zeros(n_hidden, device=device))
        self.network_out = nn.Parameter(torch.zeros(n_hidden, width, device=device))

    def encode(self, coordinates: Float[Tensor, "token d_model"]) -> Float[Tensor, "token width"]:
        """Return z of some tokens, from the coordinates of their last hidden states."""
        network: Tensor = gelu(coordinates @ self.network_in + self.network_bias) @ self.network_out
        return coordinates @ self.linear + self.shift + network

    def with_bias(self, dtype: torch.dtype) -> Float[Tensor, "vocabulary with_bias"]:
        """Return `decode` with two more columns whose sum is the bias, in a dtype that may round it.

        The second of them is what the first one rounds off.
        """
        rounded = self.bias.to(dtype)
        rest = (self.bias - rounded.float()).nan_to_num(0.0, 0.0, 0.0).to(dtype)
        return torch.cat([self.decode.to(dtype), rounded[:, None], rest[:, None]], 1)

    def optimizer(self, first_loss: float) -> torch.optim.Optimizer:
        """Return Adam with a learning rate for each weight that fits its size.

        Args:
            first_loss: KL(teacher ‖ low rank) before the training, in nats per token.
        """
        lr = LR * math.sqrt(first_loss)
        spread = float(self.decode.detach().std(correction=0)) or 1.0
        rates = [
            ([self.decode], lr * spread),
            ([self.bias], lr * spread * BIAS_LR_FACTOR),
            ([self.linear], lr / math.sqrt(len(self.linear))),
            ([self.shift, self.network_in, self.network_bias, self.network_out], lr * NETWORK_LR_FACTOR),
        ]
        groups = [{"params": weights, "lr": rate, "peak_lr": rate} for weights, rate in rates]
        return torch.optim.Adam(groups, betas=(0.9, 0.98), fused=True)


@torch.no_grad()
def train_step(
    low_rank: LowRankHead,
    optimizer: torch.optim.Optimizer,
    coordinates: Float[Tensor, "token d_model"],
    p: Float[Tensor, "token vocabulary"],
    dtype: torch.dtype,
) -> None:
    """Take one optimizer step on KL(teacher ‖ low rank).

    The gradient with respect to the logits is q − p. It is propagated by hand, because autograd would keep several
    arrays of the size of the logits.

    Args:
        low_rank: the logits that are trained.
        optimizer: its optimizer.
        coordinates: principal coordinates of the last hidden states.
        p: the teacher's probabilities.
        dtype: dtype of the matrix products and of the logits; that of `p`.
    """
    with torch.enable_grad(), torch.autocast(p.device.type, dtype, enabled=dtype != torch.float32):
        z = low_rank.encode(coordinates).float()
    width, cap, weights = z.shape[1], low_rank.logit_map.cap, low_rank.with_bias(dtype)
    inputs = torch.cat([z.detach().to(dtype), z.new_ones(len(z), 2, dtype=dtype)], 1)
    z_gradient, weights_gradient = torch.empty_like(z), torch.zeros_like(weights, dtype=torch.float32)
    n_bytes = LOGIT_BYTES_CPU if p.device.type == "cpu" else LOGIT_BYTES_GPU
    size = max(1, n_bytes // (p.shape[1] * p.element_size()))
    for first in range(0, len(p), size):
        rows = slice(first, first + size)
        logits = low_rank.logit_map(inputs[rows] @ weights.T)
        gradient = logits.softmax(-1).sub_(p[rows])
        if cap is not None:
            gradient *= 1 - (logits / cap).square()
        weights_gradient += gradient.T @ inputs[rows]
        z_gradient[rows] = gradient @ weights[:, :width]
    decode_gradient, bias_gradient = weights_gradient[:, :width].contiguous(), weights_gradient[:, width].contiguous()
    del weights, weights_gradient
    low_rank.decode.grad, low_rank.bias.grad = decode_gradient.div_(len(p)), bias_gradient.div_(len(p))
    torch.autograd.backward(z, z_gradient.div_(len(p)))
    optimizer.step()
    optimizer.zero_grad()


def set_lr(optimizer: torch.optim.Optimizer, step: int, n_steps: int) -> None:
    """Set the learning rate of a step, counted from 0: a linear rise, a constant part and a linear fall to 0.

    Args:
        optimizer: an optimizer whose groups have a `peak_lr`.
        step: number of the step.
        n_steps: number of steps.
    """
    factor = min(1.0, (step + 1) / WARMUP_STEPS, (n_steps - step) / (DECAY_SHARE * n_steps))
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
