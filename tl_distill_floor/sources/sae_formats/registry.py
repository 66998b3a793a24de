"""Choose the format of an SAE's file and read its weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.sae_formats import (
    dictionary_learning,
    gemma_scope,
    goodfire,
    llama_scope,
    neel_nanda,
    openai,
    paper,
    qwen_scope,
    saelens,
    sparsify,
)
from tl_distill_floor.sources.sae_formats.bare import read_bare
from tl_distill_floor.sources.sae_formats.files import SaeFile
from tl_distill_floor.sources.sae_formats.formats import SaeFormat
from tl_distill_floor.sources.sae_formats.key_map import KeyMap, read_mapped
from tl_distill_floor.sources.sae_formats.locations import hook_name_in_path
from tl_distill_floor.sources.sae_formats.settings import all_settings, refuse_unknown_effects
from tl_distill_floor.sources.sae_formats.transcoders import refuse_transcoder_file
from tl_distill_floor.sources.sae_formats.weights import SaeWeights

FORMATS: dict[str, SaeFormat] = {
    module.FORMAT.name: module.FORMAT
    for module in (
        saelens,
        sparsify,
        dictionary_learning,
        gemma_scope,
        llama_scope,
        qwen_scope,
        openai,
        goodfire,
        paper,
        neel_nanda,
    )
}
"""Published formats by the name that `--sae-format` takes."""


def read_weights(file: SaeFile, key_map: KeyMap, d_in: int | None = None) -> SaeWeights:
    """Return the weights of an SAE's file, by the format that it is recognised as or that the user names.

    Args:
        file: the file with what lies with it.
        key_map: the user's description of the file; empty if there is none.
        d_in: width of the activations, which orients the matrices of a state dict of no published format.

    Raises:
        InputError: the format is not known, or its SAE cannot be measured without silently wrong numbers.
    """
    file = dataclasses.replace(file, hook_name=key_map.hook_name)
    refuse_transcoder_file(file)
    sae_format = None if key_map.explains_weights else _format_of(file, key_map.format)
    understood = frozenset() if sae_format is None else sae_format.understood
    without = frozenset() if sae_format is None else sae_format.ignored_sections
    ignored = {name.lower() for name in key_map.ignore}
    refuse_unknown_effects(file.name, all_settings(file, without), understood | ignored)
    if sae_format is not None:
        weights = sae_format.read(file)
    else:
        weights = read_mapped(file, key_map, d_in) if key_map.explains_weights else read_bare(file, d_in)
    metadata = {**weights.metadata, **_place_in_path(file, weights.metadata), **key_map.metadata}
    return dataclasses.replace(weights, metadata=metadata)


def _place_in_path(file: SaeFile, stated: Mapping[str, Any]) -> dict[str, str]:
    """Return the hook point that the path of a file names, if nothing else names one.

    Raises:
        InputError: the path and the settings name different layers.
    """
    if file.hook_name is not None or "hook_name" in stated or (hook_name := hook_name_in_path(file)) is None:
        return {}
    layer = stated.get("layer")
    if layer is not None and not hook_name.startswith(f"blocks.{layer}."):
        raise InputError(f"{file.name} names {hook_name} in its path and layer {layer} elsewhere; rename the folder")
    return {"hook_name": hook_name}


def _format_of(file: SaeFile, name: str | None) -> SaeFormat | None:
    if name is not None:
        if name not in FORMATS:
            raise InputError(
                f"the SAE format must be one of {', '.join(FORMATS)}, or a JSON object that names W_enc, W_dec and"
                f" activation, got {name!r:.60}"
            )
        return FORMATS[name]
    recognised = [sae_format for sae_format in FORMATS.values() if sae_format.recognises(file)]
    if len(recognised) > 1:
        names = " and ".join(sae_format.name for sae_format in recognised)
        raise InputError(f"{file.name} may be of the format {names}; say which with --sae-format")
    return recognised[0] if recognised else None
