"""`Teacher`: a model with hook points, and how it was loaded."""

from dataclasses import dataclass, field
from typing import Any

from tl_distill_floor.annotations import HookedModel, Tokenizer


@dataclass(frozen=True)
class Teacher:
    """A model with hook points, and how it was loaded."""

    model: HookedModel
    name: str
    has_public_name: bool
    """Whether `name` is the public name of the model. An SAE trained on another name is then of another model."""
    loading: dict[str, Any] = field(default_factory=dict)
    """Class, dtype, processing and checkpoint of the model: they decide what its activations are. Of a model in memory
    only the class is known."""
    tokenizer: Tokenizer | None = None
    """The model's own tokenizer, which TransformerLens has not changed; None for a model in memory."""
    not_compared: str = ""
    """Why the logits of a loaded model could not be compared with those of plain transformers; empty if they agree, and
    for a model in memory, which is used as it is."""
    unused_weights: str = ""
    """Names of weights of the checkpoint that transformers leaves out, since the configuration has no place for them;
    empty if it uses all, and for a model in memory."""

    @property
    def warnings(self) -> list[str]:
        """What a reader of its losses should know about how it was loaded."""
        warnings = []
        if self.not_compared:
            warnings.append(f"the teacher's logits were not compared with transformers' ({self.not_compared})")
        if self.unused_weights:
            warnings.append(
                f"the teacher has no place for {self.unused_weights} of its checkpoint, so it may be another model than"
                " the one that was trained; compare its config.json with the weights"
            )
        return warnings

    @property
    def is_in_memory(self) -> bool:
        """Whether the model was given in memory, so that it is not known how it was loaded."""
        return "dtype" not in self.loading
