"""Llama Scope and other SAEs of OpenMOSS: weights with `hyperparams.json` (one folder up) or `config.json`.

With dataset-wise normalisation, z = (s x) @ W_enc + b_enc with s = sqrt(d_model) / (average norm of the inputs), and
the reconstruction is divided by the same factor of the outputs: both are folded into the weights here. With
`sparsity_include_decoder_norm`, the threshold applies to z times the norm of the decoder row. The number
`jump_relu_threshold` was measured after the training of a TopK SAE, on activations without normalisation: it applies to
z / s. A trained threshold, `log_jumprelu_threshold`, applies to z.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.sae_directory import UNSUPPORTED_ARCHITECTURES
from tl_distill_floor.sources.sae_formats.files import SaeFile, shapes_of
from tl_distill_floor.sources.sae_formats.formats import SaeFormat
from tl_distill_floor.sources.sae_formats.settings import require_hook_name
from tl_distill_floor.sources.sae_formats.weights import SaeWeights, full_precision, make_weights

_NORM = "dataset_average_activation_norm"
"""Setting, and beginning of the names of tensors, with the average norms of a dataset-wise normalisation."""
_LOG_THRESHOLDS = ("log_jumprelu_threshold", "activation_function.log_jumprelu_threshold")
"""Names of the logarithm of the threshold, in the order of the library's versions."""
_UNDERSTOOD = frozenset({"norm_activation", "sparsity_include_decoder_norm", "use_glu_encoder", _NORM})
"""Settings that can change codes and that this format takes into account."""


def _recognises(file: SaeFile) -> bool:
    return _config(file) is not None


def _config(file: SaeFile) -> dict[str, Any] | None:
    in_parent = {} if file.path.parent.name != "checkpoints" else file.parent_configs
    for config in (*file.configs.values(), *in_parent.values()):
        if "hook_point_in" in config and "d_model" in config and ("act_fn" in config or "sae_type" in config):
            return config
    return None


def _read(file: SaeFile) -> SaeWeights:
    config = _config(file)
    if config is None:
        raise InputError(f"{file.name} lacks the hyperparams.json or config.json of its SAE; put it in the same folder")
    _refuse_other_kinds(file, config)
    W_enc, W_dec, b_enc, b_dec = _tensors(file)
    if config.get("use_decoder_bias") is False:
        b_dec = None
    scale_in, scale_out = _scales(file, config)
    norms = W_dec.double().norm(dim=1)
    activation, k = str(config.get("act_fn", "relu")).lower(), None
    threshold = _threshold(file, config, scale_in) if activation == "jumprelu" else None
    if activation == "topk":
        k = config.get("top_k")
        if k is None:
            raise InputError(f"{file.name} has act_fn=topk, but no top_k; add top_k to its configuration")
        if _uses_decoder_norm(file, config, norms):
            W_enc, b_enc, W_dec = W_enc * norms, b_enc * norms, W_dec / norms[:, None]
    elif activation == "jumprelu":
        if threshold is None:
            raise InputError(
                f"{file.name} has act_fn=jumprelu, but no jump_relu_threshold; give its full configuration"
            )
        if _uses_decoder_norm(file, config, norms):
            threshold = threshold.double() / norms
    elif activation != "relu":
        raise InputError(
            f"{file.name} has act_fn={activation!r:.40}, expected relu, jumprelu or topk; give another SAE"
        )
    subtract = b_dec is not None and config.get("apply_decoder_bias_to_pre_encoder") is True
    if subtract and scale_in != scale_out:
        raise InputError(f"{file.name} subtracts a bias that is scaled in two ways ({_NORM}); give another SAE")
    return make_weights(
        file.name,
        (W_enc * scale_in).float(),
        (W_dec / scale_out).float(),
        b_enc.float(),
        None if b_dec is None else (b_dec / scale_out).float(),
        subtract_b_dec=subtract,
        threshold=threshold,
        k=k,
        metadata=_metadata(file, config),
    )


def _refuse_other_kinds(file: SaeFile, config: Mapping[str, Any]) -> None:
    d_model = config["d_model"]
    if not isinstance(config["hook_point_in"], str) or type(d_model) is not int or d_model < 1:
        raise InputError(f"{file.name} has a hook_point_in or d_model of the wrong type; correct its configuration")
    hook_in, hook_out = config["hook_point_in"], config.get("hook_point_out", config["hook_point_in"])
    kind = config.get("sae_type", "sae")
    if hook_in != hook_out:
        reason = UNSUPPORTED_ARCHITECTURES["transcoder"]
        raise InputError(f"{file.name} is a transcoder ({hook_in} to {hook_out}), and {reason}; give an SAE")
    if kind != "sae":
        raise InputError(f"{file.name} has sae_type={kind!r:.40}, which is not a plain SAE; give another one")
    if config.get("use_glu_encoder"):
        raise InputError(f"{file.name} has use_glu_encoder=True, which is not a plain SAE; give another one")


def _tensors(file: SaeFile) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_enc and b_dec."""
    tensors = {name: tensor.double() for name, tensor in file.tensors.items()}
    known = {
        "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias", "W_E", "b_E", "W_D", "b_D",
        *_LOG_THRESHOLDS,
    }  # fmt: skip
    unknown = {name for name in tensors if name not in known and not name.startswith(_NORM)}
    if {"encoder.weight", "encoder.bias", "decoder.weight"} <= set(tensors) and not unknown:
        W_enc, W_dec = tensors["encoder.weight"].T, tensors["decoder.weight"].T
        return W_enc, W_dec, tensors["encoder.bias"], tensors.get("decoder.bias")
    if {"W_E", "b_E", "W_D"} <= set(tensors) and not unknown:
        return tensors["W_E"], tensors["W_D"], tensors["b_E"], tensors.get("b_D")
    raise InputError(
        f"{file.name} holds ({shapes_of(file.tensors)}), expected encoder and decoder of an SAE of OpenMOSS; give"
        " another file"
    )


def _threshold(file: SaeFile, config: Mapping[str, Any], scale: float) -> Tensor | None:
    """Return the threshold of z; None if there is none."""
    logarithm = next((file.tensors[name] for name in _LOG_THRESHOLDS if name in file.tensors), None)
    if logarithm is not None:
        return full_precision(logarithm).exp()
    value = config.get("jump_relu_threshold")
    if not isinstance(value, int | float):
        return None
    if scale != 1 and _k_of_measured_threshold(file, config) is None:
        raise InputError(
            f"{file.name} has a jump_relu_threshold, and no top_k that shows whether it applies to activations with or"
            " without normalisation; give its full configuration"
        )
    return torch.tensor(float(value) * scale)


def _k_of_measured_threshold(file: SaeFile, config: Mapping[str, Any]) -> int | None:
    """Return the k of the TopK SAE for which a number was chosen as threshold; None if the threshold was trained.

    At this threshold, k features are active on average.
    """
    is_number = isinstance(config.get("jump_relu_threshold"), int | float) and not set(_LOG_THRESHOLDS) & file.names
    k = config.get("top_k")
    return k if is_number and isinstance(k, int) and str(config.get("act_fn")).lower() == "jumprelu" else None


def _uses_decoder_norm(file: SaeFile, config: Mapping[str, Any], norms: Tensor) -> bool:
    """Return whether the activation applies to z times the decoder's norm, which does not matter if the norms are 1."""
    stated = config.get("sparsity_include_decoder_norm")
    if isinstance(stated, bool):
        return stated
    if bool(((norms - 1).abs() > 1e-3).any()):
        raise InputError(
            f"{file.name} does not say whether its threshold includes the decoder's norm, and the norms are not 1; add"
            " sparsity_include_decoder_norm to its configuration"
        )
    return False


def _scales(file: SaeFile, config: Mapping[str, Any]) -> tuple[float, float]:
    """Return the factors by which inputs and outputs are multiplied."""
    kind = str(config.get("norm_activation", "none"))
    if kind in ("none", "inference", "None"):
        return 1.0, 1.0
    if kind != "dataset-wise":
        raise InputError(
            f"{file.name} has norm_activation={kind!r:.40}: the scale of a feature then changes with every token; give"
            " an SAE trained without it"
        )
    stored = {name.removeprefix(f"{_NORM}."): float(t) for name, t in file.tensors.items() if name.startswith(_NORM)}
    norms = config.get(_NORM) if isinstance(config.get(_NORM), dict) else stored
    assert isinstance(norms, dict)
    scales = []
    for side in ("in", "out"):
        hook = config.get(f"hook_point_{side}", config["hook_point_in"])
        norm = norms.get(side, norms.get(hook))
        if isinstance(norm, bool) or not isinstance(norm, int | float) or not norm > 0 or not math.isfinite(norm):
            raise InputError(
                f"{file.name} is normalised by the dataset's average norm, but {_NORM} does not hold it for {hook}; add"
                " it to its configuration"
            )
        scales.append(math.sqrt(float(config["d_model"])) / norm)
    return scales[0], scales[1]


def _metadata(file: SaeFile, config: Mapping[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {"hook_name": require_hook_name(file, str(config["hook_point_in"]))}
    k = _k_of_measured_threshold(file, config)
    metadata |= {} if k is None else {"l0": float(k)}
    if re.search(r"Llama3_1-8B-Base", "/".join(file.location.parts[-5:])):
        # Context and beginning-of-text token as in He et al. 2024.
        metadata |= {"model_name": "meta-llama/Llama-3.1-8B", "context_size": 1024, "prepend_bos": True}
    elif isinstance(config.get("model_name"), str):
        metadata["model_name"] = config["model_name"]
    return metadata


FORMAT = SaeFormat("llama-scope", _recognises, _read, _UNDERSTOOD)
