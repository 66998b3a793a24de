"""Forecast what a student of some width still represents, as activations that can be probed."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool
from sae_lens import SAE
from torch import Tensor

from tl_distill_floor.measuring.encoding import encode_tokens
from tl_distill_floor.predicting.bottleneck_task import HiddenStates
from tl_distill_floor.predicting.simulation import train_bottlenecks
from tl_distill_floor.probing.activations import ActivationViews
from tl_distill_floor.probing.run_inputs import RunInputs


def forecast_views(
    sae: SAE,
    d_model: int,
    n_heads: int,
    kept: Mapping[int, Bool[Tensor, " feature"]],
    hidden: Mapping[int, HiddenStates],
) -> ActivationViews:
    """Return the activation together with two forecasts for each width.

    The views are named "activation", "kept WIDTH" (the activation reconstructed from the features that the width is
    expected to keep) and "bottleneck WIDTH" (the hidden state of the bottleneck student of that width).

    Args:
        sae: the SAE of the hook point.
        d_model: dimensions of the activation.
        n_heads: attention heads of the teacher, for an SAE that concatenates the heads of `hook_z` itself.
        kept: for each width, which features it is expected to keep.
        hidden: for each width, the function from SAE codes to the bottleneck student's hidden state.
    """
    decoder = sae.W_dec.detach().float()

    def append_codes(activation: Tensor) -> Tensor:
        return torch.cat([activation, encode_tokens(sae, activation, n_heads).to(activation.device)], dim=1)

    def split_views(pooled: Tensor) -> dict[str, Tensor]:
        activation, codes = pooled[:, :d_model], pooled[:, d_model:].to(decoder.device)
        reconstructed = {f"kept {width}": (codes * mask.to(codes.device)) @ decoder for width, mask in kept.items()}
        states = {f"bottleneck {width}": hidden_state(codes) for width, hidden_state in hidden.items()}
        return {"activation": activation, **reconstructed, **states}

    return ActivationViews(append_codes, split_views)


def bottleneck_states(inputs: RunInputs) -> dict[int, HiddenStates]:
    """Train a bottleneck student of each width; return its function from SAE codes to the hidden state.

    Returns:
        The function of each width; empty if no bottleneck students are trained.

    Raises:
        InputError: see `train_bottlenecks`.
    """
    if not inputs.trains_bottlenecks:
        return {}
    floor, widths, steps = inputs.floor, inputs.widths, inputs.config.bottleneck_steps
    sizes = np.array(widths, dtype=np.int64)
    trained = train_bottlenecks(floor.stats, sizes, steps=steps, min_count=floor.min_count, device=inputs.device)
    return dict(zip(widths, trained.hidden_states(), strict=True))


def teacher_views(inputs: RunInputs, hidden: Mapping[int, HiddenStates]) -> ActivationViews:
    """Return the teacher's activation with the forecasts for each width; see `forecast_views`."""
    kept = {width: torch.from_numpy(inputs.floor.kept(width)) for width in inputs.widths}
    n_heads = int(inputs.teacher.model.cfg.n_heads)
    return forecast_views(inputs.source.sae, inputs.floor.stats.d_model, n_heads, kept, hidden)
