"""`LogitMap`: what a model does to its logits after the unembedding; `LazyLogits`: logits computed in chunks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.context_lengths import cut_to_context
from tl_distill_floor.sources.devices import device_of

SAMPLE_SEQUENCES, SAMPLE_TOKENS = 4, 16
"""Sequences, and tokens of each, that a map is verified on."""
PROBE_VALUES = (1e-3, 0.1, 1.0, 5.0, 20.0, 100.0, 1e3, 1e6)
"""Absolute values that replace the output of the unembedding, to measure the map: from no effect of a cap to its limit.
The first gives the scale, the last the cap."""
LOGITS_PER_CHUNK_CPU, LOGITS_PER_CHUNK_GPU = 2**20, 2**26
"""Logits per chunk: about what the caches of a CPU hold, and enough to keep a GPU busy."""
MIN_TOKENS_PER_CHUNK = 256
"""Tokens per chunk for the largest vocabularies; each chunk reads the full unembedding."""
MEASURED_TOLERANCE = 0.01
"""Relative difference within which a measured scale or cap is taken to be a value of the configuration."""
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Largest error of a map relative to the largest logit, by dtype."""
HALF_PRECISION_TOLERANCE = 2e-2
"""The same for other dtypes."""
OUTPUTS_NOT_FINITE = "the teacher's logits hold NaN or Inf; run it with --dtype fp32, or use --cost energy"
"""Message about a teacher whose forward pass overflows, or whose weights are not finite."""


@dataclass(frozen=True)
class LogitMap:
    """The map from the output of an unembedding, u, to the logits: scale · u, or cap · tanh(scale · u / cap).

    Gemma 2 caps its logits, Granite divides them, and Cohere multiplies them.

    Example:
        >>> LogitMap(scale=0.5, cap=2.0)(torch.tensor([1e6])).tolist()
        [2.0]
    """

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, unembedded: Float[Tensor, "*position vocabulary"]) -> Float[Tensor, "*position vocabulary"]:
        """Return the logits.

        Args:
            unembedded: output of the unembedding.
        """
        scaled = unembedded if self.scale == 1.0 else unembedded * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap


class LazyLogits(NamedTuple):
    """Logits of some tokens that are computed when they are needed."""

    hidden: Float[Tensor, "token d"]
    """Last hidden states."""
    unembed: nn.Module
    """Unembedding, from last hidden states to logits, before they are scaled or capped."""
    logit_map: LogitMap = LogitMap()
    """Scale and cap of the logits."""

    def compute(self, rows: slice) -> Float[Tensor, "token vocabulary"]:
        """Return the logits of some of the tokens."""
        return self.logits_of(self.hidden[rows])

    def logits_of(self, hidden: Float[Tensor, "some_token d"]) -> Float[Tensor, "some_token vocabulary"]:
        """Return the logits of given last hidden states."""
        unembedded: Tensor = self.unembed(hidden)
        return self.logit_map(unembedded)


def tokens_per_chunk(vocabulary: int, device: torch.device) -> int:
    """Return the number of tokens whose logits are computed at a time.

    Args:
        vocabulary: tokens of the vocabulary.
        device: device of the logits.
    """
    n_logits = LOGITS_PER_CHUNK_CPU if device.type == "cpu" else LOGITS_PER_CHUNK_GPU
    return max(MIN_TOKENS_PER_CHUNK, n_logits // vocabulary)


def ids_to_check(
    model: HookedModel | nn.Module, ids: Int[Tensor, "sequence position"] | None, vocabulary: int
) -> Int[Tensor, "sampled_sequence sampled_position"]:
    """Return the token ids that a model's logits are verified on, no more than the model reads at a time.

    Args:
        model: the model, whose device is used.
        ids: sequences of a real text; random tokens if None.
        vocabulary: number of tokens of the vocabulary.
    """
    device = device_of(model)
    if ids is None:
        shape, generator = (SAMPLE_SEQUENCES, cut_to_context(SAMPLE_TOKENS, model)), torch.Generator().manual_seed(0)
        return torch.randint(0, vocabulary, shape, generator=generator).to(device)
    return ids[:SAMPLE_SEQUENCES, :SAMPLE_TOKENS].to(device)


@torch.no_grad()
def measure_logit_map(
    model: HookedModel | nn.Module,
    unembed: nn.Module,
    logits_of: Callable[[Int[Tensor, "sequence position"]], Float[Tensor, "sequence position vocabulary"]],
    ids: Int[Tensor, "sequence position"],
) -> LogitMap:
    """Measure the map from the output of a model's unembedding to its logits, and verify it.

    The output of the unembedding is replaced by known values between two ends. The logits of the model then show its
    scale and its cap, however far its own logits are from the cap. The map is verified on these values and on real
    tokens.

    Args:
        model: the model.
        unembed: its unembedding.
        logits_of: the model's logits of some token ids.
        ids: token ids of a few real sequences.

    Raises:
        InputError: the model changes its logits in another way.

    References:
        Gemma Team 2024, "Gemma 2", section 2, logit soft-capping.
    """
    with _unembedding_output(unembed) as outputs:
        logits = logits_of(ids)
    if len(outputs) != 1 or outputs[0].shape != logits.shape:
        raise InputError(
            f"{type(model).__name__} has logits of another shape than its unembedding, {tuple(logits.shape)}, which is"
            " not supported; use another teacher"
        )
    probe = _probe_values(outputs[0])
    with _unembedding_output(unembed, probe):
        probed = logits_of(ids)
    logit_map = _measured_map(model, probe, probed)
    for unembedded, expected in ((outputs[0], logits), (probe, probed)):
        check_same_logits(model, logit_map(unembedded), expected)
    return logit_map


def check_same_logits(
    model: HookedModel | nn.Module, logits: Float[Tensor, "..."], expected: Float[Tensor, "..."]
) -> None:
    """Raise an InputError if logits differ by more than rounding from those of the full model.

    Args:
        model: the model.
        logits: logits that are computed from its last hidden states.
        expected: logits that the model gives.
    """
    precision = max((logits.dtype, expected.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    tolerance = TOLERANCES.get(precision, HALF_PRECISION_TOLERANCE)
    finite = expected.isfinite()
    largest = float(expected[finite].abs().max()) if finite.any() else 0.0
    same = logits.shape == expected.shape and torch.equal(finite, logits.isfinite())
    # The largest logits of the verification are 10⁶. The small ones are compared by their own size.
    bound = tolerance * expected[finite].double().abs().clamp(min=min(largest, 1.0)) if same else None
    if bound is None or bool(((logits[finite].double() - expected[finite].double()).abs() > bound).any()):
        raise InputError(
            f"{type(model).__name__} changes its logits after the unembedding in a way that is neither a scale nor a"
            " cap, which is not supported; use another teacher"
        )


def _measured_map(
    model: HookedModel | nn.Module, probe: Float[Tensor, "*position vocabulary"], logits: Float[Tensor, "..."]
) -> LogitMap:
    """Return the map that explains the smallest and the largest value of the probe."""
    size, response = probe.double().abs(), (logits.double() * probe.sign()).double()
    smallest, largest = size == size.min(), size == size.max()
    scale = float((response[smallest] / size[smallest]).median())
    end = float(response[largest].median())
    known = _configured_values(model)
    scale = _nearest(scale, [1.0, *known, *(1 / value for value in known)])
    is_linear = abs(end - scale * float(size.max())) <= MEASURED_TOLERANCE * abs(end)
    return LogitMap(scale, None if is_linear else _nearest(end, known))


def _configured_values(model: HookedModel | nn.Module) -> list[float]:
    """Return the numbers above 0 in a model's configuration."""
    config = getattr(getattr(model, "original_model", model), "config", None) or getattr(model, "cfg", None)
    values = vars(config).values() if config is not None else ()
    return [float(value) for value in values if isinstance(value, int | float) and value > 0]


def _nearest(measured: float, values: list[float]) -> float:
    """Return the value nearest to a measured one, or the measured one if none is within the tolerance."""
    nearest = min(values, key=lambda value: abs(value - measured), default=measured)
    return nearest if abs(nearest - measured) <= MEASURED_TOLERANCE * abs(measured) else measured


def _probe_values(like: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return a tensor of the shape of `like` that holds the values of `PROBE_VALUES`, with both signs."""
    largest = torch.finfo(like.dtype).max / 100
    values = torch.tensor(
        [sign * min(value, largest) for value in PROBE_VALUES for sign in (1, -1)], device=like.device
    )
    return values[torch.arange(like.numel(), device=like.device) % len(values)].view(like.shape).to(like.dtype)


@contextmanager
def _unembedding_output(unembed: nn.Module, replacement: Tensor | None = None) -> Iterator[list[Tensor]]:
    """Yield a list that receives the output of the unembedding, which `replacement` replaces."""
    outputs: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor | None:
        outputs.append(output.detach().clone())
        return replacement

    handle = unembed.register_forward_hook(hook)
    try:
        yield outputs
    finally:
        handle.remove()
