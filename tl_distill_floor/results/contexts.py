"""`FeatureContexts`: the text around the tokens on which each feature fires most strongly."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, Int64, UInt8

N_CONTEXTS = 4
"""Number of contexts that are kept for each feature."""
BEFORE, AFTER = 12, 5
"""Number of tokens that a window has before and after the token on which the feature fires."""
PEAK = BEFORE
"""Index in a window of the token on which the feature fires."""
WINDOW = BEFORE + 1 + AFTER
"""Number of tokens of a window."""
NO_TOKEN = -1
"""Value of a missing token id or sequence index."""
DTYPES = dict.fromkeys(("window", "promoted", "token_id"), "int32") | {
    "activation": "float32",
    "sequence": "int64",
    "token_start": "int64",
    "token_bytes": "uint8",
}
"""Data type of each array."""


@dataclass(frozen=True, eq=False)
class FeatureContexts:
    """The strongest contexts of each feature, at most one from each sequence."""

    activation: Float32[np.ndarray, "feature context"]
    """Absolute activation in falling order; 0 if the feature fired in fewer sequences."""
    sequence: Int64[np.ndarray, "feature context"]
    """Index of the sequence in the text, from 0; -1 if there is no context."""
    window: Int32[np.ndarray, "feature context window"]
    """Token ids; the feature fires on the one at index `PEAK`. -1 beyond the ends of the sequence."""
    promoted: Int32[np.ndarray, "feature promoted"]
    """Ids of the tokens whose logits the feature's decoder row raises most, in falling order.

    Only older files hold them; otherwise [feature, 0], and `PromotedTokens` has those of the features that are shown. A
    row is -1 if its decoder row is zero or the feature never fired."""
    token_id: Int32[np.ndarray, " used"]
    """Ids of the tokens whose strings are stored, in rising order; empty before `with_strings`."""
    token_start: Int64[np.ndarray, " bounds"]
    """Start of each string [used + 1]: `token_id[i]` has `token_bytes[token_start[i]:token_start[i + 1]]`."""
    token_bytes: UInt8[np.ndarray, " byte"]
    """The strings in UTF-8, one after the other."""

    def __post_init__(self) -> None:
        """Check shapes, data types and values.

        Raises:
            ValueError: one of them does not fit.
        """
        for name, dtype in DTYPES.items():
            if getattr(self, name).dtype != dtype:
                raise ValueError(f"contexts: {name} must be of {dtype}, got {getattr(self, name).dtype}")
        shape = self.activation.shape
        if len(shape) != 2 or self.sequence.shape != shape or self.window.shape != (*shape, WINDOW):
            raise ValueError("contexts: every activation must have a sequence and a window")
        if self.promoted.ndim != 2 or len(self.promoted) != len(self.activation):
            raise ValueError("contexts: every feature must have a row of promoted tokens")
        if not np.isfinite(self.activation).all() or (self.activation < 0).any():
            raise ValueError("contexts: activations must be finite numbers of at least 0")
        if (self.activation[:, 1:] > self.activation[:, :-1]).any():
            raise ValueError("contexts: the activations of a feature must fall")
        if ((self.activation > 0) != (self.sequence >= 0)).any() or self.sequence.min(initial=NO_TOKEN) < NO_TOKEN:
            raise ValueError("contexts: an activation above 0 must have a sequence, and an activation of 0 must not")
        if min(self.window.min(initial=NO_TOKEN), self.promoted.min(initial=NO_TOKEN)) < NO_TOKEN:
            raise ValueError("contexts: token ids are counted from 0")
        self._check_strings()

    def _check_strings(self) -> None:
        """Raise a ValueError if the ids and their strings do not fit together."""
        ids, starts = self.token_id, self.token_start
        if ids.ndim != 1 or (ids[1:] <= ids[:-1]).any():
            raise ValueError("contexts: token_id must rise")
        if starts.shape != (len(ids) + 1,) or self.token_bytes.ndim != 1 or (starts[1:] < starts[:-1]).any():
            raise ValueError("contexts: every token_id must have a string")
        if starts[0] != 0 or starts[-1] != len(self.token_bytes):
            raise ValueError("contexts: token_start must start at 0 and end at the number of bytes")

    @property
    def n_features(self) -> int:
        """Number of features."""
        return len(self.activation)

    @property
    def has_strings(self) -> bool:
        """Whether the strings of tokens are stored."""
        return len(self.token_id) > 0

    @classmethod
    def empty(cls, n_features: int) -> "FeatureContexts":
        """Return the contexts of features that never fired.

        Args:
            n_features: number of features.

        Example:
            >>> FeatureContexts.empty(3).n_contexts(0)
            0
        """
        return cls.from_arrays(
            np.zeros((n_features, N_CONTEXTS), dtype=np.float32),
            np.full((n_features, N_CONTEXTS), NO_TOKEN, dtype=np.int64),
            np.full((n_features, N_CONTEXTS, WINDOW), NO_TOKEN, dtype=np.int32),
        )

    @classmethod
    def from_arrays(
        cls,
        activation: Float32[np.ndarray, "feature context"],
        sequence: Int64[np.ndarray, "feature context"],
        window: Int32[np.ndarray, "feature context window"],
    ) -> "FeatureContexts":
        """Create contexts without strings and without promoted tokens.

        Args:
            activation: see the field.
            sequence: see the field.
            window: see the field.

        Example:
            >>> FeatureContexts.from_arrays(activation, sequence, window).has_strings  # doctest: +SKIP
            False
        """
        return cls(activation, sequence, window, np.zeros((len(activation), 0), dtype=np.int32), *_encode_strings({}))

    def merge(self, other: "FeatureContexts") -> "FeatureContexts":
        """Keep the strongest contexts of two stretches of text; of equal ones, those of `self` come first.

        If the sequence indices of `other` do not all follow those of `self`, they are counted on from its last one.
        Strings are kept if both have them, promoted tokens if either does.

        Args:
            other: contexts of the same features in other sequences.

        Returns:
            The merged contexts.

        Raises:
            ValueError: the numbers of features or of contexts differ.

        Example:
            >>> contexts.merge(contexts_of_more_text)  # doctest: +SKIP
        """
        if self.activation.shape != other.activation.shape:
            raise ValueError(
                f"contexts have different shapes [feature, context]: {self.activation.shape}, {other.activation.shape}"
            )
        merged = [np.copy(array) for array in (self.activation, self.sequence, self.window)]
        rows = np.flatnonzero(other.activation[:, 0] > self.activation[:, -1])
        added = (other.activation[rows], _renumbered_sequences(self, other)[rows], other.window[rows])
        candidates = [np.concatenate([one[rows], two], axis=1) for one, two in zip(merged, added, strict=True)]
        order = np.argsort(-candidates[0], axis=1, kind="stable")[:, : self.activation.shape[1]]
        for array, values in zip(merged, candidates, strict=True):
            array[rows] = values[np.arange(len(rows))[:, None], order]
        promoted = self.promoted if self.promoted.shape[1] else other.promoted
        if self.promoted.shape == other.promoted.shape:
            promoted = np.where(self.promoted == NO_TOKEN, other.promoted, self.promoted)
        contexts = FeatureContexts.from_arrays(*merged).with_promoted(promoted)
        if not all(part.has_strings or not _used_ids(part.window, part.promoted) for part in (self, other)):
            return contexts
        strings = self._strings() | other._strings()
        return contexts.with_strings(lambda token: strings.get(token, ""))

    def finish(self) -> "FeatureContexts":
        """Return the contexts, which are finished; see `UnfinishedContexts`."""
        return self

    def with_promoted(self, promoted: Int32[np.ndarray, "feature promoted"]) -> "FeatureContexts":
        """Return the contexts with other promoted tokens; call `with_strings` afterwards to store their strings.

        Args:
            promoted: see the field.

        Example:
            >>> contexts.with_promoted(top_token_ids).with_strings(tokenizer.decode)  # doctest: +SKIP
        """
        return dataclasses.replace(self, promoted=promoted)

    def with_strings(self, decode: Callable[[int], str]) -> "FeatureContexts":
        """Return the contexts with the string of every token that is in a window or is promoted.

        Args:
            decode: returns the string of a token id; called once for each id.

        Example:
            >>> contexts.with_strings(tokenizer.decode).text(0, 0)  # doctest: +SKIP
        """
        strings = {token: decode(token) for token in _used_ids(self.window, self.promoted)}
        token_id, token_start, token_bytes = _encode_strings(strings)
        return dataclasses.replace(self, token_id=token_id, token_start=token_start, token_bytes=token_bytes)

    def n_contexts(self, feature: int) -> int:
        """Return the number of contexts of a feature.

        Args:
            feature: index of the feature.

        Example:
            >>> contexts.n_contexts(0)  # doctest: +SKIP
            4
        """
        return int((self.activation[feature] > 0).sum())

    def text(self, feature: int, k: int) -> tuple[str, str, str]:
        """Return the text of one context.

        Args:
            feature: index of the feature.
            k: index of the context, 0 for the strongest.

        Returns:
            Text before the token on which the feature fires, of this token, and after it.

        Example:
            >>> before, peak, after = contexts.text(0, 0)  # doctest: +SKIP
        """
        window = self.window[feature, k]
        before, peak, after = window[:PEAK], window[PEAK : PEAK + 1], window[PEAK + 1 :]
        return self._concatenated(before), self._concatenated(peak), self._concatenated(after)

    def promoted_tokens(self, feature: int) -> list[str]:
        """Return the strings of the tokens whose logits a feature raises most, in falling order.

        Args:
            feature: index of the feature.

        Returns:
            Strings; empty if the contexts hold none.

        Example:
            >>> contexts.promoted_tokens(0)  # doctest: +SKIP
        """
        return [self._string(int(token)) for token in self.promoted[feature] if token != NO_TOKEN]

    def _concatenated(self, tokens: Int32[np.ndarray, " token"]) -> str:
        """Return the text of consecutive tokens."""
        return "".join(self._string(int(token)) for token in tokens if token != NO_TOKEN)

    def _string(self, token: int) -> str:
        """Return the string of a token, or its id in angle brackets if the string is not stored."""
        index = int(np.searchsorted(self.token_id, token))
        if index == len(self.token_id) or self.token_id[index] != token:
            return f"⟨{token}⟩"
        start, end = self.token_start[index : index + 2]
        return bytes(self.token_bytes[start:end]).decode(errors="replace")

    def _strings(self) -> dict[int, str]:
        """Return the stored strings by token id."""
        return {token: self._string(token) for token in self.token_id.tolist()}


@runtime_checkable
class UnfinishedContexts(Protocol):
    """Strongest contexts during a measurement, which may be on a GPU."""

    @property
    def n_features(self) -> int:
        """Number of features."""
        ...

    def merge(self, other: Any) -> "UnfinishedContexts":
        """Merge with the contexts of later sequences; see `FeatureContexts.merge`."""
        ...

    def finish(self) -> FeatureContexts:
        """Return the contexts as arrays."""
        ...


def _renumbered_sequences(one: FeatureContexts, other: FeatureContexts) -> Int64[np.ndarray, "feature context"]:
    """Return the sequence indices of `other`, shifted beyond those of `one` if they do not follow them."""
    last = int(one.sequence.max(initial=NO_TOKEN))
    present: Bool[np.ndarray, "feature context"] = other.sequence >= 0
    if other.sequence.min(initial=last + 1, where=present) > last:
        return other.sequence
    return np.where(present, other.sequence + last + 1, NO_TOKEN)


def _used_ids(*arrays: Int[np.ndarray, "..."]) -> list[int]:
    """Return the token ids that occur in any of the arrays, in rising order."""
    used = np.zeros(1 + max(int(array.max(initial=NO_TOKEN)) for array in arrays), dtype=bool)
    for array in arrays:
        used[array[array != NO_TOKEN]] = True
    ids: list[int] = used.nonzero()[0].tolist()
    return ids


def _encode_strings(
    strings: dict[int, str],
) -> tuple[Int32[np.ndarray, " used"], Int64[np.ndarray, " bounds"], UInt8[np.ndarray, " byte"]]:
    """Return `token_id`, `token_start` and `token_bytes` of strings whose ids rise."""
    encoded = [string.encode(errors="replace") for string in strings.values()]
    starts = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return np.array(list(strings), dtype=np.int32), starts, np.frombuffer(b"".join(encoded), dtype=np.uint8)
