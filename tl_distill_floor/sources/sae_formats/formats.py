"""What a module of a published format defines."""

from collections.abc import Callable
from dataclasses import dataclass

from tl_distill_floor.sources.sae_formats.files import SaeFile
from tl_distill_floor.sources.sae_formats.weights import SaeWeights


@dataclass(frozen=True)
class SaeFormat:
    """A published format of SAE files."""

    name: str
    """Name that `--sae-format` takes."""
    recognises: Callable[[SaeFile], bool]
    """Return whether a file is of this format, by its contents and what lies with it."""
    read: Callable[[SaeFile], SaeWeights]
    """Read the weights, or raise an InputError that says why the SAE cannot be measured."""
    understood: frozenset[str] = frozenset()
    """Settings that could change codes and that `read` applies or that this format is known not to apply."""
    ignored_sections: frozenset[str] = frozenset()
    """Parts of the checkpoint that hold statistics of the training, not settings."""
