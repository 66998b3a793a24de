"""`TeacherFingerprint`: what a teacher computes for fixed token ids."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64


@dataclass(frozen=True, eq=False)
class TeacherFingerprint:
    """What a teacher computes for one sequence of fixed token ids.

    It identifies the teacher's weights whatever they are called: a model in memory has other names of weights than the
    same model that is loaded by its name.
    """

    ids: Int64[np.ndarray, " position"]
    """Token ids of the sequence."""
    activation: Float32[np.ndarray, "position value"]
    """Activation at the hook point."""
    tokens: Int64[np.ndarray, " token"]
    """Tokens of the vocabulary whose log-probabilities are kept; empty for a teacher without logits."""
    log_prob: Float32[np.ndarray, "position token"]
    """Their log-probabilities."""
    eps: Float64[np.ndarray, " 1"]
    """Machine epsilon of the dtype of the teacher's weights."""

    def __post_init__(self) -> None:
        """Raise a ValueError if the arrays do not fit together."""
        n = len(self.ids)
        if self.activation.shape[:1] != (n,) or self.log_prob.shape != (n, len(self.tokens)) or len(self.eps) != 1:
            raise ValueError(f"the arrays of a teacher's fingerprint must have {n} positions")
