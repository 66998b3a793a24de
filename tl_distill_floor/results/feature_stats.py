"""What the package measures and predicts: frozen results, with shapes, units, validation, `save` and `load`."""

import dataclasses
import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tl_distill_floor.annotations import CostUnit
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.codes import Codes
from tl_distill_floor.results.contexts import FeatureContexts, merge_contexts
from tl_distill_floor.storage.versioned import load_arrays, resolve_file, save_arrays

STATS_FILE = "stats.safetensors"
MAX_BLOCKS = 64
SUMS = (
    *("n_tokens", "n_masked", "firing_count", "sum_act", "sum_act_sq", "sum_cost"),
    *("sampled_tokens", "sampled_sum", "sampled_sum_sq", "sampled_error_sq"),
)
UNIT_IN_WORDS = {
    "mse": "squared error per token, summed over the dimensions of the hook point",
    "nats": "nats per token",
}


@dataclass(frozen=True, eq=False)
class BlockSums:
    """Sums over consecutive stretches of text, which the bootstrap resamples and F against tokens is read from."""

    n_tokens: Int64[np.ndarray, " block"]
    firing_count: Int64[np.ndarray, "block feature"]
    cost: Float64[np.ndarray, "block feature"]
    """Summed over the block's tokens, not per token."""

    def coarser(self) -> "BlockSums":
        """Neighbours joined two by two: half the blocks, the same sums."""
        pairs = np.arange(0, len(self.n_tokens), 2)
        return BlockSums(*(np.add.reduceat(getattr(self, f.name), pairs, axis=0) for f in dataclasses.fields(self)))

    def followed_by(self, other: "BlockSums") -> "BlockSums":
        return BlockSums(
            *(np.concatenate([getattr(b, f.name) for b in (self, other)]) for f in dataclasses.fields(self))
        )


@dataclass(frozen=True, eq=False)
class FeatureStats:
    """What was measured of an SAE's features on a teacher's activations. One feature is one SAE latent."""

    model_name: str
    hook_name: str
    sae_name: str
    text_name: str
    d_model: int
    """Dimensions of the teacher's activation at the hook point."""
    n_tokens: int
    """Tokens that counted; special tokens and first positions do not."""
    n_masked: int
    """Tokens read but not counted."""
    firing_count: Int64[np.ndarray, " feature"]
    """Tokens on which the feature's activation is not 0."""
    sum_act: Float64[np.ndarray, " feature"]
    sum_act_sq: Float64[np.ndarray, " feature"]
    decoder_norm: Float64[np.ndarray, " feature"]
    sum_cost: Float64[np.ndarray, " feature"]
    """Summed over tokens: what the loss gains when the feature is dropped, in `cost_unit`."""
    cost_unit: CostUnit
    sampled_tokens: int
    """Tokens, drawn at random among those that counted, on which the SAE was decoded to see what it leaves out."""
    sampled_sum: Float64[np.ndarray, " d_model"]
    """Summed activation of the sampled tokens."""
    sampled_sum_sq: float
    """Summed squared norm of the sampled tokens' activations."""
    sampled_error_sq: float
    """Summed squared norm of what the SAE's reconstruction of the sampled tokens misses."""
    blocks: BlockSums
    expected_l0: float | None = None
    """Mean number of active features per token that the SAE's publisher states, where one is known."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What else decides the numbers: dtype, context, mask, how the teacher was loaded."""
    warnings: tuple[str, ...] = ()
    codes: Codes | None = None
    """The SAE's codes on whole sequences of the text, each kept with the probability `settings["share_of_codes"]`."""
    contexts: FeatureContexts | None = None
    neuronpedia_id: str | None = None
    """The SAE's name on Neuronpedia, such as "gpt2-small/8-res-jb", where it is known."""

    def __post_init__(self) -> None:
        n = len(self.firing_count)
        per_feature = (self.sum_act, self.sum_act_sq, self.decoder_norm, self.sum_cost)
        if any(a.shape != (n,) for a in per_feature) or self.blocks.cost.shape[1:] != (n,):
            raise ValueError(f"every array of the statistics must have {n} features")
        if any(not np.isfinite(a).all() for a in (*per_feature, self.blocks.cost, self.sampled_sum)):
            raise ValueError("the statistics hold a number that is not finite")
        if min(self.sum_cost.min(initial=0), self.sum_act_sq.min(initial=0), self.firing_count.min(initial=0)) < 0:
            raise ValueError("counts, squares and costs must be at least 0")
        if self.firing_count.max(initial=0) > self.n_tokens:
            raise ValueError("the number of tokens must be at least every firing count")
        if int(self.blocks.n_tokens.sum()) != self.n_tokens:
            raise ValueError("the blocks' tokens must add up to the number of tokens")
        if self.codes is not None and (self.codes.n_features != n or self.codes.n_tokens > self.n_tokens):
            raise ValueError(f"the codes must be of {n} features and of at most {self.n_tokens} tokens")
        if self.contexts is not None and self.contexts.n_features != n:
            raise ValueError(f"the contexts must be of {n} features, got {self.contexts.n_features}")

    @property
    def firing_rate(self) -> Float64[np.ndarray, " feature"]:
        return self.firing_count / max(self.n_tokens, 1)

    @property
    def l0(self) -> float:
        """Mean number of active features per token."""
        return float(self.firing_count.sum() / max(self.n_tokens, 1))

    @property
    def cost(self) -> Float64[np.ndarray, " feature"]:
        """What the loss gains per token when the feature is dropped, in `cost_unit`."""
        return self.sum_cost / max(self.n_tokens, 1)

    @property
    def fvu(self) -> float:
        """Fraction of the activation's variance that the SAE leaves unexplained: that part is not in the floor."""
        variance = self.sampled_sum_sq - float(self.sampled_sum @ self.sampled_sum) / max(self.sampled_tokens, 1)
        return self.sampled_error_sq / variance if variance > 0 else math.nan

    @property
    def variance_share(self) -> Float64[np.ndarray, " feature"]:
        """Var[a] / E[a²]: what is lost of a feature's cost when the output is its mean; 1 where it never fired."""
        square_of_mean = self.sum_act**2 / max(self.n_tokens, 1)
        fired = self.sum_act_sq > 0
        share: np.ndarray = 1.0 - np.divide(
            square_of_mean, self.sum_act_sq, out=np.zeros_like(square_of_mean), where=fired
        )
        return share

    def digest(self) -> str:
        """Differs when what a prediction stands on does."""
        arrays = [self.firing_count, self.sum_cost, self.blocks.cost, self.blocks.firing_count]
        found = hashlib.sha256()
        for array in (*arrays, *_arrays_of("codes", self.codes).values()):
            found.update(array.tobytes())
        return found.hexdigest()[:16]

    def alive(self, min_count: int = 1) -> Bool[np.ndarray, " feature"]:
        """Features that fired on at least `min_count` of the tokens."""
        return self.firing_count >= min_count

    def costs_and_rates(
        self, alive: Bool[np.ndarray, " feature"]
    ) -> tuple[Float64[np.ndarray, " feature"], Float64[np.ndarray, " feature"]]:
        """Return costs and firing rates as `allocate` takes them: 0 for features that are not alive."""
        # `allocate` takes rates below 1; a feature that fires on every token gets one just below.
        largest = 1.0 - 0.5 / max(self.n_tokens, 1)
        rates = np.minimum(self.firing_rate, largest)
        return np.where(alive, self.cost, 0.0), np.where(alive, rates, 0.0)

    def growth(self, min_count: int = 1) -> tuple[Int64[np.ndarray, " block"], Int64[np.ndarray, " block"]]:
        """(tokens, F): how many features had fired `min_count` times after that many tokens."""
        seen = np.cumsum(self.blocks.firing_count, axis=0) >= min_count
        return np.cumsum(self.blocks.n_tokens), seen.sum(axis=1, dtype=np.int64)

    def merge(self, other: "FeatureStats") -> "FeatureStats":
        """The statistics of both stretches of text together, `other` after `self`.

        Codes stay where both have them and kept the same share of their text: others would be no even sample of both.

        Raises:
            ValueError: they are of another model, hook point, SAE, unit or setting.
        """
        for name in ("model_name", "hook_name", "sae_name", "d_model", "cost_unit"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(f"{name} differs: {getattr(self, name)!r} and {getattr(other, name)!r}")
        of_one_text = {"text": None, "share_of_codes": None}
        if self.settings | of_one_text != other.settings | of_one_text:
            raise ValueError(f"settings differ: {self.settings} and {other.settings}")
        if not np.array_equal(self.decoder_norm, other.decoder_norm):
            raise ValueError("the decoders differ, so the features are not the same")
        blocks = self.blocks.followed_by(other.blocks)
        while len(blocks.n_tokens) > MAX_BLOCKS:
            blocks = blocks.coarser()
        return dataclasses.replace(
            self,
            **{name: getattr(self, name) + getattr(other, name) for name in SUMS},
            text_name=" + ".join(dict.fromkeys([self.text_name, other.text_name])),
            blocks=blocks,
            warnings=tuple(dict.fromkeys([*self.warnings, *other.warnings])),
            codes=_codes_of_both(self, other),
            contexts=merge_contexts(self.contexts, other.contexts),
        )

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file; a directory gets `stats.safetensors`. Returns the file's path."""
        arrays = {f.name: v for f in dataclasses.fields(self) if isinstance(v := getattr(self, f.name), np.ndarray)}
        scalars = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in arrays and f.name not in ("blocks", "codes", "contexts")
        }
        for name in ("blocks", "codes", "contexts"):
            arrays |= _arrays_of(name, getattr(self, name))
        return save_arrays(resolve_file(path, STATS_FILE), "feature-stats", arrays, scalars)

    @classmethod
    def load(cls, path: str | Path) -> "FeatureStats":
        """Read what `save` wrote, from the file or its directory.

        Raises:
            InputError: the file is missing, truncated, foreign, or of a newer version.
        """
        file = resolve_file(path, STATS_FILE)
        arrays, scalars = load_arrays(file, "feature-stats")
        try:
            blocks = BlockSums(**_taken("blocks", arrays))
            of_codes = _taken("codes", arrays)
            codes = Codes(n_features=len(arrays["firing_count"]), **of_codes) if of_codes else None
            contexts = FeatureContexts(**of_contexts) if (of_contexts := _taken("contexts", arrays)) else None
            parts = {"blocks": blocks, "codes": codes, "contexts": contexts, "warnings": tuple(scalars["warnings"])}
            return cls(**{**arrays, **scalars, **parts})
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise InputError(f"{file} does not hold complete feature statistics ({error}); measure again") from error


def _arrays_of(name: str, record: BlockSums | Codes | FeatureContexts | None) -> dict[str, np.ndarray]:
    """A record's arrays under the names that they have in a file; none of no record."""
    fields = () if record is None else dataclasses.fields(record)
    return {f"{name}.{f.name}": v for f in fields if isinstance(v := getattr(record, f.name), np.ndarray)}


def _taken(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A record's arrays under their own names, removed from those of a file."""
    return {key.removeprefix(f"{name}."): arrays.pop(key) for key in list(arrays) if key.startswith(f"{name}.")}


def _codes_of_both(one: FeatureStats, other: FeatureStats) -> Codes | None:
    shares = {stats.settings.get("share_of_codes") for stats in (one, other)}
    if one.codes is None or other.codes is None or len(shares) > 1:
        return None
    following, last = other.codes, int(one.codes.sequence.max(initial=-1))
    if following.sequence.min(initial=last + 1) <= last:  # another text, whose sequences are counted from 0 again
        following = dataclasses.replace(following, sequence=following.sequence + last + 1)
    return one.codes.followed_by(following)
