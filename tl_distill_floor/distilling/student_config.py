"""Hugging Face configurations of students: the teacher's, with a smaller width and fewer layers."""

import copy
import re

from transformers import AutoConfig, PreTrainedConfig

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.distilling.family_models import refuse_failures
from tl_distill_floor.distilling.layers import evenly_spaced_layers
from tl_distill_floor.distilling.student_heads import set_heads, validate
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
    with refuse_failures(config, "cannot be configured"):  # an assignment to a strict configuration can raise, too
        if width < teacher_width:
            _set_sizes(config, teacher, width)
            config.hidden_size = width
            set_heads(config, teacher, width)
        if depth is not None and depth < n_layers:
            _set_depth(config, teacher, depth)
        validate(config)
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
