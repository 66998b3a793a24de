"""Hugging Face configurations of students: the teacher's, with a smaller width and fewer layers."""

import copy
import re

from transformers import AutoConfig, PreTrainedConfig

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.distilling.students.family_models import refuse_failures
from tl_distill_floor.distilling.students.student_depth import layer_overrides, set_depth
from tl_distill_floor.distilling.students.student_heads import set_heads, validate
from tl_distill_floor.errors import InputError, as_integer
from tl_distill_floor.sources.model_names import official_name

MLP_MULTIPLE = 8
"""The number of neurons of an MLP is a multiple of this."""
SIZE_FIELD = r"(size|dim|width|rank|inner|ffn|ssm|ff|intermediate)$"
"""End of the names of fields that can follow the width."""
SIZE_SUFFIX = r"_(mlp|per_layer)$"
"""Ends of the names of sizes of some layers."""
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


def checked_depth(depth: int | None, n_layers: int) -> int:
    """Return the number of layers of a student of a teacher with `n_layers` layers: as many if `depth` is None.

    Raises:
        InputError: the depth is not an integer, or is out of range.
    """
    if depth is not None and not 1 <= as_integer("depth", depth) <= n_layers:
        raise InputError(f"a student's depth must be from 1 to its teacher's {n_layers} layers, got {depth}")
    return n_layers if depth is None else as_integer("depth", depth)


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
    width, depth = as_integer("width", width), checked_depth(depth, n_layers)
    if not 1 <= width <= teacher_width:
        raise InputError(f"a student's width must be from 1 to its teacher's {teacher_width}, got {width}")
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
        if depth < n_layers:
            set_depth(config, teacher, depth)
        validate(config)
    return config


def _config_by_name(name: str) -> PreTrainedConfig | None:
    try:
        return AutoConfig.from_pretrained(official_name(name))
    except (OSError, ValueError):
        return None


def _set_sizes(config: PreTrainedConfig, teacher: PreTrainedConfig, width: int) -> None:
    """Scale the sizes that follow the width: neurons, experts, projections, recurrent states, low ranks.

    A size can be a list with a number for each layer, or differ in some layers.
    """
    scale = width / int(teacher.hidden_size)
    for name, value in vars(teacher).items():
        if isinstance(value, list):
            sizes = [_scaled_size(name, size, scale) for size in value]
            if sizes != value:
                setattr(config, name, sizes)
        elif (size := _scaled_size(name, value, scale)) is not value:
            setattr(config, name, size)
    if overrides := layer_overrides(teacher):
        config.per_layer_config = {
            layer: {name: _scaled_size(name, value, scale) for name, value in settings.items()}
            for layer, settings in overrides.items()
        }


def _scaled_size(name: str, size: object, scale: float) -> object:
    """Return a size at the student's width; any other value of a field as it is."""
    size_name = re.sub(SIZE_SUFFIX, "", name)
    follows = re.search(SIZE_FIELD, size_name) and not re.search(OTHER_SIZE_FIELD, size_name)
    if not follows or not isinstance(size, int) or isinstance(size, bool) or size <= 1:
        return size
    scaled = size * scale
    if re.search(NEURON_FIELD, name):
        scaled = min(size, max(MLP_MULTIPLE, MLP_MULTIPLE * round(scaled / MLP_MULTIPLE)))
    return max(1, round(scaled))
