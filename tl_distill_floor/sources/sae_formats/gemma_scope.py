"""Gemma Scope (`params.npz`) and Gemma Scope 2 (`params.safetensors` and `config.json`), JumpReLU SAEs.

codes = z where z > threshold, z = x @ W_enc + b_enc; reconstruction = codes @ W_dec + b_dec. Layer, site, model and
the number of active features are in the path: google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82.
"""

import re
from typing import Any

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.sae_directory import UNSUPPORTED_ARCHITECTURES
from tl_distill_floor.sources.sae_formats.files import SaeFile, shapes_of
from tl_distill_floor.sources.sae_formats.formats import SaeFormat
from tl_distill_floor.sources.sae_formats.hook_names import hook_name_at
from tl_distill_floor.sources.sae_formats.settings import require_hook_name
from tl_distill_floor.sources.sae_formats.weights import SaeWeights, make_weights

_TENSORS = {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"}
"""Names of the tensors in lower case."""
_SITES = {
    "res": "resid_post", "resid_post": "resid_post", "mlp": "mlp_out", "mlp_out": "mlp_out", "att": "z",
    "attn_out": "z",
}  # fmt: skip
"""Site of a hook point by its part of the release's or the folder's name."""
_N_PARTS = 8
"""Parts of a path that are read; in the cache of the Hub two folders lie between a repository's name and its files."""
CONTEXT_SIZE = 1024
"""Tokens per sequence in the training of Gemma Scope (Lieberum et al. 2024)."""


def _recognises(file: SaeFile) -> bool:
    lower_case = file.path.suffix == ".npz" or "w_enc" in file.names or _config(file) is not None
    return lower_case and {name.lower() for name in file.names} == _TENSORS


def _config(file: SaeFile) -> dict[str, Any] | None:
    return file.config_with("hf_hook_point_in")


def _read(file: SaeFile) -> SaeWeights:
    tensors = {name.lower(): tensor for name, tensor in file.tensors.items()}
    if set(tensors) != _TENSORS:
        raise InputError(f"{file.name} holds ({shapes_of(file.tensors)}), expected {', '.join(sorted(_TENSORS))}")
    config, path = _config(file), "/".join(file.location.parts[-_N_PARTS:])
    architecture = (config or {}).get("architecture", "jump_relu")
    if architecture != "jump_relu":
        raise InputError(f"{file.name} has architecture={architecture!r:.40}, expected jump_relu; give another SAE")
    if re.search(r"gemma-scope[\w.-]*transcoder|/(?:transcoder|clt)(?:_all)?/", path):
        raise InputError(f"{file.name} is a transcoder, and {UNSUPPORTED_ARCHITECTURES['transcoder']}; give an SAE")
    if "/embedding/" in path:
        raise InputError(f"{file.name} reads scaled embeddings, which no hook point holds; give an SAE of a layer")
    metadata = _metadata_of_path(path) if config is None else _metadata_of_config(file, config)
    return make_weights(
        file.name,
        tensors["w_enc"],
        tensors["w_dec"],
        tensors["b_enc"],
        tensors["b_dec"],
        subtract_b_dec=False,
        threshold=tensors["threshold"],
        metadata={"context_size": CONTEXT_SIZE, "prepend_bos": True} | metadata,
    )


def _metadata_of_path(path: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    layer, l0 = re.search(r"/layer_(\d+)(?:/|_)", path), re.search(r"average_l0_(\d+)", path)
    release = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att)\b", path)
    second = re.search(r"gemma-scope-2-(\d+[bm])-(pt|it)\b", path)
    site = release[3] if release else None
    if second is not None and (folder := re.search(r"/(resid_post|mlp_out|attn_out)(?:_all)?/", path)):
        site = folder[1]
    if layer is not None and site is not None:
        metadata["hook_name"] = hook_name_at(_SITES[site], int(layer[1]))
    elif layer is not None:
        metadata["layer"] = int(layer[1])
    if release is not None:
        metadata["model_name"] = f"google/gemma-2-{release[1]}" + ("-it" if release[2] == "it" else "")
    elif second is not None:
        metadata["model_name"] = _gemma_3(f"{second[1]}-{second[2]}")
    return metadata | ({} if l0 is None else {"l0": float(l0[1])})


def _metadata_of_config(file: SaeFile, config: dict[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {"hook_name": require_hook_name(file, str(config["hf_hook_point_in"]))}
    if isinstance(config.get("model_name"), str):
        metadata["model_name"] = _gemma_3(re.sub(r"^(?:google/)?gemma-(?:v3|3)-", "", config["model_name"]))
    if isinstance(config.get("l0"), int | float) and config["l0"] > 0:
        metadata["l0"] = float(config["l0"])
    return metadata


def _gemma_3(size: str) -> str:
    """Return the name of the Gemma 3 of a size such as 4b-pt; the smallest base model has no ending."""
    return f"google/gemma-3-{size.removesuffix('-pt') if size.startswith('270m') else size}"


FORMAT = SaeFormat("gemma-scope", _recognises, _read)
