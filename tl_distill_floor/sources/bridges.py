"""Load a `TransformerBridge` without what TransformerLens does for images."""

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_PROCESSORS = threading.RLock()
"""Held while processors are not loaded: the change is seen by all threads."""


def boot_bridge(source: str, **options: Any) -> "TransformerBridge":
    """Load a model as a `TransformerBridge`, for text only.

    For a model of text and images TransformerLens also loads a processor of images. If that fails and torchvision is
    missing, it runs `pip install torchvision`, which replaces torch by the version that torchvision needs. Text needs
    no processor, so none is loaded.

    Args:
        source: name or directory of the model.
        options: options of `TransformerBridge.boot_transformers`.
    """
    from transformer_lens.model_bridge import TransformerBridge

    with _without_processors():
        return TransformerBridge.boot_transformers(source, **options)


@contextlib.contextmanager
def _without_processors() -> Iterator[None]:
    """Let transformers return None for every processor."""
    from transformers import AutoProcessor

    with _PROCESSORS:
        loading = AutoProcessor.__dict__["from_pretrained"]
        AutoProcessor.from_pretrained = staticmethod(lambda *_args, **_options: None)
        try:
            yield
        finally:
            AutoProcessor.from_pretrained = loading
