"""The options of probes."""

from dataclasses import dataclass

from tl_distill_floor.annotations import FeatureSelection, Pooling
from tl_distill_floor.errors import InputError, check_choice, set_integers

LEAST = {"per_class": 2, "n_splits": 1, "batch_size": 1, "bottleneck_steps": None, "seed": 0}
"""Least values of the options that both kinds of probes have; None for any integer."""


@dataclass(frozen=True)
class ProbeConfig:
    """How probes are fitted.

    Raises:
        InputError: an option is out of its range.

    Example:
        >>> ProbeConfig(per_class=60, n_splits=2).pool
        'mean'
    """

    pool: Pooling = "mean"
    """Which activation of a text is probed for labels of texts: the "mean" over its tokens, without the first one and
    special tokens, or that of its "last" token. Words are always probed at their last token."""
    per_class: int = 1000
    """Largest number of examples per class; more are sampled down at random."""
    n_splits: int = 5
    """Number of random splits of the documents; one probe is fitted per split."""
    bottleneck_steps: int = 1000
    """Training steps of the bottleneck students; 0 trains none."""
    n_feature_tokens: int = 60_000
    """Tokens of the text from which SAE features are decoded; 0 decodes none."""
    seed: int = 0
    """Seed of the splits and of every random sample."""
    batch_size: int = 16
    """Texts per forward pass."""

    def __post_init__(self) -> None:
        check_choice("pool", self.pool, Pooling)
        set_integers(self, LEAST | {"n_feature_tokens": 0})
        _check_bottleneck_steps(self.bottleneck_steps)


@dataclass(frozen=True)
class SparseProbeConfig:
    """How k-sparse probes are fitted.

    Raises:
        InputError: an option is out of its range.

    Example:
        >>> SparseProbeConfig(k=6).ks
        (1, 2, 4, 6)
    """

    k: int = 8
    """Largest number of features that a probe reads."""
    selection: FeatureSelection = "correlation"
    """How features are ranked on the training documents: by the absolute "mean-difference" between the two classes of
    activation times norm of the decoder row (as Gurnee et al. 2023, arXiv 2305.01610, select neurons), or by that
    difference divided by the standard deviation, the "correlation" with the class. The first prefers features that fire
    on most tokens, the second those that fire on little else than the concept."""
    n_controls: int = 5
    """Number of shuffles of the labels, and of random choices of features, for each split."""
    pool: Pooling = "mean"
    """Which activation of a text is probed for labels of texts; see `ProbeConfig`."""
    per_class: int = 1000
    """Largest number of examples with a concept, and of examples without it; more are sampled down at random."""
    n_splits: int = 5
    """Number of random splits of the documents; one probe of each kind is fitted per split."""
    bottleneck_steps: int = 1000
    """Training steps of the bottleneck students; 0 trains none."""
    seed: int = 0
    """Seed of the splits and of every random sample."""
    batch_size: int = 16
    """Texts per forward pass; fewer are read at a time if the SAE has very many features."""

    def __post_init__(self) -> None:
        check_choice("pool", self.pool, Pooling)
        check_choice("selection", self.selection, FeatureSelection)
        set_integers(self, LEAST | {"k": 1, "n_controls": 1})
        _check_bottleneck_steps(self.bottleneck_steps)

    @property
    def ks(self) -> tuple[int, ...]:
        """Numbers of features: the powers of 2 below `k`, and `k`."""
        return (*(2**power for power in range(self.k.bit_length()) if 2**power < self.k), self.k)


def _check_bottleneck_steps(steps: int) -> None:
    """Raise an InputError unless bottleneck students are trained for 0 steps, or for enough to extrapolate from."""
    if steps < 0 or steps == 1:
        raise InputError(f"the steps of the bottleneck students must be 0 or at least 2, got {steps}")
