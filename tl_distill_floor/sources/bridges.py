"""Load a `TransformerBridge` without what TransformerLens does for images, and without the weights of a checkpoint."""

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import init_empty_weights
from torch import nn

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


class ShellLoader:
    """A stand-in for a transformers class that is given to TransformerLens, and reads no weights.

    The weights are 0 and on the CPU, not on the meta device: TransformerLens splits some of them when it wraps a model.
    """

    def from_pretrained(self, _source: str, **options: Any) -> nn.Module:
        """Return a shell of the configuration that TransformerLens asks for.

        Args:
            **options: the options with which TransformerLens calls `from_pretrained`.
        """
        from transformer_lens.model_bridge.sources.transformers import (
            determine_architecture_from_hf_config,
            get_hf_model_class_for_architecture,
        )

        config = options["config"]
        model_class = get_hf_model_class_for_architecture(determine_architecture_from_hf_config(config))
        return self.from_config(
            model_class, config, dtype=options["torch_dtype"], attn_implementation=options["attn_implementation"]
        )

    def from_config(self, model_class: Any, config: Any, **options: Any) -> nn.Module:
        """Return a shell of a configuration, in evaluation mode.

        Args:
            model_class: one of transformers' auto classes.
            config: the configuration.
            **options: options of the class's `from_config`.
        """
        with init_empty_weights(include_buffers=False):
            model: nn.Module = model_class.from_config(config, **options)
        model.tie_weights()  # type: ignore[operator]
        zeros: dict[int, nn.Parameter] = {}
        for module in model.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                setattr(module, name, zeros.setdefault(id(weight), nn.Parameter(_untouched_zeros(weight))))
        return model.eval()


def _untouched_zeros(weight: torch.Tensor) -> torch.Tensor:
    """Return zeros of the shape and dtype of a weight, whose memory the system provides when it is written."""
    n_bytes = weight.numel() * weight.element_size()
    return torch.from_numpy(np.zeros(n_bytes, dtype=np.uint8)).view(weight.dtype).view(weight.shape)
