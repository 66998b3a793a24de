"""SAELens directories, and checkpoints of SAELens and mats_sae_training with their configuration.

SAELens 6 converts older configurations and drops the fields that it does not know, so the raw file is checked here
for what it would drop.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.sae_directory import NORMALISATION_ADVICE
from tl_distill_floor.sources.sae_formats.file_names import CONFIG_FILE, RUNNER_FILE, WEIGHTS_FILE
from tl_distill_floor.sources.sae_formats.files import SaeFile, read_config, shapes_of
from tl_distill_floor.sources.sae_formats.formats import SaeFormat
from tl_distill_floor.sources.sae_formats.settings import (
    is_neutral,
    nested_settings,
    refuse_unknown_effects,
    stated_metadata,
)
from tl_distill_floor.sources.sae_formats.transcoders import refuse_transcoder_config
from tl_distill_floor.sources.sae_formats.weights import SaeWeights, make_weights

HABITS = (
    "sequence_separator_token", "disable_concat_sequences", "seqpos_slice", "exclude_special_tokens",
    "model_from_pretrained_kwargs",
)  # fmt: skip
"""Settings of the text and the teacher on which an SAE was trained, some of which the conversion to SAELens 6 drops."""
_UNDERSTOOD = frozenset({"normalize_activations", "rescale_acts_by_decoder_norm", "finetuning_scaling_factor"})
"""Settings that can change codes and that this format takes into account."""
_MARKS = {
    "architecture", "activation_fn", "activation_fn_str", "sae_lens_version", "sae_lens_training_version",
    "l1_coefficient", "apply_b_dec_to_input",
}  # fmt: skip
"""Fields of which a configuration of SAELens has at least one."""


def check_config(config: Mapping[str, Any], name: str, weights: Path) -> None:
    """Refuse a SAELens configuration with a field that SAELens 6 would drop and that changes codes.

    Args:
        config: content of `cfg.json`.
        name: name of the SAE, for error messages.
        weights: the file of the weights.

    Raises:
        InputError: there is such a field, or the SAE is a transcoder.
    """
    refuse_transcoder_config(name, config)
    _check_activation(config, name)
    if config.get("finetuning_scaling_factor") and not _scales_are_one(weights):
        raise InputError(
            f"{name} has a finetuning_scaling_factor, which SAELens no longer applies; multiply its codes into W_dec,"
            " set the field to false and save it again"
        )
    refuse_unknown_effects(name, nested_settings(CONFIG_FILE, config), _UNDERSTOOD | _fields_of_saelens())


def _fields_of_saelens() -> frozenset[str]:
    """Return the settings that the installed SAELens knows, for SAEs and for their training."""
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    configs = [config for _, config in (*SAE_CLASS_REGISTRY.values(), *SAE_TRAINING_CLASS_REGISTRY.values())]
    return frozenset(field.name for config in configs for field in dataclasses.fields(config))


def habits_of_directory(folder: Path) -> dict[str, Any]:
    """Return what a SAELens directory states about the training of its SAE, from all of its files."""
    files = (folder / CONFIG_FILE, folder / RUNNER_FILE)
    return training_habits([read_config(file) for file in files if file.is_file()])


def training_habits(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what configurations state about the text and the teacher on which an SAE was trained.

    Args:
        configs: configurations, the one that counts most first.
    """
    habits: dict[str, Any] = {}
    for config in reversed(configs):
        metadata = config.get("metadata")
        for settings in (config, metadata if isinstance(metadata, Mapping) else {}):
            habits |= {key: settings[key] for key in HABITS if key in settings}
    return habits


def _check_activation(config: Mapping[str, Any], name: str) -> None:
    architecture = config.get("architecture", "standard")
    stated = [config[key] for key in ("activation_fn_str", "activation_fn") if config.get(key) is not None]
    for activation in stated:
        if activation not in ("relu", "topk"):
            raise InputError(
                f"{name} has the activation function {activation!r:.40}, which SAELens 6 would replace by another one;"
                " give an SAE with relu or topk"
            )
    options = config.get("activation_fn_kwargs") or {}
    if not isinstance(options, Mapping):
        raise InputError(f"{name} has activation_fn_kwargs={options!r:.40}, expected an object; correct its cfg.json")
    unknown = {key: value for key, value in options.items() if key != "k" and not is_neutral(value)}
    unknown = {key: value for key, value in unknown.items() if str(value).lower() != "relu"}
    if unknown:
        raise InputError(f"{name} has activation_fn_kwargs={unknown!r:.60}, which SAELens 6 drops; give another SAE")
    if "topk" in stated and (architecture not in ("standard", "topk") or _k_of(config) is None):
        raise InputError(
            f"{name} has the activation function topk and the architecture {architecture!r:.40} without a k that"
            " SAELens 6 reads; correct its cfg.json"
        )


def _k_of(config: Mapping[str, Any]) -> Any:
    options = config.get("activation_fn_kwargs") or {}
    return options.get("k", config.get("k"))


def _scales_are_one(weights: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="pt") as file:
            scales: list[Tensor] = [file.get_tensor(name) for name in file.keys() if "scaling_factor" in name]  # noqa: SIM118
    except (SafetensorError, OSError):
        return True  # SAELens says what is wrong with the file
    return bool(scales) and all(bool((scale == 1).all()) for scale in scales)


def _recognises(file: SaeFile) -> bool:
    return file.names >= {"W_enc", "W_dec"} and _config(file) is not None


def _config(file: SaeFile) -> dict[str, Any] | None:
    config = file.config_with("d_in")
    is_saelens = config is not None and bool({"d_sae", "expansion_factor"} & set(config) and _MARKS & set(config))
    return config if is_saelens else None


def _read(file: SaeFile) -> SaeWeights:
    config = _config(file)
    if config is None:
        raise InputError(f"{file.name} lacks the cfg.json of SAELens; put it in the same folder")
    refuse_transcoder_config(file.name, config)
    _check_activation(config, file.name)
    architecture = str(config.get("architecture", "standard"))
    is_topk = architecture == "topk" or "topk" in (config.get("activation_fn_str"), config.get("activation_fn"))
    required = {"W_enc", "W_dec", "b_enc", "b_dec"} | ({"threshold"} if architecture == "jumprelu" else set())
    scales = {name for name in file.names if "scaling_factor" in name and bool((file.tensors[name] == 1).all())}
    if architecture not in ("standard", "topk", "jumprelu") or file.names - scales != required:
        raise InputError(
            f"{file.name} is of SAELens's architecture {architecture!r:.40} and holds ({shapes_of(file.tensors)}); give"
            f" the SAELens directory ({CONFIG_FILE} and {WEIGHTS_FILE}) instead"
        )
    normalisation = config.get("normalize_activations")
    if not is_neutral(normalisation):
        advice = NORMALISATION_ADVICE.get(str(normalisation), "give an SAE trained without it")
        raise InputError(f"{file.name} has normalize_activations={normalisation!r:.40}; {advice}")
    if config.get("rescale_acts_by_decoder_norm"):
        raise InputError(f"{file.name} has rescale_acts_by_decoder_norm; give the SAELens directory instead")
    if config.get("finetuning_scaling_factor") and not scales:
        raise InputError(f"{file.name} has a finetuning_scaling_factor, which is not applied; give another SAE")
    tensors = file.tensors
    return make_weights(
        file.name,
        tensors["W_enc"],
        tensors["W_dec"],
        tensors["b_enc"],
        tensors["b_dec"],
        subtract_b_dec=config.get("apply_b_dec_to_input") is not False,
        threshold=tensors.get("threshold"),
        k=_k_of(config) if is_topk else None,
        metadata=stated_metadata(file) | training_habits(list(file.configs.values())),
    )


FORMAT = SaeFormat("saelens", _recognises, _read, _UNDERSTOOD)
