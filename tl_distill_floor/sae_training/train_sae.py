"""Train an SAE on a teacher's residual stream with SAELens's trainer."""

import hashlib
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tl_distill_floor.annotations import (
    Dtype,
    ProgressMessageCallback,
    SaeArchitecture,
    TeacherLike,
    TextLike,
)
from tl_distill_floor.errors import InputError, as_integer
from tl_distill_floor.measuring.fingerprints import teacher_fingerprint
from tl_distill_floor.measuring.hooks import get_hook_point, resid_post
from tl_distill_floor.measuring.processing import CENTRING, is_centred
from tl_distill_floor.measuring.token_stream import TokenStream, open_token_stream
from tl_distill_floor.sae_training.activations import shuffled_activations
from tl_distill_floor.sae_training.config import MIN_TOKENS, TOKENS_PER_STEP, SaeTrainingConfig
from tl_distill_floor.sae_training.sae_trainer import CHECKPOINT_KIND, SaeTraining
from tl_distill_floor.sources.devices import check_device
from tl_distill_floor.sources.teacher import Teacher
from tl_distill_floor.sources.teachers import check_context, load_teacher, tokenizer_of, weights_digest
from tl_distill_floor.sources.torch_state import neutral_torch_state
from tl_distill_floor.storage.atomic import atomic_directory, remove_file, remove_unfinished
from tl_distill_floor.storage.checkpoints import CHECKPOINT_SECONDS, load_checkpoint
from tl_distill_floor.storage.io_errors import report_io_errors


@neutral_torch_state()
def train_sae(
    model: TeacherLike,
    text: TextLike | None = None,
    *,
    layer: int,
    out: str | Path,
    d_sae: int | None = None,
    k: int = 32,
    n_tokens: int = 4_000_000,
    architecture: SaeArchitecture = "batchtopk",
    context_size: int = 256,
    batch_size: int = 16,
    lr: float = 1e-3,
    device: str = "cpu",
    dtype: Dtype = "fp32",
    seed: int = 0,
    resume: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: ProgressMessageCallback | None = None,
) -> Path:
    """Train an SAE on the residual stream after a layer, and save it as a SAELens directory.

    While it trains, checkpoints are in a file next to `out` with the suffix `.partial.safetensors`. On the same machine
    and device a resumed training gives the same SAE, bit by bit, as one without interruption.

    Args:
        model: the teacher, see `load_teacher`.
        text: the text, see `load_text`; read again from the start if it has fewer than `n_tokens` tokens.
        layer: layer, counted from 0, after which the residual stream is read.
        out: directory to write; it must not exist.
        d_sae: number of features; eight times the teacher's width if None.
        k: active features per token.
        n_tokens: tokens to train on; at least 8,192 are used.
        architecture: "batchtopk", which SAELens saves as a JumpReLU SAE, or "topk".
        context_size: tokens per sequence.
        batch_size: sequences per forward pass of the teacher.
        lr: peak learning rate of Adam, with a warm-up of at most 500 steps and a decay over the last fifth of the
            steps.
        device: torch device of the SAE, and of the teacher if it is loaded here.
        dtype: dtype of the teacher if it is loaded here. The SAE is in fp32; with "bf16" it trains under autocast.
        seed: seed of the SAE's initial weights and of the order of activations.
        resume: whether to continue from a checkpoint, if there is one.
        checkpoint_seconds: time between checkpoints.
        progress: called after every step with the tokens done, the total, and a message.

    Returns:
        `out`, which `load_sae`, SAELens's `SAE.load_from_disk` and `tl-floor measure --sae` read.

    Raises:
        InputError: an option is out of its range, the teacher or text cannot be loaded, `out` exists, or there is a
            checkpoint and `resume` is False, or the checkpoint is of another training.

    Example:
        >>> out = train_sae("tiny-prose", layer=1, out="my-sae", n_tokens=100_000)  # doctest: +SKIP
        >>> floor = predict_floor("tiny-prose", out)  # doctest: +SKIP
    """
    config = SaeTrainingConfig(
        d_sae=d_sae,
        k=k,
        n_tokens=max(as_integer("n_tokens", n_tokens), MIN_TOKENS),
        architecture=architecture,
        context_size=context_size,
        batch_size=batch_size,
        lr=lr,
        dtype=dtype,
        seed=seed,
    )
    layer = as_integer("layer", layer)
    check_device(device)
    out = Path(out)
    file = _checkpoint_file(out)
    if resume and _is_finished(out, file, _options_identity(layer, config)):
        remove_file(file)
        return out
    with atomic_directory(out) as directory:
        _check_can_start(out, file, resume)
        remove_unfinished(file)
        sae = _train(model, text, layer, config, device, file, checkpoint_seconds, progress)
        with report_io_errors(out):
            sae.save_inference_model(str(directory))
    remove_file(file)
    return out


def initial_sae(config: SaeTrainingConfig, d_in: int, metadata: object) -> Any:
    """Return a SAELens training SAE with random weights.

    Args:
        config: the settings, with a number of features.
        d_in: width of the activations.
        metadata: SAELens's `SAEMetadata`.
    """
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig

    classes = {
        "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
        "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    }
    sae_class, config_class = classes[config.architecture]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return sae_class(
            config_class(
                # SAELens folds the scale into the weights after training: the saved SAE reads unscaled activations.
                normalize_activations="expected_average_only_in",
                d_in=d_in,
                d_sae=config.d_sae,
                k=config.k,
                metadata=metadata,
            )
        )


def _train(
    model: TeacherLike,
    text: TextLike | None,
    layer: int,
    config: SaeTrainingConfig,
    device: str,
    file: Path,
    checkpoint_seconds: float,
    progress: ProgressMessageCallback | None,
) -> Any:
    """Load the teacher and the text, and return the trained SAE."""
    teacher, hook_name = load_teacher(model, device=device, dtype=config.dtype), resid_post(layer)
    check_context(teacher.model, config.context_size)
    get_hook_point(teacher.model, hook_name)
    d_model = int(teacher.model.cfg.d_model)
    config = replace(config, d_sae=config.d_sae or 8 * d_model)
    stream, rows = _open_text(teacher, text, config)
    sae = initial_sae(config, d_model, _metadata(stream, hook_name, rows)).to(device)
    digests = {"teacher": weights_digest(teacher.model), "text": _rows_digest(rows)}
    training = SaeTraining(sae, config, _options_identity(layer, config) | digests, device=device)
    if file.exists():
        training.load(file)
    batches = partial(shuffled_activations, stream, hook_name, rows, config.seed)
    training.run(batches, file, checkpoint_seconds, progress)
    if is_centred(teacher_fingerprint(teacher.model, hook_name).activation):
        # SAELens warns if an SAE is created with it.
        sae.cfg.metadata.model_from_pretrained_kwargs = {CENTRING: True}
    return sae


def _open_text(
    teacher: Teacher, text: TextLike | None, config: SaeTrainingConfig
) -> tuple[TokenStream, Int[Tensor, "sequence position"]]:
    """Return the text as a stream, and its token ids: enough for the training, or all."""
    stream = open_token_stream(teacher, text, config.context_size, config.batch_size)
    rows = stream.read_sequences(config.n_tokens, padded=True)
    if not len(rows):
        raise InputError(
            f"{stream.text.name} is too short: it fills no sequence of {config.context_size} tokens; give more text"
        )
    return stream, rows


def _checkpoint_file(out: Path) -> Path:
    absolute = out.absolute()  # "." has no name
    return absolute.with_name(f"{absolute.name}.partial.safetensors")


def _options_identity(layer: int, config: SaeTrainingConfig) -> dict[str, Any]:
    """Return the options that must be equal when a training is resumed, without `d_sae` if the teacher decides it."""
    options = {"layer": layer, **asdict(config)}
    return {name: value for name, value in options.items() if value is not None}


def _is_finished(out: Path, file: Path, identity: dict[str, Any]) -> bool:
    """Return whether the SAE was saved and only the last checkpoint of its training was not deleted."""
    if not (file.exists() and (out / "cfg.json").exists()):
        return False
    _, step = load_checkpoint(file, CHECKPOINT_KIND, identity)
    return bool(step * TOKENS_PER_STEP >= identity["n_tokens"])


def _check_can_start(out: Path, file: Path, resume: bool) -> None:
    if out.exists():
        raise InputError(f"{out} exists already; name another directory with --out, or delete it")
    if file.exists() and not resume:
        raise InputError(f"{file.name} holds an interrupted training; add --resume to continue it, or delete it")


def _rows_digest(rows: Int[Tensor, "sequence position"]) -> str:
    return f"{tuple(rows.shape)} {hashlib.sha256(rows.numpy().tobytes()).hexdigest()}"


def _metadata(stream: TokenStream, hook_name: str, rows: Int[Tensor, "sequence position"]) -> Any:
    """Return SAELens's metadata of an SAE: the activations that it reads."""
    from sae_lens.saes.sae import SAEMetadata

    # Token ids that the user gives begin with this token or not, whatever the tokenizer does.
    bos_id = tokenizer_of(stream.teacher.model).bos_token_id if stream.prepend_bos else None
    return SAEMetadata(
        model_name=stream.teacher.name,
        model_class_name=type(stream.teacher.model).__name__,
        model_from_pretrained_kwargs={},
        hook_name=hook_name,
        hook_head_index=None,
        dataset_path="",
        context_size=stream.context_size,
        seqpos_slice=(None,),
        prepend_bos=bos_id is not None and bool((rows[:, 0] == bos_id).all()),
        sequence_separator_token="bos",  # noqa: S106 - not a password
        disable_concat_sequences=False,
        exclude_special_tokens=True,
    )
