"""SAEs of saprmarks/dictionary_learning: `ae.pt`, with the class in `config.json` or `cfg.json`.

The classes differ in what is subtracted before the encoder: `AutoEncoder` its `bias`, the TopK classes `b_dec`,
`AutoEncoderNew` and `JumpReluAutoEncoder` nothing. A `GatedAutoEncoder` is a JumpReLU SAE in another form. The library
folds its normalisation into the biases when it saves. The version of science-of-finetuning stores the normalisation of
a `BatchTopKSAE` next to the weights: it reads (x - activation_mean) * activation_global_scale, or x where they are NaN.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.sae_formats.files import SaeFile, shapes_of
from tl_distill_floor.sources.sae_formats.formats import SaeFormat
from tl_distill_floor.sources.sae_formats.hook_names import MODULE_NAME, hook_name_at
from tl_distill_floor.sources.sae_formats.locations import folders_of, hook_name_in, hook_name_in_path
from tl_distill_floor.sources.sae_formats.settings import require_hook_name
from tl_distill_floor.sources.sae_formats.weights import SaeWeights, full_precision, make_weights

_LINEAR = {"encoder.weight", "encoder.bias", "decoder.weight"}
_RAW = {"W_enc", "b_enc", "W_dec", "b_dec"}
_AUTO_ENCODER = {*_LINEAR, "bias"}
_GATED = {"encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias"}
"""Tensors of classes with linear modules, with plain matrices, of `AutoEncoder`, and of `GatedAutoEncoder`."""
_TENSORS = {
    "AutoEncoder": _AUTO_ENCODER,
    "AutoEncoderNew": {*_LINEAR, "decoder.bias"},
    "AutoEncoderTopK": {*_LINEAR, "b_dec"},
    "BatchTopKSAE": {*_LINEAR, "b_dec", "threshold"},
    "MatryoshkaBatchTopKSAE": {*_RAW, "threshold"},
    "JumpReluAutoEncoder": {*_RAW, "threshold"},
    "GatedAutoEncoder": _GATED,
}
"""Tensors of each class that can be measured."""
_NORMALISATION = {"activation_mean", "activation_std", "activation_global_scale", "target_rms"}
_OPTIONAL = {"k", "threshold"}
"""Tensors that some versions of a class save."""


def _recognises(file: SaeFile) -> bool:
    return _class_of(file) is not None


def _class_of(file: SaeFile) -> str | None:
    trainer = _trainer(file)
    if "dict_class" in trainer:
        return str(trainer["dict_class"]).strip("<>'").rpartition(".")[2]
    if file.names == _AUTO_ENCODER:
        return "AutoEncoder"
    if file.names >= _TENSORS["BatchTopKSAE"] | _NORMALISATION:
        return "BatchTopKSAE"
    return "GatedAutoEncoder" if file.names == _GATED else None


def _trainer(file: SaeFile) -> dict[str, Any]:
    for config in file.configs.values():
        trainer = config.get("trainer")
        for settings in (trainer, config):
            if isinstance(settings, dict) and "dict_class" in settings:
                return settings
    return {}


def _read(file: SaeFile) -> SaeWeights:
    dict_class, trainer, tensors = str(_class_of(file)), _trainer(file), file.tensors
    if dict_class not in _TENSORS:
        raise InputError(
            f"{file.name} is of the class {dict_class} of dictionary_learning, whose codes cannot be measured; give one"
            f" of {', '.join(_TENSORS)}"
        )
    optional = _OPTIONAL | (_NORMALISATION if dict_class == "BatchTopKSAE" else set())
    missing, unknown = _TENSORS[dict_class] - file.names, file.names - _TENSORS[dict_class] - optional
    if missing or unknown:
        raise InputError(
            f"{file.name} is said to be of the class {dict_class} of dictionary_learning, but holds"
            f" ({shapes_of(tensors)}), expected {', '.join(sorted(_TENSORS[dict_class]))}; give another file"
        )
    if dict_class == "GatedAutoEncoder":
        return _read_gated(file, _metadata(file, trainer))
    if file.names >= _NORMALISATION:
        tensors = _without_normalisation(tensors)
    linear = "encoder.weight" in tensors
    k = tensors.get("k", trainer.get("k"))
    metadata = _metadata(file, trainer)
    threshold = None
    if "threshold" in _TENSORS[dict_class]:
        threshold = tensors["threshold"]
        if dict_class != "JumpReluAutoEncoder":
            if bool((threshold < 0).any()):
                raise InputError(
                    f"{file.name} has no threshold yet, so it cannot encode a single token; give an SAE that was"
                    " trained longer"
                )
            metadata |= {} if k is None else {"l0": float(k)}
    return make_weights(
        file.name,
        tensors["encoder.weight"].T if linear else tensors["W_enc"],
        tensors["decoder.weight"].T if linear else tensors["W_dec"],
        tensors["encoder.bias"] if linear else tensors["b_enc"],
        next(tensors[name] for name in ("bias", "b_dec", "decoder.bias") if name in tensors),
        subtract_b_dec=dict_class not in ("AutoEncoderNew", "JumpReluAutoEncoder"),
        threshold=threshold,
        k=_require_k(file, k) if dict_class == "AutoEncoderTopK" else None,
        metadata=metadata,
    )


def _read_gated(file: SaeFile, metadata: dict[str, Any]) -> SaeWeights:
    """Return the JumpReLU SAE with the codes of a gated one.

    With y = (x - decoder_bias) @ encoder.T, a gated SAE has the codes relu(m) with m = exp(r_mag) y + mag_bias where
    y + gate_bias > 0. That is m where m > mag_bias - exp(r_mag) gate_bias and m > 0.
    """
    tensors = {name: full_precision(tensor) for name, tensor in file.tensors.items()}
    scale = tensors["r_mag"].exp()
    threshold = tensors["mag_bias"] - scale * tensors["gate_bias"]
    return make_weights(
        file.name,
        tensors["encoder.weight"].T * scale,
        tensors["decoder.weight"].T,
        tensors["mag_bias"],
        tensors["decoder_bias"],
        subtract_b_dec=True,
        threshold=threshold.clamp(min=0),
        metadata=metadata,
    )


def _without_normalisation(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the same SAE that reads activations as they are.

    With the scale g and the mean m, (x - m) g - b_dec = (x - b) g for b = m + b_dec / g, and the reconstruction is
    (codes @ W_dec + b_dec) / g + m = codes @ W_dec / g + b.
    """
    weights = {name: full_precision(tensor) for name, tensor in tensors.items() if name not in _NORMALISATION}
    mean, std, scale = (tensors[f"activation_{name}"] for name in ("mean", "std", "global_scale"))
    if bool(mean.isnan().any()) or bool(std.isnan().any()):
        return weights
    weights["encoder.weight"] = weights["encoder.weight"] * scale
    weights["decoder.weight"] = weights["decoder.weight"] / scale
    weights["b_dec"] = weights["b_dec"] / scale + mean
    return weights


def _require_k(file: SaeFile, k: object) -> object:
    if k is None:
        raise InputError(f"{file.name} is an AutoEncoderTopK, but neither it nor its config.json holds k; add k there")
    return k


def _metadata(file: SaeFile, trainer: dict[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    layer, submodule = trainer.get("layer"), trainer.get("submodule_name")
    buffers = [config["buffer"] for config in file.configs.values() if isinstance(config.get("buffer"), dict)]
    buffer: dict[str, Any] = buffers[0] if buffers else {}
    if buffer.get("io", "out") != "out":
        raise InputError(
            f"{file.name} reads the {buffer['io']!r:.20} of its module (io), not its output; give an SAE of an output"
        )
    hook_names = [_hook_name_of_submodule(file, submodule, layer), hook_name_in_path(file)]
    if not any(hook_names) and isinstance(layer, int):
        hook_names = [hook_name_at(folder, layer) for folder in folders_of(file)]
    stated = list(dict.fromkeys(name for name in hook_names if name is not None))
    if len(stated) > 1 or (stated and isinstance(layer, int) and f"blocks.{layer}." not in stated[0]):
        raise InputError(
            f"{file.name} names {', '.join(stated)} and layer {layer} as what it reads; correct its config.json"
        )
    if stated:
        metadata["hook_name"] = stated[0]
        module = None if "hook_" in str(submodule) else _module_of(stated[0])
        metadata |= {} if module is None else {MODULE_NAME: module}
    elif isinstance(layer, int):
        metadata["layer"] = layer
    if isinstance(trainer.get("lm_name"), str):
        metadata["model_name"] = trainer["lm_name"]
    if isinstance(buffer.get("ctx_len"), int):
        metadata["context_size"] = buffer["ctx_len"]
    return metadata


def _module_of(hook_name: str) -> str | None:
    """Return the module of a block whose output the library reads under a name such as mlp_out_layer_3."""
    block, _, point = hook_name.rpartition(".")
    module = {"hook_mlp_out": "mlp", "hook_attn_out": "self_attn"}.get(point)
    return None if module is None else f"{block.replace('blocks', 'layers')}.{module}"


def _hook_name_of_submodule(file: SaeFile, name: object, layer: object) -> str | None:
    """Return the hook point that the name of a submodule means; None if there is no name."""
    if not isinstance(name, str):
        return None
    at_layer = hook_name_at(name, layer) if isinstance(layer, int) else None
    return at_layer or hook_name_in(name) or require_hook_name(file, name)


FORMAT = SaeFormat("dictionary-learning", _recognises, _read)
