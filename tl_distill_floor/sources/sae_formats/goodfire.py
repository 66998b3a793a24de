"""Goodfire's SAEs: Llama-3.1-8B-Instruct-SAE-l19.pth, Llama-3.3-70B-Instruct-SAE-l50.pt and DeepSeek-R1-SAE-l37.pt.

codes = relu(encoder_linear(x)), reconstruction = decoder_linear(codes). Model and layer are in the file's name.
"""

import re
from typing import Any

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.sae_formats.files import SaeFile, shapes_of
from tl_distill_floor.sources.sae_formats.formats import SaeFormat
from tl_distill_floor.sources.sae_formats.settings import stated_metadata
from tl_distill_floor.sources.sae_formats.weights import SaeWeights, make_weights

_OWNERS = {"Llama": "meta-llama", "DeepSeek": "deepseek-ai"}
_TENSORS = {"encoder_linear.weight", "encoder_linear.bias", "decoder_linear.weight", "decoder_linear.bias"}
"""Names of the tensors."""


def _recognises(file: SaeFile) -> bool:
    return file.names == _TENSORS


def _read(file: SaeFile) -> SaeWeights:
    if file.names != _TENSORS:
        raise InputError(f"{file.name} holds ({shapes_of(file.tensors)}), expected {', '.join(sorted(_TENSORS))}")
    tensors = file.tensors
    return make_weights(
        file.name,
        tensors["encoder_linear.weight"].T,
        tensors["decoder_linear.weight"].T,
        tensors["encoder_linear.bias"],
        tensors["decoder_linear.bias"],
        subtract_b_dec=False,
        metadata=_metadata(file),
    )


def _metadata(file: SaeFile) -> dict[str, Any]:
    match = re.fullmatch(rf"(({'|'.join(_OWNERS)})-.+)-SAE-l(\d+)\.pth?", file.location.name)
    if match is None:
        return stated_metadata(file)
    named = {"model_name": f"{_OWNERS[match[2]]}/{match[1]}", "hook_name": f"blocks.{int(match[3])}.hook_resid_post"}
    return stated_metadata(file) | named


FORMAT = SaeFormat("goodfire", _recognises, _read)
