"""What the settings of an SAE state about its training, and settings that change codes but are not understood."""

import re
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any

from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.sae_formats.files import MAX_DEPTH, SaeFile
from tl_distill_floor.sources.sae_formats.hook_names import dotted, hook_name_at, hook_name_of
from tl_distill_floor.sources.sae_formats.locations import folders_of

_EFFECTS = re.compile(
    r"normali[sz]|(?:^|_)(?:unit_|layer|batch|rms)?norm(?:_|$)|layernorm|whiten|standardi[sz]|(?:^|_)(?:re)?scal(?:e|ing)"
    r"|cent(?:er|re)|(?:^|_)(?:mean|std|median)(?:_|$)|clamp|dropout|temperature|sparsity_include_decoder_norm"
    r"|signed|lookup|glu_encoder|input_bias|ablat|group_?max|^gain$"
    r"|(?:input|activations?|acts?|features?|codes?|latents?|data|dataset)_(?:multiplier|gain|factor|coefficient)$"
)
"""Names of settings that can change codes."""
_HARMLESS = re.compile(
    r"(?:^|_)(?:re)?init|grad|(?:^|_)lr(?:_|$)|learning_rate|loss|mse|(?:^|_)aux|(?:^|_)l[01p](?:_|$)"
    r"|sparsity_(?:penalty|coeff|weight)|penalty|optim|sched|eps$|noise|clip|max_(?:\w+_)?norm|high_norm"
    r"|geometric_median|bandwidth|(?:^|_)rope|dead|resampl|norm_estimate|tanh_scale"
)
"""Names of settings of the training, which the saved weights already show."""
_DECODER_NORM = re.compile(r"(?=.*(?:^|_|w)dec(?:oder)?(?:_|$))(?=.*(?:norm|unit))")
_OF_CODES = re.compile(
    r"scal|sparsity|acts?_|activ|(?:^|_)codes?(?:_|$)|feature|latent|input|includ|multipl|layer|batch|rms"
)
"""Names of settings that constrain the rows of the decoder in training contain the first and not the second."""
_FACTORS = re.compile(r"scal|factor|coeff|std|norm$|multiplier|gain")
"""Names of settings that multiply something, so that 1 has no effect."""
_NOT_SETTINGS = re.compile(
    r"optim|sched|rng|metric|eval|history|model_kwargs|model_from_pretrained_kwargs|activation_fn_kwargs|state_dict"
)
"""Parts of a configuration that say nothing of how the SAE encodes."""
_HOOKS = (
    "hook_name", "hook_point", "hook_point_in", "act_name", "hookpoint", "hook", "hook_points", "hook_names", "site",
    "hook_site",
)  # fmt: skip
"""Names of settings whose value must be a hook point. Those of other names are hook points if they look like one."""
_SITE_KEYS = ("component", "submodule", "hook_type", "module_type", "site", "hook_site")
"""Settings that name a place in a block."""
_LAYERS = ("layer", "layers", "hook_layer", "hook_point_layer", "layer_idx", "layer_index")
"""Settings that name a layer."""
_PAIRS = (
    ("hook_name", "hook_name_out"), ("hook_point", "out_hook_point"), ("hook_point", "hook_point_out"),
    ("hook_point_in", "hook_point_out"), ("hf_hook_point_in", "hf_hook_point_out"), ("hook_name", "out_hook_name"),
    ("feature_input_hook", "feature_output_hook"), ("d_in", "d_out"),
)  # fmt: skip
"""Settings that differ for a transcoder."""
_TRANSCODER_FLAGS = re.compile(
    r"transcod|(?:^|_)skip_(?:conn|trans)|^skip$|use_skip|embed_skip|affine_connection|crosscoder|cross_layer"
)
"""Names of settings that only a transcoder has."""
_KINDS = ("model_kind", "architecture", "dict_class", "sae_type", "type", "trainer_class")
"""Settings that name the kind of SAE."""
_MODELS = (
    "model_name", "lm_name", "model", "language_model", "model_id", "base_model", "model_name_or_path", "hf_model",
    "llm_name",
)  # fmt: skip
_CONTEXTS = ("context_size", "ctx_len", "context_length", "context_len", "seq_len", "sequence_length", "max_seq_len")
_PREPENDS_BOS = ("prepend_bos", "add_bos", "add_bos_token", "use_bos", "prepend_bos_token")
_L0S = ("l0", "average_l0", "expected_l0")
"""Settings of the SAE's training, under the names that trainers give them: the model, the context, whether a
beginning-of-sequence token is prepended, and the active features per token."""


def all_settings(file: SaeFile, without: frozenset[str] = frozenset()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every object of settings that belongs to a file, nested ones included, with the place where it is.

    The settings of the parent folder are left out: a format that knows them reads them itself.

    Args:
        file: the file with its settings.
        without: parts of the checkpoint that hold no settings.
    """
    yield from nested_settings("the checkpoint", {k: v for k, v in file.stored.items() if k not in without})
    for name, config in file.configs.items():
        yield from nested_settings(name, config)


def nested_settings(place: str, content: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the plain values of an object and of the objects in it, each with the place where it is."""
    plain = {str(key): value for key, value in content.items() if not isinstance(value, Mapping | Tensor)}
    if plain:
        yield place, plain
    for key, value in content.items():
        if isinstance(value, Mapping) and depth < MAX_DEPTH and not _NOT_SETTINGS.search(str(key).lower()):
            yield from nested_settings(place, value, depth + 1)


def refuse_unknown_effects(
    name: str, settings: Iterable[tuple[str, Mapping[str, Any]]], understood: frozenset[str]
) -> None:
    """Refuse an SAE with a setting that can change codes and that its format does not explain.

    Args:
        name: name of the SAE, for the message.
        settings: objects of settings, each with the place where it is.
        understood: names of settings that the format explains.

    Raises:
        InputError: there is such a setting.
    """
    for place, values in settings:
        for key, value in values.items():
            lower = key.lower()
            of_training = _HARMLESS.search(lower) or (_DECODER_NORM.match(lower) and not _OF_CODES.search(lower))
            neutral = is_neutral(value) or (bool(_FACTORS.search(lower)) and value is not True and value == 1)
            if neutral or lower in understood or not _EFFECTS.search(lower) or of_training:
                continue
            raise InputError(
                f"{name} has {key}={value!r:.60} in {place}, which changes its codes in a way that is not understood"
                " (normalised activations, for example); fold it into the weights and write a SAELens directory with"
                " sae.save_model(path)"
            )


def is_neutral(value: object) -> bool:
    """Return whether a setting has no effect: it is None, False, 0, empty, or a string for one of them."""
    if isinstance(value, list | tuple | Mapping):
        return not value
    if isinstance(value, Real) and not isinstance(value, bool):
        return bool(value == 0)
    return value is None or value is False or str(value).lower() in ("", "none", "false", "null")


def transcoder_evidence(settings: Iterable[tuple[str, Mapping[str, Any]]]) -> str | None:
    """Return the setting that shows a transcoder or a skip connection; None if there is none."""
    for _, values in settings:
        for first, second in _PAIRS:
            if values.get(first) and values.get(second) and values[first] != values[second]:
                return f"{first}={values[first]!r:.60}, {second}={values[second]!r:.60}"
        for key, value in values.items():
            name = key.lower()
            flagged = bool(_TRANSCODER_FLAGS.search(name)) and not is_neutral(value)
            kind = str(value).lower() if name in _KINDS else ""
            if flagged or re.search(r"transcoder|crosscoder|cross_layer|^clt$|lorsa|skip", kind):
                return f"{key}={value!r:.60}"
    return None


def stated_metadata(file: SaeFile) -> dict[str, Any]:
    """Return what the settings state about the SAE's training, by SAELens's names.

    Raises:
        InputError: the hook point is not one that TransformerLens has, or several are named.
    """
    metadata: dict[str, Any] = {}
    layers = [layer for _, settings in all_settings(file) for layer in _layers_of(settings)]
    names = list(dict.fromkeys(_hook_names(file))) or [file.hook_name or ""]
    if len(names) > 1:
        raise InputError(f"{file.name} names several hook points ({', '.join(names)}); correct its configuration")
    if names[0]:
        metadata["hook_name"] = names[0]
        if file.hook_name is None:
            _check_layers(file, names[0])
    else:
        metadata |= {"layer": layers[0]} if layers else {}
    for key, names_of_key, kind in (
        ("model_name", _MODELS, str),
        ("context_size", _CONTEXTS, int),
        ("prepend_bos", _PREPENDS_BOS, bool),
        ("l0", _L0S, (int, float)),
    ):
        values = _values(file, names_of_key, kind)
        if values:
            metadata[key] = values[0]
    heads = _values(file, ("hook_head_index", "hook_point_head_index", "head_index"), int)
    return metadata | ({"hook_head_index": heads[0]} if heads else {})


def _layer_of(value: object) -> int | None:
    """Return a layer: an integer, its digits, or a list of one of these; None if it is something else."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and value.isdigit():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _check_layers(file: SaeFile, hook_name: str) -> None:
    """Raise an InputError if the object of settings that names the hook point names another layer too."""
    match = re.match(r"blocks\.(\d+)\.", hook_name)
    for _, settings in all_settings(file):
        for layer in _layers_of(settings) if set(_HOOKS) & set(settings) else []:
            if match is not None and layer != int(match[1]):
                raise InputError(
                    f"{file.name} names {hook_name} and layer {layer} as what it reads; correct its configuration"
                )


def _layers_of(settings: Mapping[str, Any]) -> list[int]:
    """Return the layers that an object of settings names."""
    return [layer for key in _LAYERS if (layer := _layer_of(settings.get(key))) is not None]


def require_hook_name(file: SaeFile, name: str) -> str:
    """Return the TransformerLens name of a hook point, or raise an InputError if it is not understood."""
    hook_name = file.hook_name or hook_name_of(name)
    if hook_name is None:
        raise InputError(
            f"{file.name} reads {name!r:.60}, which is not a known hook point of TransformerLens; say which one it is,"
            ' such as --sae-format \'{"hook_name": "blocks.3.hook_mlp_out"}\''
        )
    return hook_name


def named_module(file: SaeFile, hook_name: str) -> str | None:
    """Return the name of the module from which a hook point was derived; None if the hook point itself is named."""
    strings = [
        value for _, settings in (*all_settings(file), *parent_settings(file)) for value in settings.values()
        if isinstance(value, str)
    ]  # fmt: skip
    for text in (*strings, *folders_of(file)):
        if text != hook_name and hook_name_of(text) == hook_name:
            return dotted(text)
    return None


def parent_settings(file: SaeFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every object of settings in the folder above that of a file, as `all_settings` does."""
    for name, config in file.parent_configs.items():
        yield from nested_settings(name, config)


def _hook_names(file: SaeFile) -> Iterator[str]:
    """Yield the hook points that the settings name, in full or as a site and a layer.

    A hook point counts under whatever name it is stated, since another one would be measured in its place.
    """
    for _, settings in all_settings(file):
        layers = _layers_of(settings)
        for key, given in settings.items():
            value = given[0] if isinstance(given, list) and len(given) == 1 else given
            if not isinstance(value, str) or not value:
                continue
            at_layer = hook_name_at(value, layers[0]) if layers else None
            if key in _SITE_KEYS and at_layer is not None:
                yield file.hook_name or at_layer
            elif key in _HOOKS:
                yield file.hook_name or at_layer or require_hook_name(file, value)
            elif at_layer is not None and "_" in value:  # a short name such as z can mean something else
                yield file.hook_name or at_layer
            elif "." in value and (hook_name := hook_name_of(value)) is not None:
                yield file.hook_name or hook_name


def _values(file: SaeFile, keys: tuple[str, ...], kind: Any) -> list[Any]:
    """Return the values of some settings, of one type, each once."""
    values: list[Any] = []
    for _, settings in all_settings(file):
        for key in keys:
            value = settings.get(key)
            right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            if right and value not in ("", *values):
                values.append(value)
    return values
