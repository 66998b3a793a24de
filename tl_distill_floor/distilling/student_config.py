"""Hugging Face configurations of students: the teacher's, with a smaller width and fewer layers."""

import copy

from transformers import AutoConfig, PreTrainedConfig

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.distilling.layers import evenly_spaced_layers
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.model_names import official_name

MLP_MULTIPLE = 8
"""The number of neurons of an MLP is a multiple of this."""
MLP_SIZES = ("intermediate_size", "n_inner", "ffn_dim")
"""Names that configurations give the number of neurons of an MLP."""


def hugging_face_config(model: HookedModel) -> PreTrainedConfig:
    """Return the Hugging Face configuration of a TransformerBridge, or of the name a HookedTransformer was loaded by.

    Raises:
        InputError: there is no such configuration.
    """
    config = getattr(getattr(model, "original_model", None), "config", None)
    name = getattr(model.cfg, "model_name", None)
    if config is None and name:
        config = _config_by_name(str(name))
    if not hasattr(config, "hidden_size"):
        raise InputError(
            f"a student needs a teacher with a Hugging Face configuration, which this {type(model).__name__} does not"
            " have; load it by its name, its directory, or with TransformerBridge.boot_transformers"
        )
    return config


def student_config(teacher: PreTrainedConfig, width: int, depth: int | None = None) -> PreTrainedConfig:
    """Return a copy of the teacher's configuration with another width and depth.

    Args:
        teacher: the teacher's configuration.
        width: width of the student, dimensions.
        depth: number of layers; the teacher's if None.

    Raises:
        InputError: see `build_student`.
    """
    n_layers = int(teacher.num_hidden_layers)
    if not 1 <= width <= int(teacher.hidden_size):
        raise InputError(f"a student's width must be from 1 to its teacher's {teacher.hidden_size}, got {width}")
    if depth is not None and not 1 <= depth <= n_layers:
        raise InputError(f"a student's depth must be from 1 to its teacher's {n_layers} layers, got {depth}")
    config = copy.deepcopy(teacher)
    config.output_attentions = False
    config._attn_implementation = None  # TransformerBridge sets its own
    _set_heads(config, teacher, width)
    for name in MLP_SIZES:
        if isinstance(getattr(teacher, name, None), int):
            n_neurons = getattr(teacher, name) * width / teacher.hidden_size
            setattr(config, name, max(MLP_MULTIPLE, MLP_MULTIPLE * round(n_neurons / MLP_MULTIPLE)))
    config.hidden_size = width
    if depth is not None:
        _set_depth(config, teacher, depth)
    return config


def _config_by_name(name: str) -> PreTrainedConfig | None:
    try:
        return AutoConfig.from_pretrained(official_name(name))
    except (OSError, ValueError):
        return None


def _set_depth(config: PreTrainedConfig, teacher: PreTrainedConfig, depth: int) -> None:
    """Set the number of layers, and select the settings of the layers that are used."""
    n_layers = int(teacher.num_hidden_layers)
    config.num_hidden_layers = depth
    for name, value in vars(teacher).items():
        if isinstance(value, list) and len(value) == n_layers:  # one setting per layer, such as layer_types
            setattr(config, name, [value[layer] for layer in evenly_spaced_layers(n_layers, depth)])
    if hasattr(teacher, "attention_types"):  # GPT-Neo derives attention_layers from it
        config.attention_types = [[[kind], 1] for kind in config.attention_layers]


def _set_heads(config: PreTrainedConfig, teacher: PreTrainedConfig, width: int) -> None:
    """Set the numbers of query heads and key-value heads."""
    n_heads = int(teacher.num_attention_heads)
    head_size = int(getattr(teacher, "head_dim", None) or teacher.hidden_size // n_heads)
    n_kv_heads = int(getattr(teacher, "num_key_value_heads", None) or n_heads)
    group = n_heads // n_kv_heads
    if getattr(config, "head_dim", None) is not None:  # the head size does not depend on the width
        n_student_heads = max(1, round(width / head_size))
        if n_student_heads > group:
            n_student_heads = group * max(1, round(n_student_heads / group))
    else:
        n_student_heads = width // _largest_head_size(teacher, width, head_size, group)
    config.num_attention_heads = n_student_heads
    if getattr(teacher, "num_key_value_heads", None) is not None:
        config.num_key_value_heads = max(1, n_student_heads // group)


def _largest_head_size(teacher: PreTrainedConfig, width: int, head_size: int, group: int) -> int:
    """Return the largest head size up to the teacher's that divides the width and that rotary embeddings accept.

    Args:
        teacher: the teacher's configuration.
        width: width of the student.
        head_size: head size of the teacher.
        group: query heads per key-value head.

    Raises:
        InputError: no size from half the teacher's head size on fits.
    """
    divisors = [n for n in range(1, width + 1) if width % n == 0 and _fits_rotary_embedding(teacher, n)]
    similar = [n for n in divisors if head_size / 2 <= n <= head_size or n == width < head_size]
    fitting = [n for n in similar if width // n <= group or width // n % group == 0]
    if not fitting:
        raise InputError(
            f"no head size near the teacher's {head_size} fits a student of width {width};"
            f" try width {head_size * group * max(1, round(width / head_size / group))}"
        )
    return max(fitting)


def _fits_rotary_embedding(teacher: PreTrainedConfig, head_size: int) -> bool:
    """Return whether the rotated part of a head has an even number of dimensions."""
    rope = getattr(teacher, "rope_parameters", None)
    if rope is None:
        return True
    n_rotated = int(head_size * (rope.get("partial_rotary_factor") or 1.0))
    return n_rotated > 0 and n_rotated % 2 == 0
