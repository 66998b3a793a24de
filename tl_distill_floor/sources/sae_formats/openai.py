"""OpenAI's sparse_autoencoder (Gao et al. 2024): a checkpoint with `pre_bias`, `latent_bias` and `activation`.

codes = activation((x - pre_bias) @ encoder.weight.T + latent_bias), reconstruction = codes @ decoder.weight.T +
pre_bias. The TopK ones normalise each activation first, so their codes are no function of a linear read-out. The path
names model, site and layer: gpt2-small/resid_delta_mlp/autoencoders/3.pt.
"""

import re
from typing import Any

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.sae_directory import NORMALISATION_ADVICE
from tl_distill_floor.sources.sae_formats.files import SaeFile, shapes_of
from tl_distill_floor.sources.sae_formats.formats import SaeFormat
from tl_distill_floor.sources.sae_formats.settings import stated_metadata
from tl_distill_floor.sources.sae_formats.weights import SaeWeights, make_weights

_REQUIRED = {"pre_bias", "latent_bias", "encoder.weight"}
"""Tensors that every file has."""
_STATISTICS = {"stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"}
"""Tensors that change no code."""

_SITES = {
    "mlp_post_act": "mlp.hook_post", "resid_delta_mlp": "hook_mlp_out", "resid_delta_attn": "hook_attn_out",
    "resid_post_attn": "hook_resid_mid", "resid_post_mlp": "hook_resid_post",
}  # fmt: skip
_PATH = re.compile(rf"(?:(?P<model>[^/]+)/)?(?P<site>{'|'.join(_SITES)})(?:_v\d\w*)?/autoencoders/(?P<layer>\d+)\.pt$")


def _recognises(file: SaeFile) -> bool:
    return file.names >= _REQUIRED


def _read(file: SaeFile) -> SaeWeights:
    tensors = {name: tensor for name, tensor in file.tensors.items() if name not in _STATISTICS}
    decoders = {"decoder.weight", "decoder.linear.weight"}
    if not set(tensors) >= _REQUIRED or not set(tensors) <= _REQUIRED | decoders or len(decoders & set(tensors)) != 1:
        raise InputError(
            f"{file.name} holds ({shapes_of(tensors)}), expected encoder.weight, decoder.weight, pre_bias and"
            " latent_bias; give another file"
        )
    activation = _activation(file)
    if activation.lower() == "topk":
        raise InputError(
            f"{file.name} is a TopK SAE of OpenAI, which normalises each activation (layer norm):"
            f" {NORMALISATION_ADVICE['layer_norm']}"
        )
    if activation.lower() != "relu":
        raise InputError(f"{file.name} has the activation {activation!r:.40}, expected ReLU; give another SAE")
    tied = tensors.get("decoder.linear.weight")
    return make_weights(
        file.name,
        tensors["encoder.weight"].T,
        tensors["decoder.weight"].T if tied is None else tied,
        tensors["latent_bias"],
        tensors["pre_bias"],
        subtract_b_dec=True,
        metadata=_metadata(file),
    )


def _metadata(file: SaeFile) -> dict[str, Any]:
    metadata, match = stated_metadata(file), _PATH.search(file.location.as_posix())
    if match is None or "hook_name" in metadata:
        return metadata
    model = {"model_name": match["model"]} if match["model"] == "gpt2-small" else {}
    return model | metadata | {"hook_name": f"blocks.{match['layer']}.{_SITES[match['site']]}"}


def _activation(file: SaeFile) -> str:
    config = file.config_with("activation") or file.stored
    activation = config.get("activation")
    if isinstance(activation, str):
        return activation
    raise InputError(
        f"{file.name} has lost the name of its activation, so it may be a ReLU SAE, or a TopK SAE on normalised"
        " activations; give the original .pt file, which holds it"
    )


FORMAT = SaeFormat("openai", _recognises, _read)
