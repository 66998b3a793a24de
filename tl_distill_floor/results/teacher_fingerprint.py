"""`TeacherFingerprint`: what a teacher computes for fixed token ids."""

import base64
import io
import zipfile
import zlib
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
    """Activation at the hook point; without values where none was measured."""
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

    def to_text(self) -> str:
        """Return the arrays as one line of text, for JSON: a NumPy archive in base64."""
        archive = io.BytesIO()
        np.savez(archive, **vars(self))
        return base64.b64encode(archive.getvalue()).decode()

    @classmethod
    def from_text(cls, text: str) -> "TeacherFingerprint":
        """Return the fingerprint that `to_text` wrote.

        Raises:
            ValueError: the text is something else.
        """
        try:
            with np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False) as arrays:
                return cls(**arrays)
        except (OSError, EOFError, TypeError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"the fingerprint of the teacher cannot be read ({error})") from error
