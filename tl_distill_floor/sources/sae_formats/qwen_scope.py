"""Qwen Scope: `layer12.sae.pt` in a repository such as Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50, a TopK SAE.

codes = top_k(relu(W_enc @ x + b_enc)) with the k of the repository's name; reconstruction = W_dec @ codes + b_dec.
"""

import re

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.sae_formats.files import SaeFile, shapes_of
from tl_distill_floor.sources.sae_formats.formats import SaeFormat
from tl_distill_floor.sources.sae_formats.weights import SaeWeights, make_weights

_FILE = re.compile(r"layer(\d+)\.sae\.pt")
"""Name of a layer's file."""
_REPOSITORY = re.compile(r"SAE-Res-(Qwen.+)-W(\d+)K-L0_(\d+)$")
"""Name of a repository: model, features in thousands, active features per token."""
_TENSORS = {"W_enc", "W_dec", "b_enc", "b_dec"}
"""Names of the tensors."""


def _recognises(file: SaeFile) -> bool:
    return _FILE.fullmatch(file.location.name) is not None and file.names == _TENSORS


def _read(file: SaeFile) -> SaeWeights:
    layer = _FILE.fullmatch(file.location.name)
    folders = reversed(file.location.parts[:-1])
    repository = next((match for match in map(_REPOSITORY.search, folders) if match), None)
    if repository is None or layer is None:
        raise InputError(
            f"{file.name} is a TopK SAE whose k is only in the name of its repository; keep it as layerN.sae.pt in a"
            " folder with that name, such as SAE-Res-Qwen3-8B-Base-W64K-L0_50"
        )
    if file.names != _TENSORS:
        raise InputError(f"{file.name} holds ({shapes_of(file.tensors)}), expected {', '.join(sorted(_TENSORS))}")
    tensors = file.tensors
    return make_weights(
        file.name,
        tensors["W_enc"].T,
        tensors["W_dec"].T,
        tensors["b_enc"],
        tensors["b_dec"],
        subtract_b_dec=False,
        k=int(repository[3]),
        metadata={"hook_name": f"blocks.{int(layer[1])}.hook_resid_post", "model_name": f"Qwen/{repository[1]}"},
    )


FORMAT = SaeFormat("qwen-scope", _recognises, _read)
