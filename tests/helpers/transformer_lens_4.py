"""Imitate TransformerLens 4 together with a SAELens that still needs TransformerLens 3.

Import this module first (`pytest -p tests.helpers.transformer_lens_4`). It imports SAELens, and on TransformerLens 4 it
first adds placeholders for the removed names that SAELens imports. It then deletes the placeholders, or on
TransformerLens 3 the removed names themselves, so that every later import of them fails as on TransformerLens 4.
"""

import sys
from types import ModuleType
from typing import Any

import transformer_lens

REMOVED = (
    "HookedTransformer", "HookedEncoder", "HookedEncoderDecoder", "HookedAudioEncoder", "BertNextSentencePrediction",
    "HookedTransformerConfig", "train", "loading", "loading_from_pretrained", "utils", "components",
)  # fmt: skip


def add_placeholder(name: str, **content: Any) -> None:
    """Register a module `transformer_lens.NAME` with the given content."""
    module = ModuleType(f"transformer_lens.{name}")
    vars(module).update(content)
    sys.modules[f"transformer_lens.{name}"] = module


def raise_for_removed(name: str) -> Any:
    """Raise what TransformerLens 4 raises: an ImportError for a removed name, so that `hasattr` raises too."""
    raise (ImportError if name in REMOVED else AttributeError)(f"transformer_lens has no {name}")


if "HookedTransformer" not in vars(transformer_lens):
    root = transformer_lens.HookedRootModule
    hooked = type("HookedTransformer", (root,), {})
    add_placeholder("HookedTransformer", HookedTransformer=hooked, HookedRootModule=root, Loss=Any, Output=Any)
    for package in ("components", "components.mlps"):
        add_placeholder(package, __path__=[])
    add_placeholder("components.mlps.can_be_used_as_mlp", CanBeUsedAsMLP=type("CanBeUsedAsMLP", (), {}))
    add_placeholder("utils", **vars(transformer_lens.utilities))
    transformer_lens.HookedTransformer = hooked

import sae_lens  # noqa: E402, F401

for name in REMOVED:
    vars(transformer_lens).pop(name, None)
    sys.modules[f"transformer_lens.{name}"] = None  # type: ignore[assignment]  # importing it is an error
if "__getattr__" not in vars(transformer_lens):
    transformer_lens.__getattr__ = raise_for_removed
