"""Plain `transformers` models of a configuration: with weights, or as shells that take almost no memory."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import init_empty_weights
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.context_lengths import longest_of_config

SEQUENCES, POSITIONS = (3, 5), (11, 13, 17, 19, 23)
"""Candidate numbers of sequences and positions of the token ids of a check."""
SAME_LOGITS, SAME_LOGITS_HALF = 1e-3, 0.05
"""Largest difference of equal logits, as a share of the largest logit: in fp32, and in dtypes of 16 bits."""


def create_model(config: PreTrainedConfig) -> nn.Module:
    """Return a randomly initialized model in fp32 and in evaluation mode.

    Raises:
        InputError: the family has no model of this configuration.
    """
    with refuse_failures(config, "cannot be built"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model.float().eval()


def create_shell(config: PreTrainedConfig) -> nn.Module:
    """Return a model whose weights have shapes but no values, on the meta device; its buffers have values.

    Raises:
        InputError: the family has no model of this configuration.
    """
    with refuse_failures(config, "cannot be built"), init_empty_weights(include_buffers=False):
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.tie_weights()  # type: ignore[operator]
    return model.eval()


def create_zero_model(config: PreTrainedConfig, *, fused_experts: bool = True) -> nn.Module:
    """Return a model that can be run, whose weights are zero and take no memory until they are written.

    Args:
        config: configuration of the model.
        fused_experts: whether experts run in the family's own way, as in training, or one after the other.

    Raises:
        InputError: the family has no model of this configuration.
    """
    model = create_shell(copy.deepcopy(config))  # the choice of how experts run is written into the configuration
    zeros: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            zero = nn.Parameter(torch.from_numpy(np.zeros(weight.shape, dtype=np.float32)), requires_grad=False)
            setattr(module, name, zeros.setdefault(id(weight), zero))
    if not fused_experts and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # type: ignore[operator]
    return model


def sample_ids(config: PreTrainedConfig) -> Int[Tensor, "sequence position"]:
    """Return random token ids, whose numbers of sequences and positions are no size in the configuration."""
    sizes = {value for value in vars(config).values() if isinstance(value, int)}
    n_sequences = next((n for n in SEQUENCES if n not in sizes), SEQUENCES[0])
    longest = longest_of_config(config) or POSITIONS[-1]
    shorter = range(min(POSITIONS[0], longest), 0, -1)
    n_positions = next((n for n in (*POSITIONS, *shorter) if n <= longest and n not in sizes | {n_sequences}), longest)
    generator = torch.Generator().manual_seed(0)
    lowest, highest = min(1, int(config.vocab_size) - 1), int(config.vocab_size)
    return torch.randint(lowest, highest, (n_sequences, n_positions), generator=generator)


def full_logits(model: nn.Module, ids: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position vocabulary"]:
    """Return the logits of a plain `transformers` model."""
    logits: Tensor = model(ids, use_cache=False).logits
    return logits


def logit_difference(
    logits: Float[Tensor, "*position vocabulary"], expected: Float[Tensor, "*position vocabulary"], dtype: torch.dtype
) -> float | None:
    """Return the largest difference of the logits of two models; None if it is not more than rounding.

    Args:
        logits: logits of one model.
        expected: logits of the other model.
        dtype: dtype in which the models compute.
    """
    # Logits of −inf, which mask tokens, are equal to themselves; so is NaN, which training reports.
    same = (logits == expected) | (logits.isnan() & expected.isnan())
    difference = float(torch.where(same, 0.0, (logits - expected).abs()).max())
    share = SAME_LOGITS if dtype in (torch.float32, torch.float64) else SAME_LOGITS_HALF
    largest = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())
    return None if difference <= share * largest else difference


@contextmanager
def refuse_failures(config: PreTrainedConfig, what: str) -> Iterator[None]:
    """Turn any error of a family's code into an InputError that names the family and the width."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the code of a family can raise anything
        family = type(config).__name__.removesuffix("Config")
        raise InputError(
            f"a {family} student of width {config.hidden_size} {what} ({short_reason(error)}); try another width or"
            " another teacher"
        ) from error


def short_reason(error: Exception) -> str:
    """Return the line of an error's message that has the reason, shortened; its class if there is no message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = lines[-1] if lines[0].endswith(":") else lines[0]  # a strict configuration names the field first
    return reason[:160]
