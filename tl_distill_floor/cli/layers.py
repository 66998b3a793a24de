"""The layers of `tl-floor measure`: one, several, or all that have an SAE."""

import re
from collections.abc import Sequence
from pathlib import Path

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.model_names import check_model_name

PLACEHOLDER = "{layer}"
"""Text in `--sae` that is replaced by a layer's number."""
MAX_LAYERS = 200
"""Layers for which `--layer all` looks for a file."""


def parse_layers(layer: str | None, model: str, sae: str | None) -> Sequence[int | None]:
    """Parse "4", "4,8,12" or "all".

    Args:
        layer: value of `--layer`.
        model: name of the teacher.
        sae: value of `--sae`.

    Returns:
        The layers in order; for "all" the layers of the SAEs known for the teacher, or those for which a file named by
        `sae` exists; [None], the SAE's own layer, if `layer` is None.

    Raises:
        InputError: the text is not a list of integers, no layer has a known SAE, or there is no such model.
    """
    if layer is None:
        return [None]
    if layer != "all":
        if not re.fullmatch(r"\s*\d{1,3}(\s*,\s*\d{1,3})*\s*", layer):
            raise InputError(f"layers must be integers separated by commas, or all, got {layer!r}; try 4,8,12")
        return sorted({int(number) for number in layer.split(",")})
    layers = _layers_of_files(sae) if sae is not None else _known_layers(model)
    if not layers:
        check_model_name(model)
        raise InputError(
            f"no SAE is known for any layer of {model}; name the layers with --layer 4,8 and an SAE with --sae, its"
            f" path with {PLACEHOLDER} in place of the layer's number"
        )
    return sorted(layers)


def sae_of_each_layer(sae: str | None, layers: Sequence[int | None]) -> list[str | None]:
    """Replace `{layer}` in the SAE's name by the number of each layer.

    Raises:
        InputError: there are several layers, and the name has no `{layer}`.
    """
    if len(layers) > 1 and sae is not None and PLACEHOLDER not in sae:
        raise InputError(
            f"--sae {sae} names one SAE for {len(layers)} layers; write {PLACEHOLDER} in place of the layer's number"
        )
    return [None if sae is None else sae.replace(PLACEHOLDER, str(layer)) for layer in layers]


def _layers_of_files(sae: str) -> set[int]:
    if PLACEHOLDER not in sae:
        return set()
    return {number for number in range(MAX_LAYERS) if Path(sae.replace(PLACEHOLDER, str(number))).exists()}


def _known_layers(model: str) -> set[int]:
    from tl_distill_floor.sources.sae_directory import find_saes

    return {entry.layer for entry in find_saes(model, None) if entry.layer is not None}
