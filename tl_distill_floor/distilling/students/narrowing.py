"""Narrow a teacher's weights to a student's sizes, by slices or by projections of the residual stream."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig

from tl_distill_floor.distilling.students.axis_maps import WeightAxes
from tl_distill_floor.distilling.students.family_models import full_logits, refuse_failures, sample_ids
from tl_distill_floor.errors import InputError

N_REFLECTIONS = 4
"""Reflections of the residual stream that a check composes."""
NOISE = 0.1
"""Standard deviation of the noise in the weights of a check, in standard deviations of each weight."""
SAME_ROTATED_LOGITS = 2e-3
"""Largest difference of the logits before and after a rotation, as a share of the largest logit."""


def narrow(
    weight: Float[Tensor, "..."], axes: WeightAxes, directions: Float[Tensor, "d_model width"] | None = None
) -> Float[Tensor, "..."]:
    """Return the part of a teacher's weight that a student keeps.

    Args:
        weight: the teacher's weight.
        axes: what its axes are.
        directions: orthonormal directions that the residual stream is projected onto; None to slice it. The scale of a
            norm becomes the mean of the teacher's scales, weighted by the squared loadings of each direction.
    """
    for axis, positions in enumerate(axes.positions):
        if axis in axes.residual and directions is not None:
            loadings = directions.square() if axes.is_scale else directions
            weight = (weight.movedim(axis, -1) @ loadings).movedim(-1, axis)
        elif len(positions) != weight.shape[axis] or not torch.equal(positions, torch.arange(len(positions))):
            weight = weight.index_select(axis, positions.to(weight.device))
    return weight


def leading_directions(
    model: nn.Module, weights: Mapping[str, Tensor], axes: Mapping[str, WeightAxes], width: int
) -> Float[Tensor, "d_model width"]:
    """Return orthonormal directions that span the leading singular directions of the teacher's embeddings.

    If the embeddings are not of the residual stream's width, all matrices that read or write the residual stream are
    used instead.

    Args:
        model: a student, whose modules say which weights are embeddings.
        weights: the teacher's weights, by the student's names.
        axes: the axes of the weights.
        width: number of directions.
    """
    modules = dict(model.named_modules())
    tables = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
    embeddings = [f"{name}.weight" for name, m in modules.items() if isinstance(m, nn.Embedding) or m in tables]
    embeddings = [name for name in embeddings if axes[name].residual]
    if not any(modules[name.removesuffix(".weight")] is tables[0] for name in embeddings):
        embeddings = [name for name, weight in weights.items() if weight.ndim == 2 and len(axes[name].residual) == 1]
    d_model = weights[embeddings[0]].shape[axes[embeddings[0]].residual[0]]
    gram = torch.zeros(d_model, d_model, device=weights[embeddings[0]].device)
    for name in sorted(embeddings):
        rows = weights[name].float().movedim(axes[name].residual[0], -1)
        gram += rows.T @ rows
    # On the CPU, so that the signs of the directions, and with them a student, do not depend on the device.
    directions: Tensor = torch.linalg.svd(gram.cpu())[0][:, :width]
    return directions.to(gram.device)


@torch.no_grad()
def check_rotation(student: nn.Module, axes: Mapping[str, WeightAxes]) -> None:
    """Check that a rotation of the residual stream does not change a student's logits.

    The student gets random weights, with constant scales of the residual stream. The rotation keeps the direction of
    the mean, which layer norms subtract.

    Args:
        student: a student, whose weights are changed.
        axes: the axes of its weights.

    Raises:
        InputError: the student cannot be run, or the logits change, because the family does more with the residual
            stream than norms, linear maps and additions.
    """
    config: PreTrainedConfig = student.config  # type: ignore[assignment]
    width = int(config.hidden_size)
    if width < 2:
        return
    generator = torch.Generator().manual_seed(0)
    weights = dict(student.named_parameters())
    for name, weight in weights.items():
        scale = float(weight.std(correction=0)) or 1.0
        weight.add_(torch.randn(weight.shape, generator=generator), alpha=NOISE * scale)
        if axes[name].residual and axes[name].is_scale:
            weight.fill_(float(weight.mean()))
    ids = sample_ids(config)
    with refuse_failures(config, "cannot be run"):  # such as experts whose rows are not aligned for their kernel
        before = full_logits(student, ids)
    for _ in range(N_REFLECTIONS):
        normal = torch.randn(width, generator=generator)
        normal = nn.functional.normalize(normal - normal.mean(), dim=0)
        for name, weight in weights.items():
            for axis in axes[name].residual:
                if not axes[name].is_scale:
                    rows = weight.movedim(axis, -1)
                    rows -= 2 * (rows @ normal)[..., None] * normal
    after = full_logits(student, ids)
    if not torch.allclose(before, after, rtol=0, atol=SAME_ROTATED_LOGITS * float(before.abs().max())):
        raise InputError(
            f"the residual stream of {type(student).__name__} cannot be rotated without a change of its logits, which"
            " --start svd needs; use --start teacher-slice"
        )
