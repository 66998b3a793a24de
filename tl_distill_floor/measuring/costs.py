"""The cost of a feature: the increase of the loss, per token, when it is removed from the teacher's activation.

`energy` needs only the codes. `fisher` and `ablation` measure the teacher's output: KL(teacher ‖ teacher without the
feature), to second order and exactly. A feature is removed from every counted token of a sequence. The SAE's
reconstruction error stays in the activation. Outputs at special tokens are left out, as in the losses of students.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from tl_distill_floor.annotations import CostMethod, CostUnit
from tl_distill_floor.measuring.activation_batch import ActivationBatch, ActiveCodes
from tl_distill_floor.measuring.job import AttachedSae, MeasurementJob
from tl_distill_floor.measuring.kl import forward_kl_in_chunks
from tl_distill_floor.measuring.passes import BatchReader, forward_pass, gradient_pass, rerun_pass
from tl_distill_floor.measuring.rerun import ALL_POSITIONS, Positions
from tl_distill_floor.sources.devices import copy_to_device
from tl_distill_floor.sources.torch_state import quiet_sparse


class CostMethodSpec(NamedTuple):
    """How a cost is measured."""

    unit: CostUnit
    open_reader: Callable[[MeasurementJob, int, int], AbstractContextManager[BatchReader]]
    """Opens the reader of the batches that the method needs, given a job, the number of samples, and the number of
    sequences of which one has its costs measured."""
    sum_cost: Callable[[ActivationBatch, ActiveCodes, AttachedSae], Float64[Tensor, " feature"]]
    """Sums the cost of each feature over the tokens of a batch on which costs are measured, given their codes."""
    reads_ahead: bool = True
    """Whether the next batch can be read before the costs of a batch are summed."""


def energy(_batch: ActivationBatch, codes: ActiveCodes, attached: AttachedSae) -> Float64[Tensor, " feature"]:
    """Sum a² · ‖w‖²: the squared error of setting the code to 0 (I · E[x²] in Sarkar and Deka 2026, A1).

    Args:
        _batch: not used.
        codes: the batch's nonzero codes.
        attached: the SAE.

    Returns:
        [feature], squared error summed over tokens and over the dimensions of the hook point.
    """
    norm = copy_to_device(torch.from_numpy(attached.decoder_norm), codes.value.device)
    return sum_by_index(codes.feature, codes.value.square(), len(norm)) * norm.square()


def fisher(batch: ActivationBatch, codes: ActiveCodes, attached: AttachedSae) -> Float64[Tensor, " feature"]:
    """Sum ½ (Σ_t a_t ⟨G_t, w⟩)² over sequences, G_t the gradient of the sampled outputs' log-probability.

    This estimates KL(teacher ‖ teacher without the feature) to second order, ½ δᵀFδ with F the Fisher matrix of the
    teacher's outputs (Amari 1998, eq. 2.7). Cross terms between positions have expectation 0.

    Args:
        batch: a batch of `gradient_pass`.
        codes: its nonzero codes.
        attached: the SAE.

    Returns:
        [feature], nats summed over tokens.
    """
    decoder = attached.sae.W_dec.detach()
    n_features, n_rows = len(decoder), batch.n_sequences
    index = copy_to_device(batch.row, codes.token.device)[codes.token] * n_features + codes.feature
    total = torch.zeros(n_features, dtype=torch.float64, device=index.device)
    for gradient in batch.gradients:
        score = codes.value * row_dot_products(gradient, decoder, codes.token, codes.feature)
        total += sum_by_index(index, score, n_rows * n_features).view(n_rows, n_features).square().sum(0)
    cost: Tensor = total / (2.0 * len(batch.gradients))
    return cost


def ablation(batch: ActivationBatch, codes: ActiveCodes, attached: AttachedSae) -> Float64[Tensor, " feature"]:
    """Sum KL(teacher ‖ teacher without the feature), computed exactly by one more forward pass per feature.

    Args:
        batch: a batch of `rerun_pass`.
        codes: its nonzero codes.
        attached: the SAE.

    Returns:
        [feature], nats summed over tokens.
    """
    decoder, features = attached.sae.W_dec.detach(), torch.unique(codes.feature)
    cost = torch.zeros(len(decoder), dtype=torch.float64)
    for feature, losses in zip(features.tolist(), ablate_features(batch, codes, decoder, features), strict=True):
        cost[feature] = losses.sum()
    return cost


def ablate_features(
    batch: ActivationBatch,
    codes: ActiveCodes,
    decoder: Float[Tensor, "feature d_model"],
    features: Int64[Tensor, " selected"],
) -> Iterator[Float64[Tensor, " sequence"]]:
    """Yield for each selected feature the KL(teacher ‖ teacher without it) of every sequence of the batch.

    Args:
        batch: a batch of `rerun_pass`.
        codes: its nonzero codes.
        decoder: the SAE's decoder.
        features: the features to remove, one at a time.

    Yields:
        [sequence], nats summed over the sequence's positions; 0 where the feature does not fire.
    """
    order = codes.feature.argsort(stable=True)
    start, end = (torch.searchsorted(codes.feature[order], features, right=right) for right in (False, True))
    for feature, first, last in zip(features.tolist(), start.tolist(), end.tolist(), strict=True):
        entries = order[first:last]
        token, value = codes.token[entries], codes.value[entries].float()
        rows = torch.unique(batch.row[token.cpu()])
        change = -value[:, None] * decoder[feature].float()
        losses = torch.zeros(batch.n_sequences, dtype=torch.float64)
        if len(rows):
            losses[rows] = kl_after_change(batch, token, change, rows).cpu()
        yield losses


def kl_after_change(
    batch: ActivationBatch,
    token: Int64[Tensor, " changed"],
    change: Float[Tensor, "changed d_model"],
    rows: Int64[Tensor, " row"] | None = None,
    positions: Positions = ALL_POSITIONS,
) -> Float64[Tensor, " row"]:
    """Compute KL(teacher ‖ teacher with a changed activation), summed over positions of each sequence.

    Args:
        batch: a batch of `rerun_pass`.
        token: indices, among the counted tokens, of the tokens whose activation changes.
        change: what is added to their activations.
        rows: indices of the sequences in the batch that run again; None runs all of them.
        positions: positions to sum over.

    Returns:
        [row], nats, on the device of the logits.
    """
    assert batch.teacher is not None
    original = batch.teacher.activation
    rows = torch.arange(batch.n_sequences) if rows is None else rows
    rerun_row = torch.full((batch.n_sequences,), -1)
    rerun_row[rows] = torch.arange(len(rows))
    # The model's layers may be on several devices; an index on the CPU works with a tensor on any of them.
    activation = original[rows].flatten(2).float()
    row, position = rerun_row[batch.row[token.cpu()]].to(original.device), batch.position[token.cpu()]
    activation[row, position.to(original.device)] += change.to(activation)
    logits = batch.teacher.rerun(activation, rows, positions)
    expected = batch.teacher.logits[rows if isinstance(positions, slice) else rows[:, None], positions]
    losses = forward_kl_in_chunks(expected, logits).double()
    if batch.has_loss is not None:
        losses = losses.where(copy_to_device(batch.has_loss[rows][:, positions], losses.device), 0.0)
    return losses.sum(1)


def row_dot_products(
    left: Float[Tensor, "token d_model"],
    right: Float[Tensor, "feature d_model"],
    token: Int64[Tensor, " entry"],
    feature: Int64[Tensor, " entry"],
) -> Float64[Tensor, " entry"]:
    """Compute ⟨left[token], right[feature]⟩ for each entry.

    Args:
        left: one row per token.
        right: one row per feature.
        token: row of `left` for each entry, ascending.
        feature: row of `right` for each entry.
    """
    starts = torch.searchsorted(token, torch.arange(len(left) + 1, device=token.device))
    with quiet_sparse():
        pattern = torch.sparse_csr_tensor(
            starts, feature, torch.zeros_like(token, dtype=torch.float32), size=(len(left), len(right))
        )
        products: Tensor = torch.sparse.sampled_addmm(pattern, left.float(), right.float().T).values()
    return products.double()


def sum_by_index(index: Int64[Tensor, " entry"], values: Float64[Tensor, " entry"], n: int) -> Float64[Tensor, " n"]:
    """Sum the values that have the same index.

    Args:
        index: index of each value, 0 to `n` - 1.
        values: the values.
        n: number of sums.
    """
    # Unlike bincount, this does not wait for a GPU.
    return torch.zeros(n, dtype=torch.float64, device=values.device).scatter_add_(0, index, values)


COST_METHODS: dict[CostMethod, CostMethodSpec] = {
    "energy": CostMethodSpec("mse", forward_pass, energy),
    "fisher": CostMethodSpec("nats", gradient_pass, fisher),
    "ablation": CostMethodSpec("nats", rerun_pass, ablation, reads_ahead=False),
}
"""The methods by name."""
