"""Build SAEs from state dicts: infer the role of each tensor from its name and shape, and refuse ambiguous files.

Rules where the shapes do not decide:

- `b_pre`, `pre_bias`, `pre_encoder_bias` and similar names are subtracted before the encoder. Such a bias is also added
  after the decoder, unless there is a decoder bias.
- A `b_dec` without another decoder-side bias is subtracted before the encoder and added after the decoder (Anthropic,
  SAELens). That of a JumpReLU SAE is only added (Rajamanoharan et al. 2024, Gemma Scope, dictionary_learning).
- The bias of a decoder module (`decoder.bias`) is only added, since the module is an `nn.Linear`.
- A threshold (vector or scalar) makes a JumpReLU SAE, a number `k` a TopK SAE, neither a ReLU SAE.
- A tensor or number without a known role that could change the codes is refused.
"""

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_distill_floor.annotations import SaeModule
from tl_distill_floor.errors import InputError

_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")
_LEFTOVERS = re.compile(r"optim|sched|scaler|ema|exp_avg|history|metric|loss|rng")
_COUNTERS = re.compile(r"freq|count|fired|since|dead|alive|stat|usage|steps|nonzero|batches|tokens")
_NORMALISERS = re.compile(r"(?:^|[._])(?:mean|std|scale|scaling(?:_factor)?|norm_?(?:factor|scale|coeff)\w*)$|whiten")
_SETTINGS = ("cfg", "config", "args", "hparams", "hyperparameters", "trainer")
_ACTIVATIONS = ("activation", "activation_fn", "activation_fn_str", "architecture", "dict_class", "sae_type")
_K_NAMES = ("k", "topk", "top_k")


@dataclass(frozen=True)
class SaeWeights:
    """Weights of an SAE: codes = act((x - [b_dec]) @ W_enc + b_enc), reconstruction = codes @ W_dec + b_dec."""

    W_enc: Float[Tensor, "d_in d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, " d_sae"]
    b_dec: Float[Tensor, " d_in"]
    subtract_b_dec: bool
    """Whether b_dec is also subtracted from x before the encoder."""
    threshold: Float[Tensor, " d_sae"] | None = None
    """Pre-activation above which a feature of a JumpReLU SAE is active; None for the others."""
    k: int | None = None
    """Active features per token of a TopK SAE; None for the others."""


def read_state_file(path: Path) -> dict[str, Any]:
    """Read a state dict to the CPU without running code of a pickle, or raise an InputError."""
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty, expected the weights of an SAE; download or save it again")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not isinstance(content, Mapping):
        raise InputError(
            f"{path} holds a {type(content).__name__}, expected a state dict; "
            "save it again with torch.save(sae.state_dict(), path)"
        )
    return {str(key): value for key, value in content.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path, device="cpu"))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a complete safetensors file ({_first_line(error)}); download or save it again"
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about the pickle protocol
            return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # an unpickler can raise anything on a foreign file
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named or (isinstance(error, pickle.UnpicklingError) and path.read_bytes()[:1] == b"\x80"):
            raise InputError(
                f"{path} is a pickle of {named.group(1) if named else 'other objects'}, which could run code and is "
                "not opened; save the plain tensors with torch.save(sae.state_dict(), path) and give that file"
            ) from error
        raise InputError(
            f"{path} is not a complete torch file, as torch.save(sae.state_dict(), path) writes it; "
            "download or save it again"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:120].rstrip(". ") or type(error).__name__


def infer_weights(
    content: Mapping[str, Any], *, source: str, d_in: int | None = None, settings: Mapping[str, Any] | None = None
) -> SaeWeights:
    """Infer encoder, decoder, biases and activation function from a checkpoint, by the rules above.

    Args:
        content: the checkpoint; its weights may be under a nested key, next to optimiser states and the like.
        source: name of the checkpoint, for error messages.
        d_in: width of the activations; the smaller side of the matrices if None.
        settings: content of a configuration file in the same directory.

    Raises:
        InputError: the names and shapes are ambiguous, or a weight is not finite.
    """
    tensors = _find_tensors(content, source)
    options = _flat_settings(content) | _flat_settings({"cfg": settings or {}})
    _refuse_options(options, source)
    matrices = {name: tensor for name, tensor in tensors.items() if tensor.ndim == 2}
    encoder, decoder = _name_matrices(matrices, source)
    d_in, d_sae = _sizes(matrices, d_in, source)
    roles = _vector_roles(tensors, (d_in, d_sae), source)
    if encoder is None and "b_enc" not in roles:
        raise InputError(
            f"{source} holds a decoder but neither an encoder nor its bias, so how it encodes is not known; "
            "give the SAELens directory (cfg.json and sae_weights.safetensors) instead"
        )
    W_enc = _oriented(matrices[encoder or decoder], (d_in, d_sae))
    W_dec = _oriented(matrices[decoder], (d_sae, d_in))
    threshold, k = _activation(roles, options, d_sae, source)
    b_enc, b_dec, subtract = _biases(roles, W_enc, jumprelu=threshold is not None)
    subtract = bool(options.get("apply_b_dec_to_input", subtract))
    weights = SaeWeights(W_enc, W_dec, b_enc, b_dec, subtract, threshold, k)
    _refuse_not_finite(weights, source)
    return weights


def _find_tensors(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    by_key = dict(_nested_weights(content, ""))
    if not by_key:
        raise InputError(
            f"{source} holds no matrices (its keys: {_some(content)}); expected an encoder and a decoder of an SAE"
        )
    if len(by_key) > 1:
        raise InputError(
            f"{source} holds weights under several keys ({_some(by_key)}); save the SAE that you want on its own"
        )
    tensors = _without_prefixes(next(iter(by_key.values())))
    squeezed = {name: tensor.squeeze() for name, tensor in tensors.items()}
    # Integers have a role only as a scalar, such as the k of a TopK.
    return {
        name: t.float() if t.ndim == 0 else t for name, t in squeezed.items() if t.is_floating_point() or t.ndim == 0
    }


def _nested_weights(content: Mapping[str, Any], at: str, depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    here = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if any(tensor.is_floating_point() and tensor.squeeze().ndim == 2 for tensor in here.values()):
        yield at or "top level", here
    for key, value in content.items():
        if isinstance(value, Mapping) and depth < 4 and not _LEFTOVERS.search(str(key).lower()):
            yield from _nested_weights(value, f"{at}.{key}".lstrip("."), depth + 1)


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    stripped = {_WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    heads = {name.partition(".")[0] for name in stripped}
    if len(heads) == 1 and all("." in name for name in stripped) and not re.match(r"enc|dec", next(iter(heads))):
        return _without_prefixes({name.partition(".")[2]: tensor for name, tensor in stripped.items()})
    return stripped


def _flat_settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain values of the checkpoint and of its nested configuration, by lower-case name."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flat_settings(value) if str(key).lower() in _SETTINGS else {}
        else:
            flat[str(key).lower()] = value
    return flat


def _refuse_options(options: Mapping[str, Any], source: str) -> None:
    for name, value in options.items():
        normalises = re.search(r"normali[sz]", name) and not re.search(r"dec|weight|grad|init", name)
        # Tensors are checked with the other vectors.
        if (normalises or _NORMALISERS.search(name)) and not isinstance(value, Tensor) and _is_set(value):
            raise InputError(
                f"{source} has {name}={value!r}, so its SAE reads normalised activations, which a state dict cannot "
                "describe; fold the scale into the weights, or give a SAELens directory"
            )
        if name in ("transcode", "signed", "skip_connection") and value:
            raise InputError(f"{source} has {name}={value!r}, which is not a plain SAE; give another one")


def _is_set(value: object) -> bool:
    """Return whether an option has an effect: it is not None, False, 1, or a string for one of them."""
    neutral = value is None or value is False or (value is not True and value == 1)
    return not neutral and str(value).lower() not in ("", "none", "false")


def _name_matrices(matrices: Mapping[str, Tensor], source: str) -> tuple[str | None, str]:
    """Return the names of encoder and decoder; an encoder alone is also the decoder, transposed (tied weights)."""
    encoders = [name for name in matrices if _is_encoder(name)]
    decoders = [name for name in matrices if _is_decoder(name)]
    if len(matrices) == 1:
        (only,) = matrices
        return (None if decoders else only), only
    if len(matrices) == 2 and len(encoders) + len(decoders) == 1:
        (other,) = (name for name in matrices if name not in encoders + decoders)
        encoders, decoders = encoders or [other], decoders or [other]
    if len(matrices) != 2 or len(encoders) != 1 or len(decoders) != 1:
        raise InputError(
            f"{source} holds {len(matrices)} matrices ({_shapes(matrices)}), expected one encoder and one decoder "
            "with distinct names, such as W_enc and W_dec; rename them, or give a SAELens directory"
        )
    return encoders[0], decoders[0]


def _is_decoder(name: str) -> bool:
    return "dec" in name.lower() or name.lower().rpartition(".")[2] in ("w_d", "wd")


def _is_encoder(name: str) -> bool:
    return not _is_decoder(name) and ("enc" in name.lower() or name.lower().rpartition(".")[2] in ("w_e", "we"))


def _sizes(matrices: Mapping[str, Tensor], d_in: int | None, source: str) -> tuple[int, int]:
    sides = {tuple(sorted(matrix.shape)) for matrix in matrices.values()}
    if len(sides) != 1:
        raise InputError(f"{source} holds matrices that do not fit together ({_shapes(matrices)}); give another file")
    ((small, large),) = sides
    if small == large:
        raise InputError(
            f"{source} holds square matrices ({_shapes(matrices)}), whose orientation cannot be inferred; "
            "give the SAELens directory (cfg.json and sae_weights.safetensors) instead"
        )
    if d_in not in (None, small, large):
        raise InputError(
            f"{source} reads activations of width {small} ({_shapes(matrices)}), but {d_in} was expected; "
            "give the SAE of this model and hook point"
        )
    return (large, small) if d_in == large else (small, large)


def _oriented(matrix: Tensor, shape: tuple[int, int]) -> Tensor:
    return matrix if tuple(matrix.shape) == shape else matrix.T


def _vector_roles(tensors: Mapping[str, Tensor], sizes: tuple[int, int], source: str) -> dict[str, Tensor]:
    """Return vectors and scalars by role: b_enc, b_pre, b_dec, decoder.bias, threshold, k."""
    roles: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 2 or (role := _role(name.lower(), tensor, sizes)) is None:
            continue
        if role in roles or role == "unknown":
            raise InputError(
                f"{source} holds {name} of shape {list(tensor.shape)}, whose role among ({_shapes(tensors)}) "
                "is not known; give the SAELens directory (cfg.json and sae_weights.safetensors) instead"
            )
        roles[role] = tensor.exp() if "log_threshold" in name.lower() else tensor
    return roles


def _role(name: str, tensor: Tensor, sizes: tuple[int, int]) -> str | None:
    """Return the role of a vector or scalar; None if it has no role, "unknown" if it may have one."""
    d_in, d_sae = sizes
    leaf = name.rpartition(".")[2]
    if _NORMALISERS.search(name):
        return None if bool((tensor == (0 if "mean" in name else 1)).all()) else "unknown"
    if tensor.ndim == 0:
        unset = "threshold" in name and bool(tensor < 0) and "log" not in name
        return None if unset else "threshold" if "threshold" in name else "k" if leaf in _K_NAMES else None
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
    if not re.search(r"dec|post|b_d$|output|b_out$", name):
        return "unknown"
    return "decoder.bias" if re.search(r"dec\w*\.(?:\d+\.)?bias$", name) else "b_dec"


def _biases(roles: Mapping[str, Tensor], W_enc: Tensor, *, jumprelu: bool) -> tuple[Tensor, Tensor, bool]:
    """Return b_enc, b_dec, and whether b_dec is subtracted before the encoder."""
    b_enc = roles.get("b_enc", W_enc.new_zeros(W_enc.shape[1]))
    pre, added = roles.get("b_pre"), roles.get("decoder.bias", roles.get("b_dec"))
    if added is None:
        return b_enc, pre if pre is not None else W_enc.new_zeros(W_enc.shape[0]), pre is not None
    if pre is None:
        return b_enc, added, "decoder.bias" not in roles and not jumprelu
    # (x - b_pre) @ W_enc + b_enc = x @ W_enc + (b_enc - b_pre @ W_enc)
    return (b_enc.double() - pre.double() @ W_enc.double()).to(W_enc.dtype), added, False


def _activation(
    roles: Mapping[str, Tensor], options: Mapping[str, Any], d_sae: int, source: str
) -> tuple[Tensor | None, int | None]:
    """Return the threshold of a JumpReLU SAE, or the k of a TopK SAE; neither for a ReLU SAE."""
    kind = " ".join(str(options[name]).lower().replace("_", "") for name in _ACTIVATIONS if options.get(name))
    threshold, k = roles.get("threshold"), roles.get("k", next((options[n] for n in _K_NAMES if n in options), None))
    batch = "batchtopk" in kind or "jumprelu" in kind
    if threshold is not None and k is not None and not kind:
        raise InputError(
            f"{source} holds both k and a threshold, so it may be a TopK or a BatchTopK SAE; "
            "give the SAELens directory (cfg.json and sae_weights.safetensors) instead"
        )
    if threshold is not None and (k is None or batch):
        return threshold.expand(d_sae), None
    if batch or re.search(r"gate|gelu|silu|tanh|sigmoid|groupmax|softmax", kind) or ("topk" in kind and k is None):
        raise InputError(
            f"{source} names its SAE {kind!r}, but the weights hold no parameters for this kind; "
            "give the SAELens directory (cfg.json and sae_weights.safetensors) instead"
        )
    return None, None if k is None else _checked_k(k, d_sae, source)


def _checked_k(k: Any, d_sae: int, source: str) -> int:
    if float(k) != int(k) or not 0 < int(k) <= d_sae:
        raise InputError(f"{source} has k={float(k):g}, expected an integer from 1 to {d_sae} (its features)")
    return int(k)


def _refuse_not_finite(weights: SaeWeights, source: str) -> None:
    for name, tensor in vars(weights).items():
        if isinstance(tensor, Tensor) and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{source} holds NaN or Inf in {name}; give a file saved before training diverged")


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return _some({f"{name} {list(tensor.shape)}": tensor for name, tensor in tensors.items()})


def _some(names: Mapping[str, Any], most: int = 8) -> str:
    listed = [str(name) for name in names]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def build_sae(weights: SaeWeights, metadata: Mapping[str, Any], *, device: str, dtype: str) -> Any:
    """Build a SAELens StandardSAE, JumpReLUSAE or TopKSAE with these weights."""
    d_in, d_sae = weights.W_enc.shape
    architecture = "jumprelu" if weights.threshold is not None else "topk" if weights.k is not None else "standard"
    config: dict[str, Any] = {"architecture": architecture, "d_in": d_in, "d_sae": d_sae, "k": weights.k}
    config |= {"apply_b_dec_to_input": weights.subtract_b_dec, "device": device, "dtype": dtype}
    state = {name: getattr(weights, name) for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    return _rebuilt(config | {"metadata": dict(metadata)}, state)


def inference_form(sae: Any) -> Any:
    """Return the inference form of a SAELens TrainingSAE as a new SAE; that of a BatchTopK SAE is a JumpReLU SAE.

    Raises:
        InputError: a BatchTopK SAE was not trained, so that it has no threshold for single tokens.
    """
    if float(getattr(sae, "topk_threshold", 1.0)) <= 0.0:
        raise InputError(
            f"this {type(sae).__name__} has no threshold yet, so it cannot encode a single token; train it first"
        )
    state = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    sae.process_state_dict_for_saving_inference(state)
    return _rebuilt(sae.cfg.get_inference_sae_cfg_dict(), state)


def with_plain_decoder(sae: SaeModule) -> Any:
    """Return an equivalent SAE with reconstruction = codes @ W_dec + b_dec.

    A TopK SAE with `rescale_acts_by_decoder_norm` divides by ‖W_dec‖ when it decodes: a copy of it is returned with
    this factor folded into the encoder. Any other SAE is returned unchanged.
    """
    if not getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        return sae
    rescaled = _rebuilt(sae.cfg.to_dict(), sae.state_dict())
    rescaled.fold_W_dec_norm()
    rescaled.cfg.rescale_acts_by_decoder_norm = False
    return rescaled


def _rebuilt(config: dict[str, Any], state: dict[str, Tensor]) -> Any:
    from sae_lens import SAE

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about model_from_pretrained_kwargs, which `load_teacher` applies
        sae = SAE.from_dict(config)
    sae.load_state_dict(state)
    return sae.eval().requires_grad_(False)
