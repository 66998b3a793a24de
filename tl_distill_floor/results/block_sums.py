"""`BlockSums`: sums over consecutive blocks of text."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Int64

from tl_distill_floor.results.feature_sums import FeatureSums

MAX_BLOCKS = 64
"""Blocks of text whose sums are kept apart, at most."""
MIN_INDEPENDENT = 6
"""Blocks below which neighbours are not joined, although they are alike."""
MAX_CORRELATION = 0.1
"""Correlation of neighbouring blocks up to which they count as independent."""
NUMBERS_PER_PART = 2**22
"""Numbers that are in memory at once in addition to the blocks."""


@dataclass(frozen=True, eq=False)
class BlockSums:
    """Sums over consecutive blocks of text. The bootstrap resamples blocks; they also show how alive features grow.

    Their numbers have 32 bits, since there are up to 64 times as many of them as of the sums over the whole text.
    """

    n_tokens: Int64[np.ndarray, " block"]
    """Counted tokens."""
    n_cost_tokens: Int64[np.ndarray, " block"]
    """Those of them on which costs are measured."""
    firing_count: Int[np.ndarray, "block feature"]
    """Tokens on which the feature's activation is not 0."""
    cost: Float[np.ndarray, "block feature"]
    """Cost of the feature, summed over the tokens on which costs are measured."""

    def __post_init__(self) -> None:
        """Raise a ValueError if a count may not fit into its dtype."""
        if self.n_tokens.max(initial=0) > np.iinfo(self.firing_count.dtype).max:
            raise ValueError(f"a block has more tokens than {self.firing_count.dtype} counts; measure less text")

    @classmethod
    def from_sums(cls, sums: FeatureSums) -> "BlockSums":
        """Return sums over a stretch of text as one block."""
        counts, costs = sums.firing_count.astype(np.int32), sums.sum_cost.astype(np.float32)
        return cls(np.array([sums.n_tokens]), np.array([sums.n_cost_tokens]), counts[None], costs[None])

    @classmethod
    def concatenate(cls, parts: Sequence["BlockSums"]) -> "BlockSums":
        """Return the blocks of all parts; while there are more than `MAX_BLOCKS`, neighbours are joined.

        Blocks without counted tokens are left out: a text of such blocks alone, which the bootstrap could sample, has
        no firing rates.

        Args:
            parts: at least one.
        """
        counted = np.concatenate([part.n_tokens for part in parts]) > 0
        names = [f.name for f in dataclasses.fields(cls)]
        blocks = cls(*(np.concatenate([getattr(part, name) for part in parts])[counted] for name in names))
        while len(blocks.n_tokens) > MAX_BLOCKS:
            blocks = blocks.coarser()
        return blocks

    def coarser(self) -> "BlockSums":
        """Return half as many blocks: the sums of each two neighbours."""
        pairs = np.arange(0, len(self.n_tokens), 2)
        arrays = (getattr(self, f.name) for f in dataclasses.fields(self))
        return BlockSums(*(np.add.reduceat(array, pairs, axis=0, dtype=array.dtype) for array in arrays))

    def independent(self) -> "BlockSums":
        """Return blocks that are about independent: neighbours are joined while they are alike.

        Neighbours are alike if documents are longer than blocks. A bootstrap over such blocks says how much the text
        varies within its documents, and less than how much other documents differ.
        """
        blocks = self
        while len(blocks.n_tokens) >= 2 * MIN_INDEPENDENT and blocks.neighbour_correlation() > MAX_CORRELATION:
            blocks = blocks.coarser()
        return blocks

    def neighbour_correlation(self) -> float:
        """Return the correlation of the firing rates of neighbouring blocks, over all features; 0 below three blocks.

        Features count by the variance of their rates. The correlation is of the deviations from the mean of n blocks,
        which lowers it by 1/n if blocks are independent; that is added.
        """
        n_blocks, n_features = self.firing_count.shape
        if n_blocks < 3:
            return 0.0
        covariance = np.zeros((n_blocks, n_blocks))
        features_per_part = max(1, NUMBERS_PER_PART // n_blocks)
        for first in range(0, n_features, features_per_part):
            rate = self.firing_count[:, first : first + features_per_part] / self.n_tokens[:, None]
            rate -= rate.mean(0)
            covariance += rate @ rate.T
        variance = covariance.trace() / n_blocks
        return 0.0 if variance == 0 else float(covariance.diagonal(1).mean() / variance + 1 / n_blocks)
