"""Hugging Face configurations of students: the teacher's, with a smaller width and fewer layers."""

import copy
import re
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.distilling.layers import evenly_spaced_layers
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.model_names import official_name

MLP_MULTIPLE = 8
"""The number of neurons of an MLP is a multiple of this."""
SIZE_FIELD = r"(size|dim|width|rank|inner|ffn|ssm|ff|intermediate)$"
"""End of the names of fields that can follow the width."""
OTHER_SIZE_FIELD = (
    r"vocab|head|state|window|chunk|patch|image|kernel|conv|group|position|rotary|block|batch|context|cache|type|beam"
    r"|ngram|token|kv_dim|label|pad"
)
"""Parts of the names of sizes that do not follow the width."""
NEURON_FIELD = r"intermediate|inner$|ffn|mlp|(^|_)d_ff$"
"""Parts of the names of numbers of neurons, which are rounded to `MLP_MULTIPLE`."""
HEADS_FIELD = r"(^|_)(n|num)_(?!local|global).*heads?$|^n_head$|^attention_heads$"
"""Names of numbers of heads."""
KEY_VALUE_HEADS_FIELD = r"(key_value|kv)_heads$"


def hugging_face_config(model: HookedModel) -> PreTrainedConfig:
    """Return the Hugging Face configuration of a TransformerBridge, or of the name a HookedTransformer was loaded by.

    A model of text and images has one configuration per part; the configuration of its text model is returned.

    Raises:
        InputError: there is no such configuration.
    """
    config = getattr(getattr(model, "original_model", None), "config", None)
    name = getattr(model.cfg, "model_name", None)
    if config is None and name:
        config = _config_by_name(str(name))
    if config is None:
        raise InputError(
            f"a student needs a teacher with a Hugging Face configuration, which this {type(model).__name__} does not"
            " have; load it by its name, its directory, or with TransformerBridge.boot_transformers"
        )
    if not hasattr(config, "hidden_size"):
        config = config.get_text_config(decoder=True)
    if not hasattr(config, "hidden_size") or not hasattr(config, "num_hidden_layers"):
        raise InputError(
            f"the configuration of {type(config).__name__.removesuffix('Config')}, also its text_config, has no"
            " hidden_size or no num_hidden_layers, so its students cannot be built; use another teacher"
        )
    return config


def check_depth(depth: int | None, n_layers: int) -> None:
    """Raise an InputError unless a student of a teacher with `n_layers` layers can have `depth` layers."""
    if depth is not None and not 1 <= depth <= n_layers:
        raise InputError(f"a student's depth must be from 1 to its teacher's {n_layers} layers, got {depth}")


def student_config(teacher: PreTrainedConfig, width: int, depth: int | None = None) -> PreTrainedConfig:
    """Return a copy of the teacher's configuration with another width and depth.

    At the teacher's width and depth, it is the teacher's configuration.

    Args:
        teacher: the teacher's configuration.
        width: width of the student, dimensions.
        depth: number of layers; the teacher's if None.

    Raises:
        InputError: see `build_student`.
    """
    n_layers, teacher_width = int(teacher.num_hidden_layers), int(teacher.hidden_size)
    if not 1 <= width <= teacher_width:
        raise InputError(f"a student's width must be from 1 to its teacher's {teacher_width}, got {width}")
    check_depth(depth, n_layers)
    config = copy.deepcopy(teacher)
    config.output_attentions = False
    config._attn_implementation = None  # TransformerBridge sets its own
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    if width < teacher_width:
        _set_sizes(config, teacher, width)
        _set_heads(config, teacher, width)
        config.hidden_size = width
    if depth is not None and depth < n_layers:
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
    layers = evenly_spaced_layers(n_layers, depth)
    config.num_hidden_layers = depth
    for name, value in vars(teacher).items():
        if not isinstance(value, list):
            continue
        if name.endswith(("indices", "_idx")):  # numbers of layers of one kind
            setattr(config, name, [i for i, layer in enumerate(layers) if layer in value])
        elif len(value) == n_layers:  # one setting per layer, such as layer_types
            setattr(config, name, [value[layer] for layer in layers])
    if hasattr(teacher, "attention_types"):  # GPT-Neo derives attention_layers from it
        config.attention_types = [[[kind], 1] for kind in config.attention_layers]


def _set_sizes(config: PreTrainedConfig, teacher: PreTrainedConfig, width: int) -> None:
    """Scale the sizes that follow the width: neurons, experts, projections, recurrent states, low ranks."""
    teacher_width = int(teacher.hidden_size)
    for name, size in vars(teacher).items():
        is_size = isinstance(size, int) and not isinstance(size, bool) and size > 1
        if not is_size or not re.search(SIZE_FIELD, name) or re.search(OTHER_SIZE_FIELD, name):
            continue
        scaled = size * width / teacher_width
        if re.search(NEURON_FIELD, name):
            scaled = min(size, max(MLP_MULTIPLE, MLP_MULTIPLE * round(scaled / MLP_MULTIPLE)))
        setattr(config, name, max(1, round(scaled)))


def _set_heads(config: PreTrainedConfig, teacher: PreTrainedConfig, width: int) -> None:
    """Set the numbers of query heads, of key-value heads, and of the heads of recurrent layers."""
    scale = width / int(teacher.hidden_size)
    heads = {name: n for name, n in vars(teacher).items() if re.search(HEADS_FIELD, name) and isinstance(n, int)}
    query_field = teacher.attribute_map.get("num_attention_heads", "num_attention_heads")
    n_heads = heads.pop(query_field, None)
    n_kv_heads = {name: heads.pop(name) for name in list(heads) if re.search(KEY_VALUE_HEADS_FIELD, name)}
    if n_heads:
        group = n_heads // (next(iter(n_kv_heads.values()), None) or n_heads)
        n_student_heads = _scaled_heads(config, teacher, width, n_heads, max(1, group))
        setattr(config, query_field, n_student_heads)
        for name in n_kv_heads:
            setattr(config, name, max(1, n_student_heads // group))
    # Heads of linear attention and state spaces: the larger number is a multiple of the smaller one.
    smaller = min(heads.values(), default=1)
    n_smaller = max(1, round(smaller * scale))
    for name, number in heads.items():
        n_scaled = number // smaller * n_smaller if number % smaller == 0 else max(1, round(number * scale))
        setattr(config, name, n_scaled)


def _scaled_heads(config: PreTrainedConfig, teacher: PreTrainedConfig, width: int, n_heads: int, group: int) -> int:
    """Return the number of query heads, and set what follows the head size.

    Args:
        config: the student's configuration.
        teacher: the teacher's configuration.
        width: width of the student.
        n_heads: number of query heads of the teacher.
        group: query heads per key-value head.
    """
    teacher_width = int(teacher.hidden_size)
    if _has_own_head_size(teacher):
        n_student_heads = max(1, round(n_heads * width / teacher_width))
        if n_student_heads > group:
            n_student_heads = group * max(1, round(n_student_heads / group))
        return n_student_heads
    head_size = teacher_width // n_heads
    student_size = _largest_head_size(teacher, width, head_size, group)
    if getattr(config, "rotary_dim", None):
        config.rotary_dim = min(int(config.rotary_dim), student_size - student_size % 2)
    for rope in _rope_parameters(config):
        for name in ("short_factor", "long_factor"):
            factors = rope.get(name)
            if factors:  # one factor per pair of rotated dimensions, at evenly spaced frequencies
                n_factors = max(1, len(factors) * student_size // head_size)
                rope[name] = [factors[i * len(factors) // n_factors] for i in range(n_factors)]
    return width // student_size


def _has_own_head_size(config: PreTrainedConfig) -> bool:
    """Return whether the head size does not depend on the width."""
    names = ("head_dim", "v_head_dim", "d_kv")
    return any(isinstance(vars(config).get(name), int) for name in names)


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


def _rope_parameters(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """Return the settings of rotary embeddings, of which a configuration can have one set per kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)]
    return nested or [rope]


def _fits_rotary_embedding(teacher: PreTrainedConfig, head_size: int) -> bool:
    """Return whether the rotated part of a head has an even number of dimensions."""
    if getattr(teacher, "rope_parameters", None) is None:
        return True
    shares = [float(rope.get("partial_rotary_factor") or 1.0) for rope in _rope_parameters(teacher)]
    rotated = [int(head_size * share) for share in shares]
    return all(n > 0 and n % 2 == 0 for n in rotated)
