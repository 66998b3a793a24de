"""Sums over the tokens of a stretch of text: a batch, a block or everything that was read. They can be merged."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from tl_distill_floor.results.codes import Codes
from tl_distill_floor.results.contexts import FeatureContexts, UnfinishedContexts

PER_FEATURE = ("firing_count", "sum_act", "sum_act_sq", "sum_cost")
"""Sums with one number for each feature."""
SCALARS = (
    *("n_tokens", "n_cost_tokens", "n_masked", "ids_digest"),
    *("sampled_tokens", "sampled_sum_sq", "sampled_error_sq"),
)
"""Sums of one number."""
SUMS = (*PER_FEATURE, "sampled_sum", *SCALARS)
"""Fields that are added when sums are merged."""
DIGEST_MODULUS = 2**62
"""Digests of token ids are added modulo this number: the sum of two fits into 64 bits."""


@dataclass(frozen=True, eq=False)
class FeatureSums:
    """Sums over the tokens of a stretch of text, for one SAE. The fields mean the same as in `FeatureStats`."""

    n_tokens: int
    n_cost_tokens: int
    n_masked: int
    firing_count: Int64[np.ndarray, " feature"]
    sum_act: Float64[np.ndarray, " feature"]
    sum_act_sq: Float64[np.ndarray, " feature"]
    sum_cost: Float64[np.ndarray, " feature"]
    sampled_tokens: int
    sampled_sum: Float64[np.ndarray, " d_model"]
    sampled_sum_sq: float
    sampled_error_sq: float
    ids_digest: int = 0
    codes: tuple[Codes, ...] = ()
    """Kept codes in the order of the text, in parts that `joined_codes` concatenates. Empty if codes are not kept; if
    they are kept, but no sequence has been selected yet, there is a part without tokens."""
    contexts: UnfinishedContexts | None = None
    """Strongest contexts, which `finished_contexts` turns into arrays; None if the token ids are not known."""

    def __post_init__(self) -> None:
        n = len(self.firing_count)
        per_feature = [getattr(self, name) for name in PER_FEATURE]
        if any(array.shape != (n,) for array in per_feature):
            raise ValueError(f"every array of the statistics must have {n} features")
        if any(not np.isfinite(array).all() for array in (*per_feature, self.sampled_sum)):
            raise ValueError("the statistics hold a number that is not finite")
        if min(self.sum_cost.min(initial=0), self.sum_act_sq.min(initial=0), self.firing_count.min(initial=0)) < 0:
            raise ValueError("counts, squares and costs must be at least 0")
        if self.firing_count.max(initial=0) > self.n_tokens:
            raise ValueError("the number of tokens must be at least every firing count")
        if not 0 <= self.n_cost_tokens <= self.n_tokens:
            raise ValueError("costs must be measured on some of the counted tokens")
        n_code_tokens = sum(part.n_tokens for part in self.codes)
        if any(part.n_features != n for part in self.codes) or n_code_tokens > self.n_tokens:
            raise ValueError(f"the codes must be of {n} features and of at most {self.n_tokens} tokens")
        if self.contexts is not None and self.contexts.n_features != n:
            raise ValueError(f"the contexts must be of {n} features, got {self.contexts.n_features}")

    @property
    def n_read(self) -> int:
        """Number of tokens read, counted or not."""
        return self.n_tokens + self.n_masked

    def merge(self, other: "FeatureSums") -> "FeatureSums":
        """Return the sums over both stretches of text, `other` after `self`.

        Codes and contexts are kept only if both have them.

        Raises:
            ValueError: the numbers of features or of dimensions differ.
        """
        sums = {name: getattr(self, name) + getattr(other, name) for name in SUMS}
        sums["ids_digest"] %= DIGEST_MODULUS
        return FeatureSums(
            **sums,
            codes=self.codes + other.codes if self.codes and other.codes else (),
            contexts=None if self.contexts is None or other.contexts is None else self.contexts.merge(other.contexts),
        )

    def joined_codes(self) -> Codes | None:
        """Return the kept codes in one part; None if codes are not kept."""
        return Codes.concatenate(self.codes) if self.codes else None

    def finished_contexts(self) -> FeatureContexts | None:
        """Return the strongest contexts as arrays; None if the token ids are not known."""
        return None if self.contexts is None else self.contexts.finish()

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the sums as named arrays, to send them to another process. Values are not rounded."""
        arrays = {name: np.atleast_1d(np.asarray(getattr(self, name))) for name in SUMS}
        for number, part in enumerate(self.codes):
            arrays |= prefix_arrays(f"codes {number}", part)
        return arrays | prefix_arrays("contexts", self.finished_contexts())

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "FeatureSums":
        """Return the sums that `to_arrays` turned into arrays.

        Args:
            arrays: the arrays by name.

        Raises:
            KeyError, ValueError: an array is missing or invalid.
        """
        arrays = dict(arrays)
        parts: list[Codes] = []
        while of_part := take_arrays(f"codes {len(parts)}", arrays):
            parts.append(Codes(n_features=len(arrays["firing_count"]), **of_part))
        of_contexts = take_arrays("contexts", arrays)
        sums: dict[str, Any] = {name: arrays[name][0].item() if name in SCALARS else arrays[name] for name in SUMS}
        return cls(
            **sums,
            codes=tuple(parts),
            contexts=FeatureContexts(**of_contexts) if of_contexts else None,
        )


def pack_sums(sums: list[FeatureSums]) -> dict[str, np.ndarray]:
    """Return the sums of several SAEs as named arrays; `unpack_sums` is the inverse."""
    packed = {"n_saes": np.array([len(sums)])}
    for number, of_sae in enumerate(sums):
        packed |= {f"sae {number}.{name}": array for name, array in of_sae.to_arrays().items()}
    return packed


def unpack_sums(arrays: dict[str, np.ndarray]) -> list[FeatureSums]:
    """Return the sums that `pack_sums` turned into arrays."""
    arrays = dict(arrays)
    return [FeatureSums.from_arrays(take_arrays(f"sae {number}", arrays)) for number in range(int(arrays["n_saes"][0]))]


def prefix_arrays(prefix: str, record: object) -> dict[str, np.ndarray]:
    """Return the arrays of a dataclass instance as "prefix.field"; empty for None."""
    fields = dataclasses.fields(record) if dataclasses.is_dataclass(record) else ()
    return {f"{prefix}.{f.name}": v for f in fields if isinstance(v := getattr(record, f.name), np.ndarray)}


def take_arrays(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Remove the arrays named "prefix.field" from a dictionary and return them by field."""
    return {key.removeprefix(f"{prefix}."): arrays.pop(key) for key in list(arrays) if key.startswith(f"{prefix}.")}
