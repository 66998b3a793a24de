"""Refuse transcoders, cross-layer transcoders and SAEs with a skip connection."""

import re
from collections.abc import Mapping
from typing import Any

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.sae_directory import UNSUPPORTED_ARCHITECTURES
from tl_distill_floor.sources.sae_formats.files import SaeFile
from tl_distill_floor.sources.sae_formats.settings import (
    all_settings,
    nested_settings,
    parent_settings,
    transcoder_evidence,
)


def refuse_transcoder_file(file: SaeFile) -> None:
    """Raise an InputError if a file, or what lies with it, shows that its SAE is a transcoder.

    A training can say so for all its layers, in the folder above: sparsify's `config.json` has `transcode`.
    """
    tensors = [
        f"{name} {list(tensor.shape)}"
        for name, tensor in file.tensors.items()
        if tensor.ndim > 2 or re.search(r"skip|affine", name.lower())
    ]
    _refuse(file.name, tensors[0] if tensors else transcoder_evidence([*all_settings(file), *parent_settings(file)]))


def refuse_transcoder_config(name: str, config: Mapping[str, Any]) -> None:
    """Raise an InputError if a configuration shows that its SAE is a transcoder."""
    _refuse(name, transcoder_evidence(nested_settings("its configuration", config)))


def _refuse(name: str, evidence: str | None) -> None:
    if evidence is not None:
        raise InputError(
            f"{name} is a transcoder or has a skip connection ({evidence}), and"
            f" {UNSUPPORTED_ARCHITECTURES['transcoder']}; give an SAE"
        )
