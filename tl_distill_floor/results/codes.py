"""`Codes`: an SAE's codes on a sample of tokens, which show what features fire together."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, Int64


@dataclass(frozen=True, eq=False)
class Codes:
    """An SAE's codes on a sample of a text's sequences, as a matrix [token, feature] in compressed sparse rows.

    An entry is a feature that is active on a token.
    """

    n_features: int
    """Number of features of the SAE."""
    row_start: Int64[np.ndarray, " rows"]
    """Start of each token's entries [token + 1]: token t has the entries `row_start[t]:row_start[t + 1]`."""
    feature: Int32[np.ndarray, " entry"]
    """Index of the feature of each entry, in rising order within a token."""
    value: Float32[np.ndarray, " entry"]
    """Activation of each entry."""
    sequence: Int64[np.ndarray, " token"]
    """Index of each token's sequence in the text, from 0."""

    def __post_init__(self) -> None:
        """Check that the arrays describe a matrix.

        Raises:
            ValueError: a shape, a data type or a value does not fit.
        """
        for name, dtype in (("row_start", "int64"), ("feature", "int32"), ("value", "float32"), ("sequence", "int64")):
            array = getattr(self, name)
            if array.ndim != 1 or array.dtype != dtype:
                raise ValueError(f"codes: {name} must be one row of {dtype}, got {array.dtype} {array.shape}")
        if len(self.row_start) != len(self.sequence) + 1 or len(self.feature) != len(self.value):
            raise ValueError("codes: every token must have a row and a sequence, every entry a feature and a value")
        # Compared and not subtracted, because the difference of damaged numbers can overflow.
        falls = self.row_start[1:] < self.row_start[:-1]
        if self.row_start[0] != 0 or self.row_start[-1] != len(self.feature) or falls.any():
            raise ValueError("codes: row_start must not fall, must start at 0 and end at the number of entries")
        if self.feature.min(initial=0) < 0 or self.feature.max(initial=-1) >= self.n_features:
            raise ValueError(f"codes: every feature must be one of {self.n_features}")
        if not self._features_ascend():
            raise ValueError("codes: the features of a token must ascend")
        if not np.isfinite(self.value).all():
            raise ValueError("codes: a value is not finite")
        if self.sequence.min(initial=0) < 0:
            raise ValueError("codes: sequences are counted from 0")

    def _features_ascend(self) -> bool:
        """Return whether the features rise within each token."""
        ascends = self.feature[1:] > self.feature[:-1]
        first = self.row_start[1:-1]
        ascends[first[(first > 0) & (first < self.n_entries)] - 1] = True  # they may fall between two tokens
        return bool(ascends.all())

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return len(self.sequence)

    @property
    def n_entries(self) -> int:
        """Number of active features, summed over tokens."""
        return len(self.feature)

    @property
    def token(self) -> Int64[np.ndarray, " entry"]:
        """Token of each entry."""
        return np.repeat(np.arange(self.n_tokens), np.diff(self.row_start))

    @classmethod
    def concatenate(cls, parts: Sequence["Codes"]) -> "Codes":
        """Concatenate the tokens of several codes.

        Args:
            parts: at least one.

        Returns:
            The codes of all tokens, in the order of `parts`.

        Raises:
            ValueError: the parts have different numbers of features.

        Example:
            >>> Codes.concatenate([first_half, second_half])  # doctest: +SKIP
        """
        if len({part.n_features for part in parts}) != 1:
            raise ValueError(f"codes have different numbers of features: {[part.n_features for part in parts]}")
        if len(parts) == 1:
            return parts[0]
        shifts = accumulate((part.n_entries for part in parts), initial=0)
        rows = [part.row_start[1:] + shift for part, shift in zip(parts, shifts, strict=False)]
        return cls(
            parts[0].n_features,
            np.concatenate([np.zeros(1, dtype=np.int64), *rows]),
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("feature", "value", "sequence")),
        )

    def select_tokens(self, chosen: Bool[np.ndarray, " token"] | Int[np.ndarray, " chosen"]) -> "Codes":
        """Return the codes of some tokens.

        Args:
            chosen: a mask [token], or indices of tokens.

        Returns:
            The codes of these tokens, in the order of the indices.

        Example:
            >>> codes.select_tokens(codes.sequence < 10)  # doctest: +SKIP
        """
        row_start, entries = self.select_entries(chosen)
        return Codes(self.n_features, row_start, self.feature[entries], self.value[entries], self.sequence[chosen])

    def select_entries(
        self, chosen: Bool[np.ndarray, " token"] | Int[np.ndarray, " chosen"]
    ) -> tuple[Int64[np.ndarray, " rows"], Int64[np.ndarray, " entry"]]:
        """Return the entries of some tokens.

        Args:
            chosen: a mask [token], or indices of tokens.

        Returns:
            Start of each chosen token's entries among the selected entries [chosen + 1], and the index of each selected
            entry in `feature` and `value`.

        Example:
            >>> row_start, entries = codes.select_entries(np.array([3, 1]))  # doctest: +SKIP
            >>> codes.value[entries]  # doctest: +SKIP
        """
        starts = self.row_start[:-1][chosen]
        lengths = self.row_start[1:][chosen] - starts
        row_start = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        return row_start, np.arange(row_start[-1]) + np.repeat(starts - row_start[:-1], lengths)

    def dense(self) -> Float32[np.ndarray, "token feature"]:
        """Return the codes as a dense matrix [token, feature].

        Example:
            >>> codes.dense().mean(0)  # doctest: +SKIP
        """
        matrix = np.zeros((self.n_tokens, self.n_features), dtype=np.float32)
        matrix[self.token, self.feature] = self.value
        return matrix

    @classmethod
    def from_dense(
        cls, codes: Float[np.ndarray, "token feature"], sequence: Int[np.ndarray, " token"] | None = None
    ) -> "Codes":
        """Create codes from a dense matrix; its zeros are left out.

        Args:
            codes: [token, feature].
            sequence: index of each token's sequence; if None, every token is its own sequence.

        Returns:
            The codes.

        Example:
            >>> Codes.from_dense(np.array([[0.0, 2.0], [1.0, 0.0]])).feature
            array([1, 0], dtype=int32)
        """
        token, feature = codes.nonzero()
        return cls(
            codes.shape[1],
            np.searchsorted(token, np.arange(len(codes) + 1)).astype(np.int64),
            feature.astype(np.int32),
            codes[token, feature].astype(np.float32),
            np.arange(len(codes)) if sequence is None else sequence.astype(np.int64),
        )
