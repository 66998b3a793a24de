"""DistillConfig an SAE where none exists, with SAELens's own trainer, offline on a text."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.hooks import hook_point, resid_post
from tl_distill_floor.measuring.token_stream import TokenStream, open_token_stream
from tl_distill_floor.sae_training.activations import TOKENS_A_STEP, shuffled_activations
from tl_distill_floor.sae_training.trainer import KIND, Progress, SaeTraining
from tl_distill_floor.sources.devices import check_device
from tl_distill_floor.sources.teachers import check_context, load_teacher, weights_digest
from tl_distill_floor.storage.atomic import atomic_directory, remove_file, remove_unfinished
from tl_distill_floor.storage.checkpoints import CHECKPOINT_SECONDS, load_checkpoint
from tl_distill_floor.storage.io_errors import report_io_errors

ARCHITECTURES = ("batchtopk", "topk")


def train_sae(
    model: Any,
    text: Any = None,
    *,
    layer: int,
    out: str | Path,
    d_sae: int | None = None,
    k: int = 32,
    n_tokens: int = 4_000_000,
    architecture: str = "batchtopk",
    context_size: int = 256,
    batch_size: int = 16,
    lr: float = 1e-3,
    device: str = "cpu",
    dtype: str = "fp32",
    seed: int = 0,
    resume: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: Progress | None = None,
) -> Path:
    """Train an SAE on the residual stream after `layer` and save it as a SAELens directory, metadata filled in.

    Args:
        model: what `load_teacher` takes.
        text: what `load_text` takes, read again from the start where it is shorter than `n_tokens`.
        layer: the layer after which the residual stream is read.
        out: the directory to write; it must not exist. Until it does, checkpoints stand in the file of this name and
            `.partial.safetensors`.
        d_sae: features; eight times the teacher's width when left out.
        k: active features per token.
        n_tokens: tokens to train on, at least 8,192.
        architecture: "batchtopk" (saved as JumpReLU, as SAELens does) or "topk".
        context_size: tokens a sequence.
        batch_size: sequences a forward pass of the teacher.
        lr: peak learning rate of Adam, warmed up over 500 steps and let down to 0 over the last fifth.
        device: torch device of the teacher, if it is loaded here, and of the SAE.
        dtype: "fp32" or "bf16", of the teacher; the SAE trains in fp32, under autocast with "bf16".
        seed: of the SAE's first weights and of the order of activations.
        resume: go on from the checkpoint, if there is one; on the same machine and device the SAE is the same to the
            last bit.
        checkpoint_seconds: time between checkpoints.
        progress: see `Progress`.

    Returns:
        `out`, which `load_sae`, `SAE.load_from_disk` and `tl-floor measure --sae` read.

    Raises:
        InputError: something cannot be loaded, `out` exists, there is an interrupted training of it and `resume` is
            not asked for, or it is another one.
    """
    out, n_tokens = Path(out), max(n_tokens, 8192)
    if architecture not in ARCHITECTURES:
        raise InputError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {architecture}")
    check_device(device)
    place = out.absolute()  # "." has no name
    file = place.with_name(f"{place.name}.partial.safetensors")
    asked = {
        "layer": layer, "k": k, "n_tokens": n_tokens, "architecture": architecture, "context_size": context_size,
        "batch_size": batch_size, "lr": lr, "dtype": dtype, "seed": seed, **({"d_sae": d_sae} if d_sae else {}),
    }  # fmt: skip
    if resume and _is_done(out, file, asked):
        remove_file(file)
        return out
    with atomic_directory(out) as directory:
        if out.exists():
            raise InputError(f"{out} exists already; name another directory with --out, or delete it")
        if file.exists() and not resume:
            raise InputError(f"{file.name} holds an interrupted training; add --resume to go on, or delete it")
        remove_unfinished(file)
        teacher = load_teacher(model, device=device, dtype=dtype)
        check_context(teacher.model, context_size)
        hook_name = resid_post(layer)
        hook_point(teacher.model, hook_name)
        width = int(teacher.model.cfg.d_model)
        d_sae = d_sae or 8 * width
        if not 1 <= k <= d_sae:
            raise InputError(f"k must lie between 1 and the {d_sae} features, got {k}")
        stream = open_token_stream(teacher, text, context_size, batch_size)
        rows = stream.read_sequences(n_tokens)
        if not len(rows):
            raise InputError(
                f"{stream.text.name} is too short: it fills no sequence of {context_size} tokens; give more text"
            )
        settings = {"d_in": width, "d_sae": d_sae, "k": k, "metadata": _metadata(stream, hook_name)}
        sae = _begun(architecture, seed, **settings).to(device)
        asked |= {"d_sae": d_sae, "teacher": weights_digest(teacher.model), "text": _digest(rows)}
        training = SaeTraining(sae, asked, n_tokens=n_tokens, lr=lr, device=device, autocast=dtype == "bf16")
        if file.exists():
            training.load(file)
        batches = partial(shuffled_activations, stream, hook_name, rows, seed)
        training.run(batches, file, checkpoint_seconds, progress)
        with report_io_errors(out):
            sae.save_inference_model(str(directory))
    remove_file(file)
    return out


def _is_done(out: Path, file: Path, asked: dict[str, Any]) -> bool:
    """Whether the SAE is in its place, and only the last checkpoint of its training was left beside it."""
    if not (file.exists() and (out / "cfg.json").exists()):
        return False
    _, step = load_checkpoint(file, KIND, asked)
    return bool(step * TOKENS_A_STEP >= asked["n_tokens"])


def _digest(rows: Int[Tensor, "sequence position"]) -> str:
    return f"{tuple(rows.shape)} {hashlib.sha256(rows.numpy().tobytes()).hexdigest()}"


def _metadata(stream: TokenStream, hook_name: str) -> Any:
    """What SAELens asks an SAE of the activations that it reads."""
    from sae_lens.saes.sae import SAEMetadata

    teacher = stream.teacher
    assert teacher is not None
    return SAEMetadata(
        model_name=teacher.name,
        model_class_name=type(teacher.model).__name__,
        model_from_pretrained_kwargs={},
        hook_name=hook_name,
        hook_head_index=None,
        dataset_path="",
        context_size=stream.context_size,
        seqpos_slice=(None,),
        prepend_bos=stream.prepend_bos,
        sequence_separator_token="bos",  # noqa: S106 - no password
        disable_concat_sequences=False,
        exclude_special_tokens=True,
    )


def _begun(architecture: str, seed: int, **settings: Any) -> Any:
    """An SAE of random weights."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig

    kinds = {
        "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
        "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    }
    kind, config = kinds[architecture]
    # SAELens folds the scale into the weights when training ends: the saved SAE reads activations as they are.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return kind(config(normalize_activations="expected_average_only_in", **settings))
