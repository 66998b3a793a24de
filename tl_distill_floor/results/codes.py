"""An SAE's codes on a sample of a text: what sums over tokens cannot tell, namely which features fire together."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, Int64


@dataclass(frozen=True, eq=False)
class Codes:
    """An SAE's codes on a sample of the text's sequences, row by row (compressed sparse rows)."""

    n_features: int
    row_start: Int64[np.ndarray, " rows"]
    """[token + 1]: token t has the entries `row_start[t]:row_start[t + 1]`."""
    feature: Int32[np.ndarray, " entry"]
    """Ascending within a token."""
    value: Float32[np.ndarray, " entry"]
    sequence: Int64[np.ndarray, " token"]
    """Number of the text's sequence that the token stands in, counted from 0; ascending where it was measured."""

    def __post_init__(self) -> None:
        for name, dtype in (("row_start", "int64"), ("feature", "int32"), ("value", "float32"), ("sequence", "int64")):
            array = getattr(self, name)
            if array.ndim != 1 or array.dtype != dtype:
                raise ValueError(f"codes: {name} must be one row of {dtype}, got {array.dtype} {array.shape}")
        if len(self.row_start) != len(self.sequence) + 1 or len(self.feature) != len(self.value):
            raise ValueError("codes: every token must have a row and a sequence, every entry a feature and a value")
        # Compared, not subtracted: a difference of hostile numbers wraps around.
        falls = self.row_start[1:] < self.row_start[:-1]
        if self.row_start[0] != 0 or self.row_start[-1] != len(self.feature) or falls.any():
            raise ValueError("codes: the rows must follow each other and hold every entry")
        if self.feature.min(initial=0) < 0 or self.feature.max(initial=-1) >= self.n_features:
            raise ValueError(f"codes: every feature must be one of {self.n_features}")
        if not self._ascend():
            raise ValueError("codes: the features of a token must ascend")
        if not np.isfinite(self.value).all():
            raise ValueError("codes: a value is not finite")
        if self.sequence.min(initial=0) < 0:
            raise ValueError("codes: sequences are counted from 0")

    def _ascend(self) -> bool:
        ascends = self.feature[1:] > self.feature[:-1]
        first = self.row_start[1:-1]
        ascends[first[(first > 0) & (first < self.n_entries)] - 1] = True
        return bool(ascends.all())

    @property
    def n_tokens(self) -> int:
        return len(self.sequence)

    @property
    def n_entries(self) -> int:
        return len(self.feature)

    @classmethod
    def joined(cls, parts: Sequence["Codes"]) -> "Codes":
        """The codes of stretches of text that follow each other; at least one.

        Raises:
            ValueError: they are of other numbers of features.
        """
        if len({part.n_features for part in parts}) != 1:
            raise ValueError(f"codes: other numbers of features: {[part.n_features for part in parts]}")
        if len(parts) == 1:
            return parts[0]
        shifts = accumulate((part.n_entries for part in parts), initial=0)
        rows = [part.row_start[1:] + shift for part, shift in zip(parts, shifts, strict=False)]
        return cls(
            parts[0].n_features,
            np.concatenate([np.zeros(1, dtype=np.int64), *rows]),
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("feature", "value", "sequence")),
        )

    def followed_by(self, other: "Codes") -> "Codes":
        return Codes.joined([self, other])

    def of_tokens(self, chosen: Bool[np.ndarray, " token"] | Int[np.ndarray, " chosen"]) -> "Codes":
        """The rows where a mask is true, or of the given places, in that order."""
        row_start, entries = self.entries_of(chosen)
        return Codes(self.n_features, row_start, self.feature[entries], self.value[entries], self.sequence[chosen])

    def entries_of(
        self, chosen: Bool[np.ndarray, " token"] | Int[np.ndarray, " chosen"]
    ) -> tuple[Int64[np.ndarray, " rows"], Int64[np.ndarray, " entry"]]:
        """(where each chosen row starts among the chosen rows' entries, the places of these entries here)."""
        starts = self.row_start[:-1][chosen]
        lengths = self.row_start[1:][chosen] - starts
        row_start = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        # An entry lies as far from the start of its row here as there.
        return row_start, np.arange(row_start[-1]) + np.repeat(starts - row_start[:-1], lengths)

    def dense(self) -> Float32[np.ndarray, "token feature"]:
        found = np.zeros((self.n_tokens, self.n_features), dtype=np.float32)
        found[np.repeat(np.arange(self.n_tokens), np.diff(self.row_start)), self.feature] = self.value
        return found

    @classmethod
    def from_dense(
        cls, codes: Float[np.ndarray, "token feature"], sequence: Int[np.ndarray, " token"] | None = None
    ) -> "Codes":
        """The entries that are not 0; every token is a sequence of its own where none are named."""
        token, feature = codes.nonzero()
        return cls(
            codes.shape[1],
            np.searchsorted(token, np.arange(len(codes) + 1)).astype(np.int64),
            feature.astype(np.int32),
            codes[token, feature].astype(np.float32),
            np.arange(len(codes)) if sequence is None else sequence.astype(np.int64),
        )
