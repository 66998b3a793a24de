"""The options of probes."""

from dataclasses import dataclass

from tl_distill_floor.annotations import Pooling
from tl_distill_floor.errors import InputError, check_choice


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
    """Which activation of a text is probed for labels of texts: the "mean" over its tokens, or that of its "last"
    token. Words are always probed at their last token."""
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
        for name, least in (("per_class", 2), ("n_splits", 1), ("batch_size", 1), ("n_feature_tokens", 0)):
            value = getattr(self, name)
            if value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")
        if self.bottleneck_steps < 0 or self.bottleneck_steps == 1:
            raise InputError(f"the steps must be 0 or at least 2, got {self.bottleneck_steps}; set --steps")
