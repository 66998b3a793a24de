"""Initial weights of students that come from the teacher: slices, or projections onto singular directions."""

import re
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.distilling.layers import evenly_spaced_layers
from tl_distill_floor.distilling.student_config import hugging_face_config
from tl_distill_floor.errors import InputError

BRIDGE_SUFFIX = "._original_component"
"""Part that TransformerBridge adds to the names of the weights that it wraps."""
LAYER_NUMBER = r"(?<=\.)\d+(?=\.)"
RESIDUAL_READERS = r"(q_proj|k_proj|v_proj|query_key_value|c_attn|gate_proj|up_proj|h_to_4h|c_fc|fc_in|fc1|w1|w3)$"
RESIDUAL_WRITERS = r"(o_proj|out_proj|dense|4h_to_h|down_proj|c_proj|fc_out|fc2|w2)$"
"""Names of the modules whose input, and whose output, is the residual stream."""
JOINT_LAYOUTS = {".query_key_value.": "(head kind size) ...", ".attn.c_attn.": "... (kind head size)"}
"""Order of the heads in joint weights of query, key and value: of GPT-NeoX and Falcon, and of GPT-2."""
UNKNOWN_JOINT_WEIGHTS = r"\.(qkv_proj|gate_up_proj|Wqkv|c_attn_kv)\."


@torch.no_grad()
def inherit_weights(teacher: HookedModel, student: nn.Module, start: Literal["teacher-slice", "svd"]) -> None:
    """Set a student's weights from its teacher's.

    Args:
        teacher: a TransformerBridge.
        student: a student of the same family, which is changed.
        start: see `build_student`.

    Raises:
        InputError: the teacher is a HookedTransformer, or the layout of a weight is not known.
    """
    if not hasattr(teacher, "original_model"):
        raise InputError(
            f"a student cannot start from the weights of a {type(teacher).__name__}, whose names differ; use --start"
            " random, or load the teacher as a TransformerBridge"
        )
    state = {name.replace(BRIDGE_SUFFIX, ""): weight for name, weight in teacher.original_model.state_dict().items()}
    teacher_config, config = hugging_face_config(teacher), student.config
    layers = evenly_spaced_layers(int(teacher_config.num_hidden_layers), int(config.num_hidden_layers))  # type: ignore[union-attr,arg-type]
    if start == "svd":
        state = _project_weights(state, student, int(config.hidden_size))  # type: ignore[union-attr,arg-type]
    for name, weight in student.state_dict().items():
        source = re.sub(LAYER_NUMBER, lambda number: str(layers[int(number[0])]), name, count=1)
        if source not in state:
            raise InputError(f"the teacher has no weight {source}, so no student starts from it; use --start random")
        weight.copy_(_slice_weight(source, state[source].float(), weight.shape, teacher_config, config))  # type: ignore[arg-type]
    student.tie_weights()  # type: ignore[operator]


def _slice_weight(
    name: str, weight: Float[Tensor, "..."], shape: torch.Size, teacher: PreTrainedConfig, student: PreTrainedConfig
) -> Float[Tensor, "..."]:
    """Return the leading part of a weight; of a joint weight of query, key and value, the leading part of each.

    Args:
        name: name of the weight.
        weight: the teacher's weight.
        shape: shape of the student's weight.
        teacher: the teacher's configuration.
        student: the student's configuration.
    """
    layout = _joint_layout(name)
    if layout is not None and weight.ndim > 0:
        heads = rearrange(weight, f"{layout} -> head kind size ...", head=int(teacher.num_attention_heads), kind=3)
        n_heads = int(student.num_attention_heads)
        heads = heads[:n_heads, :, : int(student.hidden_size) // n_heads]
        weight = rearrange(heads, f"head kind size ... -> {layout}")
    return weight[tuple(slice(0, size) for size in shape)]


def _joint_layout(name: str) -> str | None:
    """Return the order of the heads in a joint weight of query, key and value; None for other weights."""
    if re.search(UNKNOWN_JOINT_WEIGHTS, name):
        raise InputError(f"{name} joins several weights in an unknown layout; use --start random")
    return next((layout for part, layout in JOINT_LAYOUTS.items() if part in name), None)


def _project_weights(state: dict[str, Tensor], student: nn.Module, width: int) -> dict[str, Tensor]:
    """Project the residual dimensions of all weights onto the leading singular directions of the embeddings.

    The scale of a norm becomes the mean of the teacher's scales, weighted by the squared loadings of each direction.

    Args:
        state: the teacher's weights.
        student: a student, whose modules say what each weight is.
        width: width of the student, dimensions.

    Returns:
        The weights of all layers.
    """
    modules = dict(student.named_modules())
    output_embeddings = student.get_output_embeddings()  # type: ignore[operator]
    embeddings = {
        name for name, module in modules.items() if isinstance(module, nn.Embedding) or module is output_embeddings
    }
    stacked = torch.cat([state[f"{name}.weight"].float() for name in sorted(embeddings)])
    directions = torch.linalg.svd(stacked.T @ stacked)[0][:, :width]
    student_names = student.state_dict()
    projected = {}
    for name, weight in state.items():
        if _in_first_layer(name) not in student_names:
            continue
        module_name, _, kind = name.rpartition(".")
        if module_name in embeddings:
            projected[name] = weight.float() @ directions if weight.ndim == 2 else weight.float()
        elif weight.ndim == 1:
            projected[name] = _project_vector(module_name, kind, weight.float(), directions)
        elif weight.ndim == 2:
            # GPT-2 stores its matrices as [input, output].
            is_transposed = type(modules[_in_first_layer(module_name)]).__name__ == "Conv1D"
            projected[name] = _project_matrix(module_name, weight.float(), directions, is_transposed)
        else:
            projected[name] = weight.float()
    return projected


def _project_vector(
    module_name: str, kind: str, vector: Float[Tensor, " output"], directions: Float[Tensor, "d_model width"]
) -> Float[Tensor, " projected"]:
    """Project a bias or the scale of a norm, if it has residual dimensions."""
    if re.search(RESIDUAL_READERS, module_name) or len(vector) != len(directions):
        return vector
    return directions.T @ vector if kind == "bias" else directions.T.square() @ vector


def _project_matrix(
    module_name: str,
    matrix: Float[Tensor, "rows columns"],
    directions: Float[Tensor, "d_model width"],
    is_transposed: bool,
) -> Float[Tensor, "projected_rows projected_columns"]:
    """Project a matrix that reads the residual stream or writes to it."""
    is_reader = re.search(RESIDUAL_READERS, module_name) is not None
    if not is_reader and not re.search(RESIDUAL_WRITERS, module_name):
        raise InputError(f"it is not known whether {module_name} reads the residual stream; use --start teacher-slice")
    # Rows are outputs, unless the matrix is transposed.
    residual_is_rows = is_reader == is_transposed
    return directions.T @ matrix if residual_is_rows else matrix @ directions


def _in_first_layer(name: str) -> str:
    """Return the name of the same module or weight in the first layer, which every student has."""
    return re.sub(LAYER_NUMBER, "0", name, count=1)
