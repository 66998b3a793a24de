"""State dicts of no published format: taken only if their codes can mean one thing.

The activation must be known (a threshold, a number k, or a setting that names it), and whether the bias of the decoder
is subtracted before the encoder (its name, a setting, or because it is zero). All else is refused, with the key map
that would say it.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.sae_formats.files import SaeFile, shapes_of
from tl_distill_floor.sources.sae_formats.settings import all_settings, stated_metadata
from tl_distill_floor.sources.sae_formats.weights import SaeWeights, full_precision, make_weights

_COUNTERS = re.compile(r"freq|count|fired|since|dead|alive|stat|usage|steps?$|nonzero|batches|tokens|bandwidth")
"""Names of tensors that count something in the training, and change no code."""
_FACTORS = re.compile(r"(?:^|[._])(?:mean|std|scale|scaling(?:_factor)?|norm_?(?:factor|scale|coeff)\w*)$|whiten")
"""Names of tensors that scale or shift something."""
_ACTIVATIONS = ("activation", "activation_fn", "activation_fn_str", "act_fn", "architecture", "sae_type")
"""Settings that name the activation."""
_K_NAMES = ("k", "topk", "top_k")
"""Names of the number of active features."""
_THRESHOLD_SETTING = re.compile(r"(?:jump_?relu_?|activation_)?(?:thresholds?|theta)")
"""Settings that hold a threshold."""
_MAP_ROLES = ("b_enc", "b_dec", "b_pre", "threshold", "k")
"""Optional keys of the key map that an error message shows."""
_SUBTRACTS = ("apply_b_dec_to_input", "subtract_b_dec", "apply_decoder_bias_to_pre_encoder")
"""Settings that say whether the bias of the decoder is subtracted before the encoder."""


def read_bare(file: SaeFile, d_in: int | None) -> SaeWeights:
    """Return the weights of a state dict whose codes can mean one thing.

    Args:
        file: the state dict with what lies with it.
        d_in: width of the activations; the smaller side of the matrices if None.

    Raises:
        InputError: the state dict is ambiguous.
    """
    matrices = {name: tensor for name, tensor in file.tensors.items() if tensor.ndim == 2}
    encoder, decoder = _name_matrices(matrices, file)
    width, d_sae = _sizes(matrices, d_in, file)
    roles = _vector_roles(file, (width, d_sae))
    names = {role: name for name, role in roles.items()}
    tensors = {role: file.tensors[name] for role, name in names.items()}
    key_map = {"W_enc": encoder, "W_dec": decoder, **{r: n for r, n in names.items() if r in _MAP_ROLES}}
    threshold, k, signed = _activation(file, tensors, names, key_map)
    pre, b_dec = tensors.get("b_pre"), tensors.get("b_dec")
    subtract = _subtracts(file, pre, b_dec, names, key_map)
    return make_weights(
        file.name,
        _oriented(matrices[encoder], (width, d_sae)),
        _oriented(matrices[decoder], (d_sae, width)),
        tensors.get("b_enc"),
        pre if pre is not None and (b_dec is None or not bool(b_dec.any())) else b_dec,
        subtract_b_dec=subtract,
        threshold=threshold,
        k=k,
        signed=signed,
        metadata=stated_metadata(file),
    )


def ambiguity_error(file: SaeFile, reason: str, key_map: Mapping[str, Any]) -> InputError:
    """Return the InputError for a state dict whose codes can mean several things, with a key map to complete.

    Args:
        file: the state dict.
        reason: what is not known.
        key_map: keys that are known so far.
    """
    # Placeholders, which the key map refuses until they are replaced.
    unknown = {"activation": "RELU, JUMPRELU or TOPK"}
    unknown |= {"subtract_b_dec": "TRUE or FALSE"} if "b_dec" in key_map else {}
    text = json.dumps({key: value for key, value in key_map.items() if value} | unknown)
    return InputError(
        f"{file.name} is a bare state dict: {reason}; say what it means with --sae-format '{text}' (jumprelu"
        " with a threshold, topk with k), or give a SAELens directory, as sae.save_model(path) writes it"
    )


def _settings(file: SaeFile) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for _, settings in all_settings(file):
        merged |= {key.lower(): value for key, value in settings.items()}
    return merged


def _activation(
    file: SaeFile, tensors: Mapping[str, Tensor], names: Mapping[str, str], key_map: Mapping[str, Any]
) -> tuple[Tensor | None, Any, bool]:
    """Return the threshold of a JumpReLU SAE, the k of a TopK SAE, and whether it keeps signs."""
    settings = _settings(file)
    stated = {str(settings[name]).lower().replace("_", "") for name in _ACTIVATIONS if settings.get(name)}
    stated -= {"standard"} if len(stated) > 1 else set()
    kind = next(iter(stated), None)
    threshold = tensors.get("threshold", _threshold_setting(settings))
    if "threshold" in tensors and "log" in names["threshold"].lower():
        threshold = full_precision(tensors["threshold"]).exp()
    k = tensors.get("k", next((settings[name] for name in _K_NAMES if settings.get(name) is not None), None))
    if len(stated) > 1 or kind not in (None, "relu", "standard", "vanilla", "jumprelu", "topk", "abstopk"):
        raise ambiguity_error(file, f"its activation is named {' and '.join(sorted(stated))!r:.60}", key_map)
    if kind in ("relu", "standard", "vanilla") and threshold is None and k is None:
        return None, None, False
    is_jumprelu = kind == "jumprelu" or (kind is None and "threshold" in tensors)
    if is_jumprelu and threshold is not None and k is None and not bool((threshold < 0).any()):
        return threshold, None, False
    if kind in ("topk", "abstopk") and k is not None:
        return None, k, kind == "abstopk"
    if kind is None and "k" in tensors and threshold is None:
        return None, k, False
    if threshold is not None and k is not None:
        reason = "it holds both k and a threshold, so it may be a TopK or a BatchTopK SAE"
    elif kind is None:
        reason = "nothing says whether its activation is ReLU, TopK or another one"
    else:
        reason = f"its activation is named {kind!r:.40}, and the file does not hold what this needs, or holds more"
    raise ambiguity_error(file, reason, key_map)


def _threshold_setting(settings: Mapping[str, Any]) -> Tensor | None:
    """Return a threshold that is a number in the settings, other than 0; None if there is none."""
    numbers = (value for key, value in settings.items() if _THRESHOLD_SETTING.fullmatch(key))
    return next((torch.tensor(float(value)) for value in numbers if type(value) in (int, float) and value), None)


def _subtracts(
    file: SaeFile, pre: Tensor | None, b_dec: Tensor | None, names: Mapping[str, str], key_map: Mapping[str, Any]
) -> bool:
    """Return whether the decoder's bias is subtracted before the encoder."""
    settings = _settings(file)
    stated = [settings[name] for name in _SUBTRACTS if isinstance(settings.get(name), bool)]
    if pre is not None and b_dec is not None and bool(pre.any()) and bool(b_dec.any()):
        reason = f"it is not known whether {names['b_pre']} is added to the reconstruction, next to {names['b_dec']}"
        raise ambiguity_error(file, reason, key_map)
    if pre is not None and (b_dec is None or not bool(b_dec.any())):
        return True
    if b_dec is None or not bool(b_dec.any()):
        return False
    if len(set(stated)) == 1:
        return bool(stated[0])
    raise ambiguity_error(file, f"it is not known whether {names['b_dec']} is subtracted before the encoder", key_map)


def _name_matrices(matrices: Mapping[str, Tensor], file: SaeFile) -> tuple[str, str]:
    encoders = [name for name in matrices if _is_encoder(name)]
    decoders = [name for name in matrices if _is_decoder(name)]
    if len(matrices) != 2 or len(encoders) != 1 or len(decoders) != 1:
        raise InputError(
            f"{file.name} holds {len(matrices)} matrices ({shapes_of(matrices)}), expected one encoder and one decoder "
            'with distinct names, such as W_enc; name them with --sae-format \'{"W_enc": ..., "W_dec": ...}\','
            " or give a SAELens directory"
        )
    return encoders[0], decoders[0]


def _is_decoder(name: str) -> bool:
    return "dec" in name.lower() or name.lower().rpartition(".")[2] in ("w_d", "wd")


def _is_encoder(name: str) -> bool:
    return not _is_decoder(name) and ("enc" in name.lower() or name.lower().rpartition(".")[2] in ("w_e", "we"))


def _sizes(matrices: Mapping[str, Tensor], d_in: int | None, file: SaeFile) -> tuple[int, int]:
    sides = {tuple(sorted(matrix.shape)) for matrix in matrices.values()}
    if len(sides) != 1:
        raise InputError(
            f"{file.name} holds matrices that do not fit together ({shapes_of(matrices)}); give another file"
        )
    ((small, large),) = sides
    if small == large:
        raise InputError(
            f"{file.name} holds square matrices ({shapes_of(matrices)}), whose orientation cannot be inferred; give a"
            " SAELens directory, as sae.save_model(path) writes it"
        )
    if d_in not in (None, small, large):
        raise InputError(
            f"{file.name} reads activations of width {small} ({shapes_of(matrices)}), but {d_in} was expected; give the"
            " SAE of this model and hook point"
        )
    return (large, small) if d_in == large else (small, large)


def _oriented(matrix: Tensor, shape: tuple[int, int]) -> Tensor:
    return matrix if tuple(matrix.shape) == shape else matrix.T


def _vector_roles(file: SaeFile, sizes: tuple[int, int]) -> dict[str, str]:
    """Return the role of each vector and scalar that has one: b_enc, b_pre, b_dec, threshold or k."""
    roles: dict[str, str] = {}
    for name, tensor in file.tensors.items():
        if tensor.ndim == 2 or (role := _role(name.lower(), tensor, sizes)) is None:
            continue
        if role in roles.values() or role == "unknown":
            raise InputError(
                f"{file.name} holds {name} of shape {list(tensor.shape)}, whose role among ({shapes_of(file.tensors)}) "
                "is not known; give a SAELens directory, as sae.save_model(path) writes it"
            )
        roles[name] = role
    return roles


def _role(name: str, tensor: Tensor, sizes: tuple[int, int]) -> str | None:
    """Return the role of a vector or scalar; None if it has no role, "unknown" if it may have one."""
    d_in, d_sae = sizes
    leaf = name.rpartition(".")[2]
    if _FACTORS.search(name):
        neutral = torch.zeros_like(tensor) if "mean" in name else torch.ones_like(tensor)
        return None if torch.equal(tensor, neutral) else "unknown"
    if tensor.ndim == 0:
        known = "threshold" if "threshold" in name else "k" if leaf in _K_NAMES else None
        return known or (None if _COUNTERS.search(name) else "unknown")
    if _COUNTERS.search(name):
        return None
    if tensor.shape == (d_sae,):
        return "threshold" if "threshold" in name else "b_enc" if _is_encoder_bias(name) else "unknown"
    if tensor.shape == (d_in,):
        return _decoder_side_role(name)
    return "unknown"


def _is_encoder_bias(name: str) -> bool:
    bias = re.search(r"bias|(?:^|[._])b(?:$|[_\d])|enc", name)
    return bool(bias) and not re.search(r"gate|mag|dec|pre_?bias|b_pre", name)


def _decoder_side_role(name: str) -> str:
    if re.search(r"pre|input|center|centre|b_in$", name) or name == "bias":
        return "b_pre"
    return "b_dec" if re.search(r"dec|post|b_d$|output|b_out$", name) else "unknown"
