"""SAEs of EleutherAI's sparsify: `cfg.json` and `sae.safetensors` in a folder that is named after a hook point.

codes = top_k(relu((x - b_dec) @ encoder.weight.T + encoder.bias)), or with `signed` the k pre-activations of the
largest magnitude; reconstruction = codes @ W_dec + b_dec.
"""

import re
from typing import Any

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.sae_formats.files import SaeFile, shapes_of
from tl_distill_floor.sources.sae_formats.formats import SaeFormat
from tl_distill_floor.sources.sae_formats.locations import folders_of
from tl_distill_floor.sources.sae_formats.settings import require_hook_name
from tl_distill_floor.sources.sae_formats.weights import SaeWeights, make_weights

_MODULE = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.\d+(?:\.|$)|embed_tokens|embed_in|wte")


def _recognises(file: SaeFile) -> bool:
    config = file.configs.get("cfg.json", {})
    written_by_sparsify = {"d_in", "k"} <= set(config) and bool({"num_latents", "expansion_factor"} & set(config))
    return written_by_sparsify and "d_sae" not in config


def _read(file: SaeFile) -> SaeWeights:
    config = file.configs.get("cfg.json", {})
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise InputError(f"{file.name} has activation={activation!r:.40}, which cannot be measured; give a topk SAE")
    required = {"encoder.weight", "encoder.bias"}
    if not required <= file.names or not {"W_dec", "decoder.weight"} & file.names or "k" not in config:
        raise InputError(
            f"{file.name} lacks k, encoder.weight, encoder.bias or W_dec of sparsify ({shapes_of(file.tensors)});"
            " give the folder that sparsify wrote"
        )
    tensors = file.tensors
    W_dec = tensors["W_dec"] if "W_dec" in tensors else tensors["decoder.weight"].T
    known = {*required, "W_dec", "decoder.weight", "b_dec"}
    if file.names - known:
        raise InputError(
            f"{file.name} holds {', '.join(sorted(file.names - known))}, which sparsify's SAEs do not have"
        )
    return make_weights(
        file.name,
        tensors["encoder.weight"].T,
        W_dec,
        tensors["encoder.bias"],
        tensors.get("b_dec"),
        subtract_b_dec=True,
        k=config["k"],
        signed=config.get("signed") is True,
        metadata=_metadata(file),
    )


def _metadata(file: SaeFile) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    module = next((folder for folder in folders_of(file) if _MODULE.search(folder)), None)
    if module is not None:
        metadata["hook_name"] = require_hook_name(file, module)
    run = file.parent_configs.get("config.json", {})
    if isinstance(run.get("model"), str):
        metadata["model_name"] = run["model"]
    if isinstance(run.get("ctx_len"), int):
        metadata["context_size"] = run["ctx_len"]
    return metadata


FORMAT = SaeFormat("sparsify", _recognises, _read, frozenset({"signed", "normalize_decoder"}))
