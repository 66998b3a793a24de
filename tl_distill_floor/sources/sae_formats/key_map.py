"""State dicts whose keys the user explains, with `--sae-format` as a small JSON object."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.sae_formats.files import SaeFile, read_config, shapes_of
from tl_distill_floor.sources.sae_formats.settings import stated_metadata
from tl_distill_floor.sources.sae_formats.weights import SaeWeights, fold_bias, full_precision, make_weights

MappedActivation = Literal["relu", "jumprelu", "topk", "abstopk"]
_METADATA = ("hook_name", "model_name", "context_size", "prepend_bos", "l0")
"""Keys that state the settings of the SAE's training."""


@dataclass(frozen=True)
class KeyMap:
    """What the keys of a state dict mean, and how the SAE encodes.

    Raises:
        InputError: a value is missing or is of the wrong type.
    """

    format: str | None = None
    """Name of a published format, for a file that is not recognised; the keys of weights are left out then."""
    W_enc: str | None = None
    """Key of the encoder's matrix."""
    W_dec: str | None = None
    """Key of the decoder's matrix; the encoder's key for tied weights."""
    b_enc: str | None = None
    """Key of the encoder's bias; zeros if None."""
    b_dec: str | None = None
    """Key of the bias that is added after the decoder; zeros if None."""
    b_pre: str | None = None
    """Key of a bias that is only subtracted before the encoder."""
    activation: str | None = None
    """Activation: relu, jumprelu, topk, or abstopk (the k largest magnitudes with their sign)."""
    k: int | str | None = None
    """Active features of a TopK SAE: a number, or its key."""
    threshold: float | str | None = None
    """Threshold of a JumpReLU SAE: a number, or its key."""
    subtract_b_dec: bool | None = None
    """Whether b_dec is also subtracted before the encoder."""
    input_scale: float = 1.0
    """Factor by which activations are multiplied before the SAE reads them; reconstructions are divided by it."""
    ignore: tuple[str, ...] = ()
    """Other keys and settings, which change nothing."""
    hook_name: str | None = None
    """TransformerLens hook point that the SAE reads."""
    model_name: str | None = None
    """Model on which the SAE was trained."""
    context_size: int | None = None
    """Tokens per sequence when the SAE was trained."""
    prepend_bos: bool | None = None
    """Whether sequences began with a beginning-of-sequence token when the SAE was trained."""
    l0: float | None = None
    """Active features per token that the publisher states."""

    def __post_init__(self) -> None:
        types: dict[str, Any] = {
            "k": (int, str), "threshold": (int, float, str), "subtract_b_dec": bool, "input_scale": (int, float),
            "ignore": tuple, "context_size": int, "prepend_bos": bool, "l0": (int, float),
        }  # fmt: skip
        for field in dataclasses.fields(self):
            value, expected = getattr(self, field.name), types.get(field.name, str)
            is_wrong_bool = isinstance(value, bool) and expected is not bool
            if value is not None and (is_wrong_bool or not isinstance(value, expected)):
                raise InputError(f"{field.name} in the SAE format is {value!r:.60}, which is not of the expected type")
        if self.activation is not None and self.activation not in get_args(MappedActivation):
            choices = ", ".join(get_args(MappedActivation))
            raise InputError(f"activation in the SAE format must be one of {choices}, got {self.activation!r:.40}")
        if not 0 < self.input_scale < float("inf"):
            raise InputError(f"input_scale in the SAE format must be a positive number, got {self.input_scale!r:.40}")

    @property
    def explains_weights(self) -> bool:
        """Whether the map names the matrices."""
        return self.W_enc is not None

    @property
    def metadata(self) -> dict[str, Any]:
        """Settings of the SAE's training that the map states."""
        return {name: getattr(self, name) for name in _METADATA if getattr(self, name) is not None}


def parse_format(sae_format: str | None) -> KeyMap:
    """Return the key map of `--sae-format`: the name of a format, a JSON object, or the path of a `.json` file.

    Raises:
        InputError: the JSON is not complete, or has an unknown key.
    """
    if sae_format is None:
        return KeyMap()
    text = sae_format.strip()
    if not text.startswith("{") and not text.lower().endswith(".json"):
        return KeyMap(format=text)
    if text.startswith("{"):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"the SAE format is not a complete JSON object ({str(error)[:60]}); give one such as"
                ' \'{"W_enc": "encoder.weight", "W_dec": "decoder.weight", "activation": "relu"}\''
            ) from error
    else:
        content = read_config(Path(text).expanduser())
    names = [field.name for field in dataclasses.fields(KeyMap)]
    unknown = [key for key in content if key not in names]
    if unknown:
        raise InputError(f"the SAE format has the unknown key {unknown[0]!r:.40}; give some of {', '.join(names)}")
    ignore = content.get("ignore", [])
    if not isinstance(ignore, list) or not all(isinstance(name, str) for name in ignore):
        raise InputError('ignore in the SAE format must be a list of names, such as ["n_steps"]')
    numbers = {name: content[name] for name in ("threshold", "input_scale", "l0") if type(content.get(name)) is int}
    numbers = {name: float(number) for name, number in numbers.items()}
    return KeyMap(**(content | {"ignore": tuple(ignore)} | numbers))


def read_mapped(file: SaeFile, key_map: KeyMap, d_in: int | None) -> SaeWeights:
    """Return the weights of a state dict by a key map.

    Args:
        file: the state dict.
        key_map: what its keys mean.
        d_in: width of the activations, if known.

    Raises:
        InputError: a key is missing from the file or from the map, or shapes do not fit together.
    """
    if key_map.activation is None or key_map.W_dec is None or key_map.W_enc is None:
        raise InputError("the SAE format must name W_enc, W_dec and activation; add what is missing")
    if key_map.b_dec is not None and key_map.subtract_b_dec is None:
        raise InputError("the SAE format must say whether b_dec is subtracted before the encoder; add subtract_b_dec")
    W_enc, W_dec = _oriented(file, key_map, d_in)
    b_enc, b_dec, b_pre = (_tensor(file, key) for key in (key_map.b_enc, key_map.b_dec, key_map.b_pre))
    _refuse_unexplained(file, key_map)
    scale = key_map.input_scale
    if b_pre is not None:
        if b_pre.shape != (W_enc.shape[0],):
            raise InputError(f"{file.name} holds a b_pre of shape {list(b_pre.shape)}, expected [{W_enc.shape[0]}]")
        b_enc = torch.zeros(W_enc.shape[1]) if b_enc is None else b_enc
        b_enc = fold_bias(W_enc, b_enc, b_pre)
    is_topk = key_map.activation in ("topk", "abstopk")
    threshold = _number_or_tensor(file, key_map.threshold, "threshold") if key_map.activation == "jumprelu" else None
    return make_weights(
        file.name,
        W_enc if scale == 1 else full_precision(W_enc) * scale,
        W_dec if scale == 1 else full_precision(W_dec) / scale,
        b_enc,
        None if b_dec is None else full_precision(b_dec) / scale,
        subtract_b_dec=bool(key_map.subtract_b_dec),
        threshold=threshold,
        k=_number_or_tensor(file, key_map.k, "k") if is_topk else None,
        signed=key_map.activation == "abstopk",
        metadata=stated_metadata(file),
    )


def _tensor(file: SaeFile, key: str | None) -> Tensor | None:
    if key is None:
        return None
    if key not in file.tensors:
        raise InputError(f"{file.name} has no {key!r:.60}, but ({shapes_of(file.tensors)}); correct the SAE format")
    return file.tensors[key]


def _number_or_tensor(file: SaeFile, value: object, name: str) -> Any:
    if value is None:
        raise InputError(f"the SAE format needs {name} for this activation; add it as a number or a key of the file")
    return _tensor(file, value) if isinstance(value, str) else value


def _oriented(file: SaeFile, key_map: KeyMap, d_in: int | None) -> tuple[Tensor, Tensor]:
    """Return the encoder [d_in, d_sae] and the decoder [d_sae, d_in]."""
    encoder, decoder = _tensor(file, key_map.W_enc), _tensor(file, key_map.W_dec)
    assert encoder is not None
    assert decoder is not None
    sides = {tuple(sorted(matrix.shape)) for matrix in (encoder, decoder)}
    if encoder.ndim != 2 or decoder.ndim != 2 or len(sides) != 1:
        raise InputError(f"{file.name} holds matrices that do not fit together ({shapes_of(file.tensors)})")
    ((small, large),) = sides
    if small == large:
        # The weight of a torch.nn.Linear is [output, input].
        linear = [str(key).endswith(".weight") for key in (key_map.W_enc, key_map.W_dec)]
        return encoder.T if linear[0] else encoder, decoder.T if linear[1] else decoder
    biases = [_tensor(file, key) for key in (key_map.b_dec, key_map.b_pre)]
    widths = [d_in, *(len(bias) for bias in biases if bias is not None and bias.ndim == 1), small]
    width = next(width for width in widths if width in (small, large))
    other = large if width == small else small
    return (
        encoder if tuple(encoder.shape) == (width, other) else encoder.T,
        decoder if tuple(decoder.shape) == (other, width) else decoder.T,
    )


def _refuse_unexplained(file: SaeFile, key_map: KeyMap) -> None:
    explained = {value for value in vars(key_map).values() if isinstance(value, str)} | set(key_map.ignore)
    unexplained = [name for name, tensor in file.tensors.items() if name not in explained and bool(tensor.any())]
    if unexplained:
        raise InputError(
            f"{file.name} also holds {', '.join(sorted(unexplained))}, which the SAE format leaves out; add it, or"
            f' write "ignore": {json.dumps(sorted(unexplained))} if it changes nothing'
        )
