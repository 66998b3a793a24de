"""SAEs of Sarkar and Deka 2026 (arXiv 2604.04037): `{"model_state": ..., "config": ..., "stats": ...}`.

codes = relu(encoder(x - b_pre)), reconstruction = decoder(codes) + b_pre: with both the decoder's bias and b_pre.
"""

import re
from typing import Any

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.sae_directory import PAPER_MODEL, PAPER_REPOSITORIES
from tl_distill_floor.sources.sae_formats.files import SaeFile, shapes_of
from tl_distill_floor.sources.sae_formats.formats import SaeFormat
from tl_distill_floor.sources.sae_formats.settings import stated_metadata
from tl_distill_floor.sources.sae_formats.weights import SaeWeights, fold_bias, full_precision, make_weights

_REQUIRED = {"b_pre", "encoder.weight", "decoder.weight"}
_OPTIONAL = {"encoder.bias", "decoder.bias"}
"""Tensors that every file has, and those that a file may have."""


def _recognises(file: SaeFile) -> bool:
    return file.wrapper == "model_state" and _REQUIRED <= file.names <= _REQUIRED | _OPTIONAL


def _read(file: SaeFile) -> SaeWeights:
    if not _REQUIRED <= file.names <= _REQUIRED | _OPTIONAL:
        raise InputError(
            f"{file.name} holds ({shapes_of(file.tensors)}), expected b_pre, encoder.* and decoder.*; give another file"
        )
    tensors = file.tensors
    W_enc, b_pre = tensors["encoder.weight"].T, tensors["b_pre"]
    b_enc = tensors.get("encoder.bias", W_enc.new_zeros(W_enc.shape[1]))
    b_dec = tensors.get("decoder.bias", b_pre.new_zeros(b_pre.shape))
    if b_pre.shape != b_dec.shape or b_pre.shape != (W_enc.shape[0],) or b_enc.shape != (W_enc.shape[1],):
        raise InputError(f"{file.name} holds biases that do not fit together ({shapes_of(tensors)}); give another file")
    folded = fold_bias(W_enc, b_enc, b_pre)
    return make_weights(
        file.name,
        W_enc,
        tensors["decoder.weight"].T,
        folded,
        full_precision(b_dec) + full_precision(b_pre),
        subtract_b_dec=False,
        metadata=_metadata(file),
    )


def _metadata(file: SaeFile) -> dict[str, Any]:
    """Return what the configuration and the file's name say; the hook point is the output of a block."""
    metadata = stated_metadata(file)
    match = re.fullmatch(r"sae_layer(\d+)_\w+", file.location.stem)
    layer = metadata.pop("layer", None if match is None else int(match[1]))
    if match is not None and layer != int(match[1]):
        raise InputError(f"{file.name} names layer {layer} in its configuration; rename the file, or correct it")
    if layer is not None and "hook_name" not in metadata:
        metadata["hook_name"] = f"blocks.{layer}.hook_resid_post"
    if file.name.partition(":")[0] in PAPER_REPOSITORIES:
        metadata["model_name"] = PAPER_MODEL
    return metadata


FORMAT = SaeFormat("paper", _recognises, _read, ignored_sections=frozenset({"stats"}))
