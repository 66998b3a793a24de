"""The best low-rank logits of each context: Newton's method on the coordinates z, for many contexts at a time."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tl_distill_floor.measuring.kl import expected_log_prob
from tl_distill_floor.measuring.logit_map import LogitMap

NEWTON_STEPS, CG_STEPS = 8, 8
"""Steps of Newton's method at most, and steps of conjugate gradients for each."""
MAX_SHORTENINGS, SHRINK = 4, 0.25
"""How often a step that raises the loss is shortened, and by which factor."""
FIRST_DAMPING, DAMPING_AFTER_SUCCESS, DAMPING_AFTER_FAILURE = 0.1, 0.3, 10.0
"""Damping of the first step, and its factors after a step that lowered the loss and after one that did not."""
SMALLEST_GAIN = 2e-3
"""Newton's method ends if the mean loss falls by a smaller share."""
ROUNDING = 1e-6
"""Rise of a loss, in nats, that may be rounding."""
RIDGE = 1e-3
"""Share of the mean diagonal that is added to the preconditioner."""


class BestLogits(NamedTuple):
    """The best coordinates of some contexts, and their losses."""

    z: Float[Tensor, "token width"]
    kl: Float[Tensor, " token"]
    """KL(teacher ‖ low rank) in nats."""
    start_kl: Float[Tensor, " token"]
    """The same at the first coordinates."""


class _Point(NamedTuple):
    """Losses at some coordinates, with what derivatives need."""

    kl: Float[Tensor, " token"]
    q: Float[Tensor, "token vocabulary"]
    cap_derivative: Float[Tensor, "token vocabulary"] | None
    """Derivative of the cap; None without a cap."""


@torch.no_grad()
def best_logits(
    log_p: Float[Tensor, "token vocabulary"],
    decode: Float[Tensor, "vocabulary width"],
    bias: Float[Tensor, " vocabulary"],
    z: Float[Tensor, "token width"],
    logit_map: LogitMap,
    dtype: torch.dtype = torch.float32,
) -> BestLogits:
    """Minimise KL(p ‖ softmax(decode · z + bias)) over z, for each context by itself.

    The loss is convex in z without a cap. The Newton equations are solved by preconditioned conjugate gradients
    (Nocedal and Wright 2006, algorithm 7.1), so that no Hessian is stored: a product with it costs as much as the
    logits. The preconditioner is the mean Hessian.

    Args:
        log_p: the teacher's log-probabilities.
        decode: weights of the logits.
        bias: bias of the logits.
        z: coordinates to start from.
        logit_map: cap of the logits.
        dtype: dtype of the products with the Hessian. Losses and gradients are in that of `log_p`.
    """
    p = log_p.exp()
    negative_entropy = expected_log_prob(p, log_p)

    def evaluate(z: Tensor, rows: Tensor | slice) -> _Point:
        logits = logit_map(z @ decode.T + bias)
        log_q = logits.log_softmax(-1)
        cap_derivative = None if logit_map.cap is None else 1 - (logits / logit_map.cap).square()
        return _Point(negative_entropy[rows] - expected_log_prob(p[rows], log_q), log_q.exp(), cap_derivative)

    point = evaluate(z, slice(None))
    start_kl = point.kl
    decode_low = decode.to(dtype)
    damping = torch.full_like(z[:, :1], FIRST_DAMPING)
    for _ in range(NEWTON_STEPS):
        before = float(point.kl.mean())
        direction = _newton_direction(point, p, decode, decode_low, damping)
        z, point, improved = _line_search(evaluate, z, direction, point)
        damping = torch.where(improved[:, None], damping * DAMPING_AFTER_SUCCESS, damping * DAMPING_AFTER_FAILURE)
        if before - float(point.kl.mean()) <= SMALLEST_GAIN * before:
            break
    # Rounding can make a KL slightly negative.
    return BestLogits(z, point.kl.clamp(min=0.0), start_kl.clamp(min=0.0))


def _newton_direction(
    point: _Point,
    p: Float[Tensor, "token vocabulary"],
    decode: Float[Tensor, "vocabulary width"],
    decode_low: Float[Tensor, "vocabulary width"],
    damping: Float[Tensor, "token 1"],
) -> Float[Tensor, "token width"]:
    """Solve (H + damping · H̄) x = −gradient, with the Hessian H of each token and the mean Hessian H̄.

    H = decodeᵀ (diag q − q qᵀ) decode; with a cap, decode is multiplied by the cap's derivative (Gauss-Newton).
    """
    q, cap_derivative = point.q, point.cap_derivative
    dtype = decode_low.dtype
    metric = (q if cap_derivative is None else q * cap_derivative.square()).to(dtype)
    expected = (q if cap_derivative is None else q * cap_derivative) @ decode
    mean_hessian = (decode.T * q.mean(0)) @ decode - expected.T @ expected / len(q)
    ridge = RIDGE * float(mean_hessian.diagonal().mean()) + torch.finfo(q.dtype).tiny
    identity = torch.eye(len(mean_hessian), dtype=q.dtype, device=q.device)
    factor, info = torch.linalg.cholesky_ex(mean_hessian + ridge * identity)
    if int(info):  # rounding: precondition by the diagonal
        factor = (mean_hessian.diagonal().clamp(min=0.0) + ridge).sqrt().diag()

    def product(x: Tensor) -> Tensor:
        curved = ((x.to(dtype) @ decode_low.T).mul_(metric) @ decode_low).to(q.dtype)
        return curved - expected * (expected * x).sum(-1, keepdim=True) + damping * (x @ mean_hessian)

    def precondition(residual: Tensor) -> Tensor:
        return torch.cholesky_solve(residual.T, factor).T

    solution = torch.zeros_like(expected)
    residual = (p - q if cap_derivative is None else (p - q) * cap_derivative) @ decode
    preconditioned = precondition(residual)
    search = preconditioned.clone()
    energy = (residual * preconditioned).sum(-1, keepdim=True)
    for _ in range(CG_STEPS):
        curved = product(search)
        length = energy / (search * curved).sum(-1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
        solution += length * search
        residual = residual - length * curved
        preconditioned = precondition(residual)
        next_energy = (residual * preconditioned).sum(-1, keepdim=True)
        search = preconditioned + next_energy / energy.clamp(min=torch.finfo(q.dtype).tiny) * search
        energy = next_energy
    return solution.nan_to_num(0.0, 0.0, 0.0)


def _line_search(
    evaluate: Callable[[Tensor, Tensor | slice], _Point],
    z: Float[Tensor, "token width"],
    direction: Float[Tensor, "token width"],
    point: _Point,
) -> tuple[Tensor, _Point, Tensor]:
    """Take the step of each token if it lowers its loss, a shorter one if that does, or none.

    Returns:
        (coordinates, losses there, which tokens improved).
    """
    moved = z + direction
    candidate = evaluate(moved, slice(None))
    length = 1.0
    for _ in range(MAX_SHORTENINGS):
        (worse,) = torch.where(~(candidate.kl <= point.kl + ROUNDING))
        if not len(worse):
            break
        length *= SHRINK
        moved[worse] = z[worse] + length * direction[worse]
        _overwrite(candidate, worse, evaluate(moved[worse], worse))
    improved = candidate.kl < point.kl
    (kept,) = torch.where(~improved)
    moved[kept] = z[kept]
    _overwrite(
        candidate,
        kept,
        _Point(point.kl[kept], point.q[kept], None if point.cap_derivative is None else point.cap_derivative[kept]),
    )
    return moved, candidate, improved


def _overwrite(point: _Point, rows: Tensor, values: _Point) -> None:
    """Replace the losses of some tokens."""
    point.kl[rows] = values.kl
    point.q[rows] = values.q
    if point.cap_derivative is not None and values.cap_derivative is not None:
        point.cap_derivative[rows] = values.cap_derivative
