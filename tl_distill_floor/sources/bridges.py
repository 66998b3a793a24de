"""Load a `TransformerBridge` without what TransformerLens does for images."""

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_PROCESSORS = threading.RLock()
"""Held while processors are not loaded: the change is seen by all threads."""


@contextlib.contextmanager
def text_bridge() -> Iterator[type["TransformerBridge"]]:
    """Yield the class `TransformerBridge`, whose `boot_transformers` loads models for text only.

    For a model of text and images TransformerLens also loads a processor of images. If that fails and torchvision is
    missing, it runs `pip install torchvision`, which replaces torch by the version that torchvision needs. Text needs
    no processor, so transformers returns None for every processor during the context.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoProcessor

    with _PROCESSORS:
        loading = AutoProcessor.__dict__["from_pretrained"]
        AutoProcessor.from_pretrained = staticmethod(lambda *_args, **_options: None)
        try:
            yield TransformerBridge
        finally:
            AutoProcessor.from_pretrained = loading
