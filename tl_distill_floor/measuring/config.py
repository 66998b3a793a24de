"""The options of a measurement, and of what it loads."""

from dataclasses import dataclass

from tl_distill_floor.annotations import CostMethod, Dtype
from tl_distill_floor.errors import check_choice, set_integers


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """What is measured of each feature, and on how many tokens.

    Raises:
        InputError: an option is out of its range.

    Example:
        >>> MeasureConfig(cost="energy", n_tokens=50_000).n_codes
        200000
    """

    cost: CostMethod = "fisher"
    """How the cost of removing a feature is measured: "fisher" and "ablation" in nats, "energy" in squared error; see
    `measure`."""
    n_samples: int = 1
    """Outputs that "fisher" samples from the teacher at each position, one backward pass each."""
    n_tokens: int = 200_000
    """Tokens of the text to read, including tokens that are not counted; fewer if the text is shorter."""
    n_cost_tokens: int = 50_000
    """Tokens on which costs in nats are measured: about so many, at most twice as many, but more of a text of over 8
    million tokens. They take a full forward and backward pass, and counting features only a forward pass to the hook
    point. Of a number of successive sequences, one is chosen at random."""
    n_codes: int = 200_000
    """Number of tokens, on average, whose SAE codes are kept; 0 keeps none."""
    force: bool = False
    """Go on with an SAE that does not fit the activations, see `check_plausible`; the result then has a warning."""

    def __post_init__(self) -> None:
        check_choice("cost", self.cost, CostMethod)
        set_integers(self, {"n_tokens": 1, "n_samples": 1, "n_cost_tokens": 1, "n_codes": 0})

    @property
    def share_of_codes(self) -> float:
        """Probability with which the codes of a sequence are kept."""
        return min(1.0, self.n_codes / self.n_tokens)

    def sequences_per_cost(self, n_sequences: int, context_size: int) -> int:
        """Return the number of successive sequences of which one has its costs measured.

        Args:
            n_sequences: sequences that are read.
            context_size: tokens per sequence.

        Example:
            >>> MeasureConfig(n_cost_tokens=1_000).sequences_per_cost(n_sequences=25, context_size=100)
            2
        """
        return max(1, n_sequences // max(1, self.n_cost_tokens // context_size))


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """How a teacher is loaded, and in which sequences and batches its text is read.

    Raises:
        InputError: an option is out of its range.

    Example:
        >>> LoadConfig(batch_size=8).context_size is None
        True
    """

    context_size: int | None = None
    """Tokens per sequence; None takes the SAE's training context."""
    batch_size: int = 16
    """Sequences per batch."""
    device: str = "cpu"
    """Torch device of what is loaded, or "auto"; see `load_teacher`. Models and SAEs in memory stay where they are."""
    dtype: Dtype = "fp32"
    """Dtype of a teacher that is loaded."""

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, Dtype)
        set_integers(self, {"context_size": None, "batch_size": 1})
