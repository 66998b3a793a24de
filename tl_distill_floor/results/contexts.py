"""What each feature fires on: the strongest places of the text, with the tokens around them."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, Int64, UInt8

N_CONTEXTS = 4
BEFORE, AFTER = 12, 5
PEAK, WINDOW = BEFORE, BEFORE + 1 + AFTER
"""The place of the strongest token in a window, and the tokens of a window."""
NO_TOKEN = -1
DTYPES = dict.fromkeys(("window", "promoted", "token_id"), "int32") | {
    "activation": "float32",
    "sequence": "int64",
    "token_start": "int64",
    "token_bytes": "uint8",
}


@dataclass(frozen=True, eq=False)
class FeatureContexts:
    """The places where each feature fires most strongly, at most one of a sequence, and the tokens that it promotes."""

    activation: Float32[np.ndarray, "feature context"]
    """Absolute activation, the strongest first; 0 where a feature fired in fewer sequences."""
    sequence: Int64[np.ndarray, "feature context"]
    """Number of the text's sequence, counted from 0; -1 where there is none."""
    window: Int32[np.ndarray, "feature context window"]
    """Token ids, the strongest at place `PEAK`; -1 beyond the ends of the sequence."""
    promoted: Int32[np.ndarray, "feature promoted"]
    """Token ids whose logits the feature's decoder row raises most, the most raised first; [feature, 0] while unknown,
    and -1 for a row of zeros or a feature that never fired."""
    token_id: Int32[np.ndarray, " used"]
    """The ids above, ascending, whose strings are known: empty before `with_strings`."""
    token_start: Int64[np.ndarray, " bounds"]
    """[used + 1]: the string of `token_id[i]` is `token_bytes[token_start[i]:token_start[i + 1]]`."""
    token_bytes: UInt8[np.ndarray, " byte"]
    """UTF-8."""

    def __post_init__(self) -> None:
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
            raise ValueError("contexts: an activation above 0 must have a sequence, and only that")
        if min(self.window.min(initial=NO_TOKEN), self.promoted.min(initial=NO_TOKEN)) < NO_TOKEN:
            raise ValueError("contexts: token ids are counted from 0")
        self._check_strings()

    def _check_strings(self) -> None:
        ids, starts = self.token_id, self.token_start
        if ids.ndim != 1 or (ids[1:] <= ids[:-1]).any():
            raise ValueError("contexts: the ids of the vocabulary must rise")
        if starts.shape != (len(ids) + 1,) or self.token_bytes.ndim != 1 or (starts[1:] < starts[:-1]).any():
            raise ValueError("contexts: every id of the vocabulary must have a string")
        if starts[0] != 0 or starts[-1] != len(self.token_bytes):
            raise ValueError("contexts: the strings of the vocabulary must follow each other and hold every byte")

    @property
    def n_features(self) -> int:
        return len(self.activation)

    @property
    def has_strings(self) -> bool:
        return len(self.token_id) > 0

    @classmethod
    def nowhere(cls, n_features: int) -> "FeatureContexts":
        """Of features that never fired."""
        return cls.of_places(
            np.zeros((n_features, N_CONTEXTS), dtype=np.float32),
            np.full((n_features, N_CONTEXTS), NO_TOKEN, dtype=np.int64),
            np.full((n_features, N_CONTEXTS, WINDOW), NO_TOKEN, dtype=np.int32),
        )

    @classmethod
    def of_places(
        cls,
        activation: Float32[np.ndarray, "feature context"],
        sequence: Int64[np.ndarray, "feature context"],
        window: Int32[np.ndarray, "feature context window"],
    ) -> "FeatureContexts":
        """Without strings and promoted tokens."""
        return cls(activation, sequence, window, np.zeros((len(activation), 0), dtype=np.int32), *_strings({}))

    def merge(self, other: "FeatureContexts") -> "FeatureContexts":
        """The strongest of both, those of `self` first among equals; `other` is of other sequences.

        Where its numbers begin at or below the last of `self` they are another text's, and go on after it. Strings stay
        where both have them, promoted tokens where either does.

        Raises:
            ValueError: they are of other numbers of features or of contexts.
        """
        if self.activation.shape != other.activation.shape:
            raise ValueError(f"contexts: other shapes: {self.activation.shape} and {other.activation.shape}")
        places = [np.copy(a) for a in (self.activation, self.sequence, self.window)]
        rows = np.flatnonzero(other.activation[:, 0] > self.activation[:, -1])
        added = (other.activation[rows], _following(self, other)[rows], other.window[rows])
        both = [np.concatenate([a[rows], b], axis=1) for a, b in zip(places, added, strict=True)]
        order = np.argsort(-both[0], axis=1, kind="stable")[:, : self.activation.shape[1]]
        for place, candidates in zip(places, both, strict=True):
            place[rows] = candidates[np.arange(len(rows))[:, None], order]
        promoted = self.promoted if self.promoted.shape[1] else other.promoted
        if self.promoted.shape == other.promoted.shape:
            promoted = np.where(self.promoted == NO_TOKEN, other.promoted, self.promoted)
        merged = dataclasses.replace(FeatureContexts.of_places(*places), promoted=promoted)
        if not all(part.has_strings or not _used(part.window, part.promoted) for part in (self, other)):
            return merged
        known = self._strings() | other._strings()
        return merged.with_strings(lambda token: known.get(token, ""))

    def with_promoted(self, promoted: Int32[np.ndarray, "feature promoted"]) -> "FeatureContexts":
        """Their strings, where there are some, are not known before `with_strings`."""
        return dataclasses.replace(self, promoted=promoted)

    def with_strings(self, decode: Callable[[int], str]) -> "FeatureContexts":
        """With the string of every id that stands in a window or is promoted; `decode` is called once for each."""
        found = {token: decode(token) for token in _used(self.window, self.promoted)}
        token_id, token_start, token_bytes = _strings(found)
        return dataclasses.replace(self, token_id=token_id, token_start=token_start, token_bytes=token_bytes)

    def n_contexts(self, feature: int) -> int:
        """How many contexts a feature has."""
        return int((self.activation[feature] > 0).sum())

    def text(self, feature: int, k: int) -> tuple[str, str, str]:
        """What stands before, at and after the peak of the feature's k-th strongest context, counted from 0."""
        window = self.window[feature, k]
        before, peak, after = window[:PEAK], window[PEAK : PEAK + 1], window[PEAK + 1 :]
        return self._joined(before), self._joined(peak), self._joined(after)

    def promoted_tokens(self, feature: int) -> list[str]:
        """The tokens whose logits the feature raises, the most raised first; none while they are unknown."""
        return [self._string(int(token)) for token in self.promoted[feature] if token != NO_TOKEN]

    def _joined(self, tokens: Int32[np.ndarray, " token"]) -> str:
        return "".join(self._string(int(token)) for token in tokens if token != NO_TOKEN)

    def _string(self, token: int) -> str:
        """The token's string; its id in angle brackets where that is unknown."""
        place = int(np.searchsorted(self.token_id, token))
        if place == len(self.token_id) or self.token_id[place] != token:
            return f"⟨{token}⟩"
        start, end = self.token_start[place : place + 2]
        return bytes(self.token_bytes[start:end]).decode(errors="replace")

    def _strings(self) -> dict[int, str]:
        return {token: self._string(token) for token in self.token_id.tolist()}


def merge_contexts(one: FeatureContexts | None, other: FeatureContexts | None) -> FeatureContexts | None:
    """Merged where both are there."""
    return None if one is None or other is None else one.merge(other)


def _following(one: FeatureContexts, other: FeatureContexts) -> Int64[np.ndarray, "feature context"]:
    """The sequences of `other`, counted on where they began from 0 again."""
    last = int(one.sequence.max(initial=NO_TOKEN))
    there: Bool[np.ndarray, "feature context"] = other.sequence >= 0
    if other.sequence.min(initial=last + 1, where=there) > last:
        return other.sequence
    return np.where(there, other.sequence + last + 1, NO_TOKEN)


def _used(*arrays: Int[np.ndarray, "..."]) -> list[int]:
    """The ids that stand in any of the arrays, ascending."""
    found = np.zeros(1 + max(int(array.max(initial=NO_TOKEN)) for array in arrays), dtype=bool)
    for array in arrays:
        found[array[array != NO_TOKEN]] = True
    ids: list[int] = found.nonzero()[0].tolist()
    return ids


def _strings(
    found: dict[int, str],
) -> tuple[Int32[np.ndarray, " used"], Int64[np.ndarray, " bounds"], UInt8[np.ndarray, " byte"]]:
    """(ids, where each string starts, the bytes of all) of strings by ascending id."""
    encoded = [string.encode(errors="replace") for string in found.values()]
    starts = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return np.array(list(found), dtype=np.int32), starts, np.frombuffer(b"".join(encoded), dtype=np.uint8)
