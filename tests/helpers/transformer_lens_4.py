"""TransformerLens without what 4 removed, beside a SAELens that still imports it.

Imported before all else (`pytest -p tests.helpers.transformer_lens_4`), it imports SAELens: on TransformerLens 4 with
placeholders for what is gone, on 3 with the things themselves. Both are then taken away, so that whoever imports them
later fails as on 4.
"""

import sys
from types import ModuleType
from typing import Any

import transformer_lens

REMOVED = (
    "HookedTransformer", "HookedEncoder", "HookedEncoderDecoder", "HookedAudioEncoder", "BertNextSentencePrediction",
    "HookedTransformerConfig", "train", "loading", "loading_from_pretrained", "utils", "components",
)  # fmt: skip


def set_aside(name: str, **content: Any) -> None:
    """A placeholder for the module transformer_lens.NAME."""
    module = ModuleType(f"transformer_lens.{name}")
    vars(module).update(content)
    sys.modules[f"transformer_lens.{name}"] = module


def removed(name: str) -> Any:
    """What TransformerLens 4 answers; not an AttributeError, so `hasattr` raises too."""
    raise (ImportError if name in REMOVED else AttributeError)(f"transformer_lens has no {name}")


if "HookedTransformer" not in vars(transformer_lens):
    root = transformer_lens.HookedRootModule
    hooked = type("HookedTransformer", (root,), {})
    set_aside("HookedTransformer", HookedTransformer=hooked, HookedRootModule=root, Loss=Any, Output=Any)
    for package in ("components", "components.mlps"):
        set_aside(package, __path__=[])
    set_aside("components.mlps.can_be_used_as_mlp", CanBeUsedAsMLP=type("CanBeUsedAsMLP", (), {}))
    set_aside("utils", **vars(transformer_lens.utilities))
    transformer_lens.HookedTransformer = hooked

import sae_lens  # noqa: E402, F401

for name in REMOVED:
    vars(transformer_lens).pop(name, None)
    sys.modules[f"transformer_lens.{name}"] = None  # type: ignore[assignment]  # importing it is an error
if "__getattr__" not in vars(transformer_lens):
    transformer_lens.__getattr__ = removed
