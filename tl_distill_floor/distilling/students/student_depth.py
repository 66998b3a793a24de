"""Settings of the layers of students with fewer layers than their teacher."""

import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from tl_distill_floor.distilling.students.layers import evenly_spaced_layers

LAYER_NUMBERS_FIELD = r"^(?!mtp_).*(indices|_idxs?|_layer_ids|(?<!no_rope)_layers)$"
"""Names of lists of the numbers of the layers of one kind; `no_rope_layers` has a flag for each layer."""
LEADING_LAYERS_FIELD = r"^(first_k_dense_replace|num_dense_layers)$"
"""Names of numbers of leading layers of one kind."""
TRAILING_LAYERS_FIELD = r"^num_kv_shared_layers$"
"""Names of numbers of trailing layers of one kind."""


def set_depth(config: PreTrainedConfig, teacher: PreTrainedConfig, depth: int) -> None:
    """Set the number of layers, and select the settings of the layers that are used.

    Args:
        config: the student's configuration, whose sizes are set already.
        teacher: the teacher's configuration.
        depth: number of layers of the student, fewer than the teacher's.
    """
    n_layers = int(teacher.num_hidden_layers)
    layers = evenly_spaced_layers(n_layers, depth)
    overrides = layer_overrides(config)
    config.num_hidden_layers = depth
    for name, value in list(vars(config).items()):
        selected = _selected(name, value, layers, n_layers)
        if selected is not value:
            setattr(config, name, selected)
    if hasattr(teacher, "attention_types"):  # GPT-Neo derives attention_layers from it
        config.attention_types = [[[kind], 1] for kind in config.attention_layers]
    if overrides:
        config.per_layer_config = _renumbered(overrides, layers)


def layer_overrides(config: PreTrainedConfig) -> dict[object, dict[str, Any]]:
    """Return the settings that differ in some layers, by the number of the layer; most families have none."""
    if not getattr(config, "is_heterogeneous", False):
        return {}
    overrides: dict[object, dict[str, Any]] = config.to_dict()["per_layer_config"]
    return overrides


def _selected(name: str, value: object, layers: list[int], n_layers: int) -> object:
    """Return the value of a field for some layers; the value itself if it is not about layers.

    Args:
        name: name of the field.
        value: value for the teacher's layers.
        layers: numbers of the layers that are used, ascending.
        n_layers: number of layers of the teacher.
    """
    if isinstance(value, list) and "token" not in name:  # there can be as many ids of tokens as layers
        if re.search(LAYER_NUMBERS_FIELD, name) and _are_layer_numbers(value, n_layers):
            return [i for i, layer in enumerate(layers) if layer in value]
        # One setting per layer, such as layer_types.
        return [value[layer] for layer in layers] if len(value) == n_layers else value
    if isinstance(value, dict) and "layer" in name and value and all(str(key).isdecimal() for key in value):
        return _renumbered(value, layers)
    if isinstance(value, int) and re.search(LEADING_LAYERS_FIELD, name):
        return sum(layer < value for layer in layers)
    if isinstance(value, int) and re.search(TRAILING_LAYERS_FIELD, name):
        return sum(layer >= n_layers - value for layer in layers)
    return value


def _are_layer_numbers(values: list[object], n_layers: int) -> bool:
    """Return whether a list has different numbers of layers, ascending."""
    numbers = [value for value in values if isinstance(value, int) and 0 <= value < n_layers]
    return len(numbers) == len(values) and numbers == sorted(set(numbers))


def _renumbered(settings: Mapping[object, object], layers: list[int]) -> dict[int, object]:
    """Return the settings of some layers, by the student's numbers of layers."""
    by_layer = {int(str(layer)): setting for layer, setting in settings.items()}
    return {i: by_layer[layer] for i, layer in enumerate(layers) if layer in by_layer}
