"""Training an SAE where none exists, with SAELens's own trainer, offline on a text."""

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from tl_distill_floor.errors import InputError
from tl_distill_floor.files import made_whole, refusals
from tl_distill_floor.sources.teachers import Teacher, check_context, check_device, load_teacher
from tl_distill_floor.sources.text import load_text

ARCHITECTURES = ("batchtopk", "topk")
MIXED_TOKENS = 2**17
"""Tokens whose activations are shuffled together; SAELens counts them in context sizes."""


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
) -> Path:
    """Train an SAE on the residual stream after `layer` and save it as a SAELens directory, metadata filled in.

    Args:
        model: what `load_teacher` takes.
        text: what `load_text` takes, read again from the start where it is shorter than `n_tokens`.
        layer: the layer after which the residual stream is read.
        out: the directory to write; it must not exist.
        d_sae: features; eight times the teacher's width when left out.
        k: active features per token.
        n_tokens: tokens to train on, at least 8,192.
        architecture: "batchtopk" (saved as JumpReLU, as SAELens does) or "topk".
        context_size: tokens a sequence.
        batch_size: sequences a forward pass of the teacher.
        lr: peak learning rate of Adam, warmed up over 500 steps and let down to 0 over the last fifth.
        dtype: "fp32" or "bf16", of the teacher; the SAE trains in fp32, under autocast with "bf16".

    Returns:
        `out`, which `load_sae`, `SAE.load_from_disk` and `tl-floor measure --sae` read.

    Raises:
        InputError: something cannot be loaded, or `out` exists.
    """
    from tl_distill_floor.measuring.hooks import hook_point, name_in, resid_post

    out = Path(out)
    if architecture not in ARCHITECTURES:
        raise InputError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {architecture}")
    check_device(device)
    with made_whole(out) as partial:
        if out.exists():
            raise InputError(f"{out} exists already; name another directory with --out, or delete it")
        teacher = load_teacher(model, device=device, dtype=dtype)
        check_context(teacher.model, context_size)
        hook_name = resid_post(layer)
        hook_point(teacher.model, hook_name)
        width = int(teacher.model.cfg.d_model)
        if not 1 <= k <= (d_sae or 8 * width):
            raise InputError(f"k must lie between 1 and the {d_sae or 8 * width} features, got {k}")
        tokens = _tokens(teacher, text, context_size, n_tokens)
        sae = _trainer_sae(architecture, width, d_sae or 8 * width, k, device)
        runner = _runner(
            teacher.model,
            tokens,
            sae=sae,
            model_name=teacher.name,
            model_class_name=type(teacher.model).__name__,
            hook_name=name_in(teacher.model, hook_name),
            context_size=context_size,
            store_batch_size_prompts=batch_size,
            training_tokens=max(n_tokens, 8192),
            lr=lr,
            device=device,
            autocast=dtype == "bf16",
            seed=seed,
        )
        with _own_signal_handlers():
            trained = runner.run()
        trained.cfg.metadata.hook_name = hook_name
        with refusals(out):
            trained.save_inference_model(str(partial))
    return out


def _tokens(teacher: Teacher, text: Any, context_size: int, n_tokens: int) -> Any:
    """The sequences as an in-memory dataset of `input_ids`, packed as `measure` packs them."""
    from datasets import Dataset

    tokenizer = getattr(teacher.model, "tokenizer", None)
    has_bos = tokenizer is not None and tokenizer.bos_token_id is not None
    source = load_text(text, tokenizer, context_size=context_size, prepend_bos=has_bos)
    rows = [row.numpy() for row in islice(source.read(), -(-n_tokens // context_size))]
    if not rows:
        raise InputError(f"{source.name} is too short: it fills no sequence of {context_size} tokens; give more text")
    return Dataset.from_dict({"input_ids": rows}).with_format("torch")


def _trainer_sae(architecture: str, d_in: int, d_sae: int, k: int, device: str) -> Any:
    from sae_lens import BatchTopKTrainingSAEConfig, TopKTrainingSAEConfig

    config = {"batchtopk": BatchTopKTrainingSAEConfig, "topk": TopKTrainingSAEConfig}[architecture]
    # SAELens folds the scale into the weights when training ends: the saved SAE reads activations as they are.
    return config(d_in=d_in, d_sae=d_sae, k=k, normalize_activations="expected_average_only_in", device=device)


def _runner(model: Any, tokens: Any, **settings: Any) -> Any:
    from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig
    from sae_lens import logger as sae_lens_logger

    steps = settings["training_tokens"] // 4096
    config = LanguageModelSAERunnerConfig(
        **settings,
        is_dataset_tokenized=True,
        streaming=False,
        train_batch_size_tokens=4096,
        n_batches_in_buffer=-(-MIXED_TOKENS // settings["context_size"]),
        n_batches_for_norm_estimate=10,
        lr_warm_up_steps=min(500, steps // 10),
        lr_decay_steps=steps // 5,
        dead_feature_window=max(10, min(1000, steps // 10)),
        exclude_special_tokens=True,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=None,
        verbose=False,
    )
    level = sae_lens_logger.level
    sae_lens_logger.setLevel(logging.ERROR)  # it warns that model and dataset were passed in, which is meant
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The training dataset contains fewer samples")
            return LanguageModelSAETrainingRunner(config, override_dataset=tokens, override_model=model)
    finally:
        sae_lens_logger.setLevel(level)


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """SAELens's trainer replaces the handlers of SIGINT and SIGTERM; put back what was there."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Exception as error:
        if type(error).__name__ == "InterruptedException":  # what SAELens makes of Ctrl-C
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
