"""Measured statistics of an SAE's features."""

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tl_distill_floor.annotations import CostUnit
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.block_sums import BlockSums
from tl_distill_floor.results.codes import Codes
from tl_distill_floor.results.contexts import FeatureContexts
from tl_distill_floor.results.feature_sums import SUMS, FeatureSums, prefix_arrays, take_arrays
from tl_distill_floor.results.record_files import Displayable
from tl_distill_floor.results.teacher_fingerprint import TeacherFingerprint
from tl_distill_floor.storage.versioned import load_arrays, resolve_file, save_arrays

STATS_FILE = "stats.safetensors"
RECORDS = ("blocks", "codes", "contexts", "fingerprint")
"""Fields of `FeatureStats` that are records of arrays."""
WARN_FVU = 0.5
"""Fraction of variance unexplained above which a measurement warns that the SAE may not fit."""
RESIDUAL_STREAM = re.compile(r"blocks\.\d+\.hook_(in|out|resid_pre|resid_mid|resid_post)")
"""Names of the hook points of the residual stream."""
PRIOR_FIRINGS = 4
"""Tokens on which a feature must fire for its own costs to count as much as those of all features together."""


@dataclass(frozen=True, eq=False)
class FeatureStats(Displayable):
    """Statistics of an SAE's features, measured on a teacher's activations. A feature is one SAE latent.

    Example:
        >>> stats = measure("tiny-prose", "tiny-prose-sae", n_tokens=20_000)  # doctest: +SKIP
        >>> stats.cost.argmax(), stats.l0, stats.fvu  # doctest: +SKIP
    """

    model_name: str
    hook_name: str
    sae_name: str
    text_name: str
    d_model: int
    """Dimensions of the teacher's activation at the hook point."""
    n_tokens: int
    """Counted tokens: all but special tokens and the first of each sequence."""
    n_cost_tokens: int
    """Those of them on which costs are measured: the ones of some sequences, spread over the text at random."""
    n_masked: int
    """Tokens that were read, but not counted."""
    firing_count: Int64[np.ndarray, " feature"]
    """Tokens on which the feature's activation is not 0."""
    sum_act: Float64[np.ndarray, " feature"]
    """Activation, summed over tokens."""
    sum_act_sq: Float64[np.ndarray, " feature"]
    """Squared activation, summed over tokens."""
    decoder_norm: Float64[np.ndarray, " feature"]
    """Norm of the feature's decoder row, which need not be 1."""
    sum_cost: Float64[np.ndarray, " feature"]
    """Increase of the loss when the feature is removed, summed over the tokens on which costs are measured, in
    `cost_unit`."""
    cost_unit: CostUnit
    """Unit of the costs: "nats", or "mse" for squared error summed over the dimensions of the hook point."""
    sampled_tokens: int
    """Random sample of the counted tokens on which the SAE's reconstruction error was measured."""
    sampled_sum: Float64[np.ndarray, " d_model"]
    """Activation, summed over the sampled tokens."""
    sampled_sum_sq: float
    """Squared norm of the activation, summed over the sampled tokens."""
    sampled_error_sq: float
    """Squared norm of the SAE's reconstruction error, summed over the sampled tokens."""
    blocks: BlockSums
    """The sums over consecutive blocks of the text, at most `MAX_BLOCKS`."""
    expected_l0: float | None = None
    """Mean number of active features per token as stated by the SAE's publisher; None if not stated."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Everything else that decides the numbers: cost method, context size, mask, how the teacher was loaded."""
    warnings: tuple[str, ...] = ()
    codes: Codes | None = None
    """Codes of a sample of the text's sequences, each kept with probability `settings["share_of_codes"]`."""
    contexts: FeatureContexts | None = None
    """Strongest contexts of each feature."""
    fingerprint: TeacherFingerprint | None = None
    """What the teacher computes for fixed token ids; None in older files, and for cached activations."""
    ids_digest: int = 0
    """Digest of the token ids that were read, see `digest_sequences`; 0 if it is not known."""
    neuronpedia_id: str | None = None
    """The SAE's identifier on Neuronpedia, such as "gpt2-small/8-res-jb"; None if not known."""
    teacher_width: int | None = None
    """Width of the teacher, which may differ from `d_model`; None in older files, and for cached activations."""

    def __post_init__(self) -> None:
        n = len(self.firing_count)
        if self.decoder_norm.shape != (n,) or self.blocks.cost.shape[1:] != (n,):
            raise ValueError(f"every array of the statistics must have {n} features")
        if not (np.isfinite(self.decoder_norm).all() and np.isfinite(self.blocks.cost).all()):
            raise ValueError("the statistics hold a number that is not finite")
        _ = self.sums  # checks the sums
        if int(self.blocks.n_tokens.sum()) != self.n_tokens:
            raise ValueError("the blocks' tokens must add up to the number of tokens")
        if int(self.blocks.n_cost_tokens.sum()) != self.n_cost_tokens:
            raise ValueError("the blocks' tokens with costs must add up to their number")

    def __repr__(self) -> str:
        """Return what was measured and on how much text, in one line."""
        return (
            f"FeatureStats({self.model_name}, {self.hook_name}, {self.sae_name}: {int(self.alive().sum()):,} of"
            f" {len(self.firing_count):,} features alive on {self.n_tokens:,} tokens, L0 {self.l0:.1f}, cost in"
            f" {self.cost_unit})"
        )

    @classmethod
    def from_sums(cls, sums: FeatureSums, blocks: BlockSums, identity: Mapping[str, Any]) -> "FeatureStats":
        """Return the statistics of a stretch of text.

        Args:
            sums: sums over the text.
            blocks: the same sums by block.
            identity: the fields that say what was measured, `decoder_norm` and `cost_unit`.
        """
        return cls(**identity, **_sum_fields(sums, blocks))

    @property
    def width(self) -> int:
        """Width of the teacher; that of its activation if it is not known."""
        return self.teacher_width or self.d_model

    @property
    def reads_residual_stream(self) -> bool:
        """Whether the SAE reads the residual stream, which a student narrows, in all of the teacher's dimensions."""
        return self.d_model == self.width and RESIDUAL_STREAM.fullmatch(self.hook_name) is not None

    @property
    def sums(self) -> FeatureSums:
        """The sums over tokens, as they are merged."""
        codes = () if self.codes is None else (self.codes,)
        return FeatureSums(**{name: getattr(self, name) for name in SUMS}, codes=codes, contexts=self.contexts)

    @property
    def firing_rate(self) -> Float64[np.ndarray, " feature"]:
        """Fraction of tokens on which the feature's activation is not 0."""
        return self.firing_count / max(self.n_tokens, 1)

    @property
    def l0(self) -> float:
        """Mean number of active features per token."""
        return float(self.firing_count.sum() / max(self.n_tokens, 1))

    @property
    def cost(self) -> Float64[np.ndarray, " feature"]:
        """Increase of the loss per token when the feature is removed, in `cost_unit`."""
        return self.sum_cost / max(self.n_cost_tokens, 1)

    @property
    def fvu(self) -> float:
        """Fraction of the activation's variance that the SAE does not explain, which the floor does not include."""
        variance = self.sampled_sum_sq - float(self.sampled_sum @ self.sampled_sum) / max(self.sampled_tokens, 1)
        return self.sampled_error_sq / variance if variance > 0 else math.nan

    @property
    def variance_share(self) -> Float64[np.ndarray, " feature"]:
        """Var[a] / E[a²]: the share of the cost lost if the feature is replaced by its mean; 1 if it never fires."""
        square_of_mean = self.sum_act**2 / max(self.n_tokens, 1)
        fired = self.sum_act_sq > 0
        share: np.ndarray = 1.0 - np.divide(
            square_of_mean, self.sum_act_sq, out=np.zeros_like(square_of_mean), where=fired
        )
        return share

    @property
    def error_weight(self) -> Float64[np.ndarray, " feature"]:
        """Cost of a squared error in what each feature writes: its cost divided by E[a²]·‖w‖²; 0 if it writes nothing.

        Features of which costs were measured on few tokens, or on none, are shrunk towards the weight of all features
        together, as if each had fired on 4 more tokens with this weight. With a weight of 0, what is trained to restore
        features would restore these at random.
        """
        square = self.sum_act_sq * self.decoder_norm**2
        cost = self.cost * self.n_tokens
        of_all = cost.sum() / square.sum() if square.sum() > 0 else 0.0
        # Firings on the tokens whose costs were measured, about.
        firings = self.firing_count * (self.n_cost_tokens / max(self.n_tokens, 1))
        own_share = firings / (firings + PRIOR_FIRINGS)
        own = np.divide(cost, square, out=np.zeros_like(square), where=square > 0)
        weight: np.ndarray = np.where(square > 0, own_share * own + (1.0 - own_share) * of_all, 0.0)
        return weight

    def digest(self) -> str:
        """Return a hash of everything that a prediction depends on: 16 hexadecimal digits."""
        arrays = [self.firing_count, self.sum_cost, self.blocks.cost, self.blocks.firing_count]
        hashed = hashlib.sha256()
        for array in (*arrays, *prefix_arrays("codes", self.codes).values()):
            hashed.update(np.ascontiguousarray(array).data)
        return hashed.hexdigest()[:16]

    def alive(self, min_count: int = 1) -> Bool[np.ndarray, " feature"]:
        """Return which features fired on at least `min_count` tokens."""
        return self.firing_count >= min_count

    def costs_and_rates(
        self, alive: Bool[np.ndarray, " feature"]
    ) -> tuple[Float64[np.ndarray, " feature"], Float64[np.ndarray, " feature"]]:
        """Return costs and firing rates as `allocate` takes them: 0 for features that are not alive."""
        # `allocate` takes rates below 1; a feature that fires on every token gets one just below.
        largest = 1.0 - 0.5 / max(self.n_tokens, 1)
        rates = np.minimum(self.firing_rate, largest)
        return np.where(alive, self.cost, 0.0), np.where(alive, rates, 0.0)

    @cached_property
    def independent_blocks(self) -> BlockSums:
        """The sums over blocks of the text that are long enough to be about independent, for the bootstrap."""
        return self.blocks.independent()

    def growth(self, min_count: int = 1) -> tuple[Int64[np.ndarray, " block"], Int64[np.ndarray, " block"]]:
        """Count alive features as more text is read.

        Args:
            min_count: a feature is alive if it fired on at least this many tokens.

        Returns:
            Numbers of tokens [block], and how many features were alive after that many [block].
        """
        count, n_alive = np.zeros_like(self.firing_count), []
        for of_block in self.blocks.firing_count:
            count += of_block
            n_alive.append(int((count >= min_count).sum()))
        return np.cumsum(self.blocks.n_tokens), np.array(n_alive, dtype=np.int64)

    def merge(self, other: "FeatureStats") -> "FeatureStats":
        """Merge with the statistics of another text, or of a later part of the same text.

        Codes are kept only if both measurements kept the same share of their text; otherwise they would not be a
        uniform sample of both.

        Args:
            other: statistics of the same model, hook point and SAE, measured with the same settings.

        Returns:
            The statistics of both texts, `other` after `self`.

        Raises:
            ValueError: the model, hook point, SAE, unit or a setting differs, or both read the same text, whose tokens
                would count twice.

        Example:
            >>> both = measure(model, sae, text).merge(measure(model, sae, other_text))  # doctest: +SKIP
        """
        for name in ("model_name", "hook_name", "sae_name", "d_model", "cost_unit"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(f"{name} differs: {getattr(self, name)!r} and {getattr(other, name)!r}")
        _check_same_settings(self.settings, other.settings)
        if not np.array_equal(self.decoder_norm, other.decoder_norm):
            raise ValueError("the decoders differ, so the features are not the same")
        if self.ids_digest and self.ids_digest == other.ids_digest:
            raise ValueError("both are statistics of the same token ids, which would count twice; measure another text")
        texts, others = _texts_of(self.settings), _texts_of(other.settings)
        if set(texts) & set(others):  # a measurement begins at the start of its text
            raise ValueError(
                f"both begin with the same tokens of {other.text_name}, which would count twice; measure another text,"
                " or more tokens of this one"
            )
        sums = self.sums.merge(dataclasses.replace(other.sums, codes=_codes_to_append(self, other)))
        return dataclasses.replace(
            self,
            **_sum_fields(sums, BlockSums.concatenate([self.blocks, other.blocks])),
            text_name=" + ".join(dict.fromkeys([self.text_name, other.text_name])),
            settings=self.settings | ({"text": [*texts, *others]} if texts and others else {}),
            warnings=tuple(dict.fromkeys([*self.warnings, *other.warnings])),
        )

    def save(self, path: str | Path) -> Path:
        """Write the statistics to one safetensors file.

        Args:
            path: the file, or a directory, which gets `stats.safetensors`.

        Returns:
            The file's path.
        """
        arrays = {f.name: v for f in dataclasses.fields(self) if isinstance(v := getattr(self, f.name), np.ndarray)}
        scalars = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in arrays and f.name not in RECORDS
        }
        for name in RECORDS:
            arrays |= prefix_arrays(name, getattr(self, name))
        return save_arrays(resolve_file(path, STATS_FILE), "feature-stats", arrays, scalars)

    @classmethod
    def load(cls, path: str | Path) -> "FeatureStats":
        """Read statistics that `save` wrote.

        Args:
            path: the file or its directory.

        Raises:
            InputError: the file is missing, damaged, of another kind, or of a newer version.
        """
        file = resolve_file(path, STATS_FILE)
        arrays, scalars = load_arrays(file, "feature-stats")
        try:
            # Older versions measured costs on all tokens.
            scalars.setdefault("n_cost_tokens", scalars["n_tokens"])
            of_blocks = take_arrays("blocks", arrays)
            blocks = BlockSums(**{"n_cost_tokens": of_blocks["n_tokens"], **of_blocks})
            of_codes, of_contexts, of_teacher = (
                take_arrays(name, arrays) for name in ("codes", "contexts", "fingerprint")
            )
            codes = Codes(n_features=len(arrays["firing_count"]), **of_codes) if of_codes else None
            contexts = FeatureContexts(**of_contexts) if of_contexts else None
            parts = {
                "blocks": blocks,
                "codes": codes,
                "contexts": contexts,
                "fingerprint": TeacherFingerprint(**of_teacher) if of_teacher else None,
                "warnings": tuple(scalars["warnings"]),
            }
            return cls(**{**arrays, **scalars, **parts})
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise InputError(f"{file} does not hold complete feature statistics ({error}); measure again") from error


def _sum_fields(sums: FeatureSums, blocks: BlockSums) -> dict[str, Any]:
    """Return the fields of `FeatureStats` that come from sums."""
    fields = {name: getattr(sums, name) for name in SUMS}
    return fields | {"blocks": blocks, "codes": sums.joined_codes(), "contexts": sums.finished_contexts()}


def different_settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that differ, with both values as "first and second".

    Args:
        first: settings of some statistics; older versions measured costs in all sequences.
        second: those of others.

    Example:
        >>> different_settings({"cost": "energy", "sequences_per_cost": 4}, {"cost": "energy"})
        {'sequences_per_cost': '4 and 1'}
    """
    one, other = ({"sequences_per_cost": 1, **settings} for settings in (first, second))
    names = sorted({*one, *other})
    return {name: f"{one.get(name)} and {other.get(name)}" for name in names if one.get(name) != other.get(name)}


def _check_same_settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Raise a ValueError if statistics with these settings cannot be merged."""
    pairs = different_settings(first, second)
    for name in ("text", "share_of_codes"):
        pairs.pop(name, None)
    if pairs:
        advice = "n_cost_tokens as large as n_tokens" if list(pairs) == ["sequences_per_cost"] else "the same options"
        listed = ", ".join(f"{name}: {values}" for name, values in pairs.items())
        raise ValueError(f"settings differ ({listed}); measure both with {advice}")


def _texts_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the fingerprints of the texts that were measured: several of merged statistics, none of older ones."""
    texts = settings.get("text", ())
    return (texts,) if isinstance(texts, str) else tuple(texts)


def _codes_to_append(stats: FeatureStats, other: FeatureStats) -> tuple[Codes, ...]:
    """Return the codes of `other` as they follow those of `stats`; empty if the merged statistics keep no codes."""
    shares = {each.settings.get("share_of_codes") for each in (stats, other)}
    if stats.codes is None or other.codes is None or len(shares) > 1:
        return ()
    codes, last = other.codes, int(stats.codes.sequence.max(initial=-1))
    if codes.sequence.min(initial=last + 1) <= last:  # another text, whose sequences are numbered from 0 again
        codes = dataclasses.replace(codes, sequence=codes.sequence + last + 1)
    return (codes,)
