"""Students of a given width, in the teacher's own family, as plain `transformers` models."""

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.teachers import load_teacher, official_name

STARTS = ("random", "teacher-slice", "svd")
MLP_MULTIPLE = 8
"""MLPs are this many neurons, or a multiple of them."""
OFF = "._original_component"
"""What a TransformerBridge adds to the names of the weights that it wraps."""


def build_student(
    teacher: Any, width: int, *, depth: int | None = None, start: str = "svd", seed: int = 0
) -> nn.Module:
    """A student of the teacher's family: the same class, vocabulary and head size, a narrower residual stream.

    Heads and MLPs are scaled with the width, the number of query heads for each key-value head is kept. Where the
    family derives the head size from the width, the largest one up to the teacher's that divides the width is taken.

    Args:
        teacher: see `load_teacher`; a TransformerBridge on a Hugging Face causal language model, or a HookedTransformer
            that was loaded by the name of one.
        width: of the residual stream (d_model), dimensions.
        depth: layers; the teacher's when left out.
        start: "random" (the family's own initialisation); "teacher-slice" (the leading rows and columns of the
            teacher's weights); "svd" (the teacher's weights in the `width` leading singular directions of its
            embeddings, the leading heads and neurons). With fewer layers, evenly spaced layers of the teacher.
        seed: of the random weights.

    Returns:
        A `transformers` model in fp32, in evaluation mode, so that no dropout makes it noisy.

    Raises:
        InputError: the teacher has no Hugging Face configuration, no head fits the width, or it is no width at all.
    """
    if start not in STARTS:
        raise InputError(f"a student starts from {', '.join(STARTS)}, got {start!r}")
    from transformers import AutoModelForCausalLM

    teacher = load_teacher(teacher).model
    config = student_config(teacher, width, depth)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student: nn.Module = AutoModelForCausalLM.from_config(config)
    student = student.float().eval()
    if start != "random":
        _inherit(teacher, student, start)
    return student


def student_config(teacher: Any, width: int, depth: int | None = None) -> Any:
    """The teacher's configuration, narrowed.

    Raises:
        InputError: see `build_student`.
    """
    given = _config_of(teacher)
    layers = int(given.num_hidden_layers)
    if not 1 <= width <= int(given.hidden_size):
        raise InputError(f"a student is 1 to {given.hidden_size} dimensions wide, as its teacher is; got {width}")
    if depth is not None and not 1 <= depth <= layers:
        raise InputError(f"a student has 1 to {layers} layers, as its teacher has; got {depth}")
    config = copy.deepcopy(given)
    config.output_attentions = False
    config._attn_implementation = None  # a bridge sets one of its own
    _narrow_heads(config, given, width)
    for name in ("intermediate_size", "n_inner", "ffn_dim"):
        if isinstance(getattr(given, name, None), int):
            scaled = getattr(given, name) * width / given.hidden_size
            setattr(config, name, max(MLP_MULTIPLE, MLP_MULTIPLE * round(scaled / MLP_MULTIPLE)))
    config.hidden_size = width
    if depth is not None:
        config.num_hidden_layers = depth
        for name, value in vars(given).items():
            if isinstance(value, list) and len(value) == layers:  # what is said of each layer, such as layer_types
                setattr(config, name, [value[layer] for layer in _layers_kept(layers, depth)])
        if hasattr(given, "attention_types"):  # what GPT-Neo makes its list of layers from
            config.attention_types = [[[kind], 1] for kind in config.attention_layers]
    return config


def parameters_of(teacher: Any, width: int, depth: int | None = None) -> int:
    """How many parameters such a student has; none is allocated.

    Raises:
        InputError: see `build_student`.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(student_config(teacher, width, depth))
    return int(sum(weight.numel() for weight in model.parameters()))


def _config_of(teacher: Any) -> Any:
    """The Hugging Face configuration of a bridge's own model, or the one that a HookedTransformer was loaded by."""
    config = getattr(getattr(teacher, "original_model", None), "config", None)
    name = getattr(getattr(teacher, "cfg", None), "model_name", None)
    if config is None and name:
        config = _config_by_name(str(name))
    if not hasattr(config, "hidden_size"):
        raise InputError(
            f"a student needs a teacher with a Hugging Face configuration, which this {type(teacher).__name__} has not;"
            " load it by its name, its directory, or with TransformerBridge.boot_transformers"
        )
    return config


def _config_by_name(name: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(official_name(name))
    except (OSError, ValueError):
        return None


def _narrow_heads(config: Any, given: Any, width: int) -> None:
    heads = int(given.num_attention_heads)
    size = int(getattr(given, "head_dim", None) or given.hidden_size // heads)
    kv_heads = int(getattr(given, "num_key_value_heads", None) or heads)
    group = heads // kv_heads
    if getattr(config, "head_dim", None) is not None:  # the head size is free of the width
        chosen = max(1, round(width / size))
        if chosen > group:
            chosen = group * max(1, round(chosen / group))
    else:
        chosen = width // _head_size(given, width, size, group)
    config.num_attention_heads = chosen
    if getattr(given, "num_key_value_heads", None) is not None:
        config.num_key_value_heads = max(1, chosen // group)


def _head_size(given: Any, width: int, size: int, group: int) -> int:
    """The head size nearest below the teacher's that divides the width and that rotary embeddings can turn."""
    fitting = [n for n in range(1, width + 1) if width % n == 0 and _rotates(given, n)]
    near = [n for n in fitting if size / 2 <= n <= size or n == width < size]
    near = [n for n in near if width // n <= group or width // n % group == 0]
    if not near:
        raise InputError(
            f"no head near the teacher's {size} dimensions fits a student of width {width};"
            f" try {size * group * max(1, round(width / size / group))}"
        )
    return max(near)


def _rotates(given: Any, head_size: int) -> bool:
    rope = getattr(given, "rope_parameters", None)
    if rope is None:
        return True
    turned = int(head_size * (rope.get("partial_rotary_factor") or 1.0))
    return turned > 0 and turned % 2 == 0


def _layers_kept(layers: int, depth: int) -> list[int]:
    """Evenly spaced layers, the first and the last among them."""
    return [round(i * (layers - 1) / max(depth - 1, 1)) for i in range(depth)]


@torch.no_grad()
def _inherit(teacher: Any, student: Any, start: str) -> None:
    """Give the student what is left of the teacher's weights in fewer dimensions."""
    if not hasattr(teacher, "original_model"):
        raise InputError(
            f"the weights of a {type(teacher).__name__} have names of their own, so no student starts from them; use"
            " --start random, or load the teacher as a TransformerBridge"
        )
    state = {name.replace(OFF, ""): weight for name, weight in teacher.original_model.state_dict().items()}
    given, config = _config_of(teacher), student.config
    kept = _layers_kept(int(given.num_hidden_layers), int(config.num_hidden_layers))
    if start == "svd":
        state = _turned(state, student, int(config.hidden_size))
    for name, weight in student.state_dict().items():
        source = re.sub(r"(?<=\.)\d+(?=\.)", lambda found: str(kept[int(found[0])]), name, count=1)
        if source not in state:
            raise InputError(f"the teacher has no weight {source}, so no student starts from it; use --start random")
        weight.copy_(_sliced(source, state[source].float(), weight.shape, given, config))
    student.tie_weights()


def _sliced(name: str, weight: Tensor, shape: torch.Size, given: Any, config: Any) -> Tensor:
    """The leading part of a weight in every dimension; of joint query, key and value weights, of each part."""
    layout = _joint_layout(name)
    if layout is None or weight.ndim == 0:
        return weight[tuple(slice(0, n) for n in shape)]
    axis = 0 if weight.ndim == 1 or "query_key_value" in name else 1
    heads = [(int(c.num_attention_heads), int(c.hidden_size) // int(c.num_attention_heads)) for c in (given, config)]
    old, new = (layout(*each) for each in heads)
    moved = weight.movedim(axis, 0)
    parts = moved.reshape(*old, *moved.shape[1:])
    narrow: Tensor = parts[tuple(slice(0, n) for n in new)].flatten(0, len(new) - 1).movedim(0, axis)
    return narrow[tuple(slice(0, n) for n in shape)]


def _joint_layout(name: str) -> Callable[[int, int], tuple[int, int, int]] | None:
    """How a joint weight of query, key and value holds its heads: GPT-NeoX by heads, GPT-2 by kinds."""
    if re.search(r"\.(qkv_proj|gate_up_proj|Wqkv|c_attn_kv)\.", name):
        raise InputError(f"{name} joins several weights in a way that is not known here; use --start random")
    if ".query_key_value." in name:
        return lambda heads, size: (heads, 3, size)
    if ".attn.c_attn." in name:
        return lambda heads, size: (3, heads, size)
    return None


READS = r"(q_proj|k_proj|v_proj|query_key_value|c_attn|gate_proj|up_proj|h_to_4h|c_fc|fc_in|fc1|w1|w3)"
WRITES = r"(o_proj|out_proj|dense|4h_to_h|down_proj|c_proj|fc_out|fc2|w2)"
"""Last part of the names of what reads the residual stream, and of what writes it."""


def _turned(state: dict[str, Tensor], student: Any, width: int) -> dict[str, Tensor]:
    """The weights with their residual dimensions turned into the leading singular directions of the embeddings.

    A norm's scale becomes the mean of the teacher's, weighted by the squared loadings of the new direction.
    """
    tables = {
        name
        for name, module in student.named_modules()
        if isinstance(module, nn.Embedding) or module is student.get_output_embeddings()
    }
    stacked = torch.cat([state[f"{name}.weight"].float() for name in sorted(tables)])
    directions = torch.linalg.svd(stacked.T @ stacked)[0][:, :width]
    kinds = {name: type(module).__name__ for name, module in student.named_modules()}
    names = student.state_dict()
    found = {}
    for name, weight in state.items():
        module, _, kind = name.rpartition(".")
        if _first_layer(name) in names:
            found[name] = _turned_weight(module, kind, weight.float(), directions, module in tables, kinds)
    return found


def _turned_weight(
    module: str, kind: str, weight: Tensor, directions: Tensor, is_table: bool, kinds: dict[str, str]
) -> Tensor:
    last = module.rpartition(".")[2]
    reads, writes = (re.search(names + "$", last) is not None for names in (READS, WRITES))
    if weight.ndim == 1:
        if reads or is_table or len(weight) != len(directions):
            return weight
        return directions.T @ weight if kind == "bias" else directions.T.square() @ weight
    if weight.ndim != 2 or is_table:
        return weight @ directions if is_table else weight
    if not (reads or writes):
        raise InputError(f"whether {module} reads the residual stream is not known here; use --start teacher-slice")
    input_axis = 0 if kinds[_first_layer(module)] == "Conv1D" else 1  # GPT-2 keeps [input, output]
    residual = input_axis if reads else 1 - input_axis
    return directions.T @ weight if residual == 0 else weight @ directions


def _first_layer(module: str) -> str:
    """The same module of the first layer, which every student has."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "0", module, count=1)
