"""`head_floor`: estimate the least loss of any student of a width, from the rank of its logits; no SAE is needed."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import psutil
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from tl_distill_floor.annotations import Dtype, HookedModel, ProgressCallback, TeacherLike, TextLike, WidthsLike
from tl_distill_floor.errors import InputError, as_integer, check_choice
from tl_distill_floor.measuring.fingerprints import teacher_fingerprint
from tl_distill_floor.measuring.kl import kl_from_log_probs
from tl_distill_floor.measuring.logit_map import tokens_per_chunk
from tl_distill_floor.measuring.token_stream import TokenStream, open_token_stream
from tl_distill_floor.predicting.checks import MIN_TOKENS_PER_DIMENSION, head_warnings, integer_widths
from tl_distill_floor.predicting.config import STEPS
from tl_distill_floor.predicting.floors import student_widths
from tl_distill_floor.predicting.head_contexts import best_logits
from tl_distill_floor.predicting.head_tokens import HeadTokens, TeacherHead, read_head_tokens, some_tokens
from tl_distill_floor.predicting.low_rank_head import (
    LowRankHead,
    PrincipalDirections,
    principal_directions,
    set_lr,
    train_step,
)
from tl_distill_floor.predicting.processor import ForEach, product_dtype, threads_for
from tl_distill_floor.predicting.progress import ProgressBarFactory, no_progress_bar
from tl_distill_floor.results.head_floor import HeadFloor
from tl_distill_floor.results.tail_loss import ratio_standard_error
from tl_distill_floor.sources.context_lengths import teacher_vocabulary
from tl_distill_floor.sources.devices import check_device, main_device
from tl_distill_floor.sources.model_names import warn_of_missing_layers
from tl_distill_floor.sources.process_memory import return_freed_memory
from tl_distill_floor.sources.teachers import choose_context_size, load_teacher
from tl_distill_floor.sources.torch_state import neutral_torch_state

HEAD_STEPS = 200
"""Default training steps."""
N_TOKENS, N_HELDOUT_TOKENS = 168_192, 2048
"""Default numbers of tokens that sequences are chosen from, and of held-out tokens that losses are measured on."""
MIN_HELDOUT_TOKENS, MAX_HELDOUT_LOGITS = 1024, 2**27
"""Limits of the default number of held-out tokens, and of its product with the vocabulary."""
TOKENS_PER_STEP, MIN_USES_OF_TOKEN = 1024, 2
"""Tokens of a training step, and how often each token is trained on at least. Reading more text takes time, and does
not lower the loss."""
MAX_PARALLEL_WEIGHTS = 2**22
"""Weights of the widest logits up to which several widths are trained at the same time, each in a thread. All threads
share the work on larger ones, which take more memory."""
SHARE_TOKENS = 4096
"""Training tokens that the known share is computed from, at most."""
TOKENS_PER_HALF_TOKEN = 4
"""Held-out tokens of which one is evaluated after half of the steps too."""
BYTES_PER_WEIGHT = 16
"""Bytes of a trained weight, its gradient and the two averages of Adam, in fp32."""
HIDDEN_COPIES = 2
"""Copies of the last hidden states: batches, and the tensors that they are joined to."""
LOGIT_ARRAYS = 6
"""Arrays of the size of a step's logits that are in memory at the same time."""


@neutral_torch_state()
def head_floor(
    model: TeacherLike,
    text: TextLike | None = None,
    *,
    widths: WidthsLike | None = None,
    steps: int = HEAD_STEPS,
    n_tokens: int = N_TOKENS,
    n_heldout_tokens: int | None = None,
    context_size: int | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    dtype: Dtype = "fp32",
    seed: int = 0,
    progress: ProgressCallback | None = None,
    progress_bar: ProgressBarFactory | None = None,
) -> HeadFloor:
    """Estimate the least loss of any student of a width from the rank of its logits. No SAE is needed.

    A student of width d computes its logits as U z + c, with z in d dimensions. So whatever its depth, data and
    training, it loses at least

        head(d) = min over U, c and z(context) of E KL(teacher ‖ softmax(U z + c)).

    U and c are trained on a part of the text, together with a network that computes z from the teacher's last hidden
    state. On held-out text the best z of each context is then found by Newton's method. The result is the loss of the
    best U and c that were found. It approaches head(d) from above as training goes on: see `training_left`. Training
    steps are in bf16 where the processor has units for it (AMX, AVX512-BF16, recent GPUs); losses are computed in fp32.

    Sources: Yang et al. 2018 (arXiv 1711.03953), section 2; Godey et al. 2024 (arXiv 2404.07647).

    Args:
        model: teacher, see `load_teacher`.
        text: text, see `load_text`; the embedded text if None. A part of it is held out.
        widths: [width] student widths in dimensions, integers; shares of the teacher's width if None.
        steps: training steps of 1,024 tokens.
        n_tokens: training and held-out sequences are chosen at random from this many tokens of the text. The
            training reads 512 tokens per step or 100 per dimension of the widest student, whichever is more, and uses
            them more often if the text has fewer.
        n_heldout_tokens: held-out tokens that losses are measured on: one token in 8 of each held-out sequence. At most
            an eighth of the sequences is held out. If None, 2,048; fewer for vocabularies of more than 65,536 tokens.
        context_size: tokens per sequence; if None, 256 or the teacher's context if that is shorter.
        batch_size: sequences per forward pass of the teacher.
        device: torch device of a teacher that is loaded here, or "auto", see `load_teacher`.
        dtype: dtype of a teacher that is loaded here, "fp32" or "bf16".
        seed: seed of the training.
        progress: called during the training with the steps done and the total, over all widths.
        progress_bar: makes a progress bar for each stage; `progress` is used for the training if both are given.

    Returns:
        The head floor of every width, in nats per token, with its standard error and an estimate of what training left.

    Raises:
        InputError: a width is not an integer above 0, the teacher has no head or a random one, its hidden states are
            not finite, the text is shorter than two sequences, or the weights do not fit into memory.

    Example:
        >>> head = head_floor("tiny-prose", widths=[16, 64], steps=40, n_tokens=20_000)  # doctest: +SKIP
        >>> head.floor, head.training_left  # doctest: +SKIP
    """
    check_choice("dtype", dtype, Dtype)
    steps, seed = as_integer("steps", steps, 2), as_integer("seed", seed, 0)
    n_tokens, batch_size = as_integer("n_tokens", n_tokens, 1), as_integer("batch_size", batch_size, 1)
    n_heldout_tokens = None if n_heldout_tokens is None else as_integer("n_heldout_tokens", n_heldout_tokens, 1)
    sizes = None if widths is None else integer_widths(widths)
    check_device(main_device(device))
    teacher = load_teacher(model, device=device, dtype=dtype)
    stream = open_token_stream(teacher, text, choose_context_size(teacher.model, context_size), batch_size)
    return head_floor_of_stream(
        stream,
        sizes,
        steps=steps,
        n_tokens=n_tokens,
        n_heldout_tokens=n_heldout_tokens,
        seed=seed,
        progress=progress,
        progress_bar=progress_bar,
    )


def head_floor_of_stream(
    stream: TokenStream,
    widths: Int64[np.ndarray, " width"] | None,
    *,
    steps: int = HEAD_STEPS,
    n_tokens: int = N_TOKENS,
    n_heldout_tokens: int | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    progress_bar: ProgressBarFactory | None = None,
) -> HeadFloor:
    """Compute the head floor of a teacher on a text that is already open; see `head_floor`.

    Args:
        stream: the teacher and the text.
        widths: student widths in rising order; shares of the teacher's width if None.
        steps: training steps.
        n_tokens: see `head_floor`.
        n_heldout_tokens: see `head_floor`.
        seed: seed of the training.
        progress: see `head_floor`.
        progress_bar: see `head_floor`.

    Raises:
        InputError: see `head_floor`.
    """
    model = stream.teacher.model
    d_model = int(model.cfg.d_model)
    all_widths = student_widths(widths, d_model).tolist()
    make_bar = progress_bar or no_progress_bar
    narrower = [width for width in all_widths if width < d_model]
    _check_memory(model, narrower, n_tokens)
    by_vocabulary = max(MIN_HELDOUT_TOKENS, min(N_HELDOUT_TOKENS, MAX_HELDOUT_LOGITS // teacher_vocabulary(model)))
    n_heldout_tokens = by_vocabulary if n_heldout_tokens is None else n_heldout_tokens
    with make_bar("tokens", "reading last hidden states") as reading:
        # Twice what the warning of little text asks for, since some tokens do not count.
        fewest = 2 * MIN_TOKENS_PER_DIMENSION * max(narrower, default=0)
        n_train_tokens = max(fewest, steps * TOKENS_PER_STEP // MIN_USES_OF_TOKEN)
        tokens = read_head_tokens(stream, n_tokens, n_train_tokens, n_heldout_tokens, reading)
    return_freed_memory()  # the training needs larger blocks than the forward passes
    with make_bar("steps", "head floor") as training:
        losses = _train_and_evaluate(tokens, narrower, steps, seed, progress or training)
    return _result(stream, tokens, all_widths, losses, {"steps": steps, "seed": seed, "batch_size": stream.batch_size})


def head_steps(steps: int) -> int:
    """Return the training steps of the head floor that belong to those of the bottleneck students.

    Example:
        >>> head_steps(1000)
        200
    """
    return round(steps * HEAD_STEPS / STEPS)


class _Losses(NamedTuple):
    """Held-out losses of low-rank logits, in nats."""

    best: Float64[np.ndarray, "width token"]
    """With the best z of each token."""
    half: Float64[np.ndarray, "width token"]
    """The same after half of the steps, on some of the tokens; NaN elsewhere."""
    encoded: Float64[np.ndarray, "width token"]
    """With the encoder's z."""


def _train_and_evaluate(
    tokens: HeadTokens, widths: Sequence[int], steps: int, seed: int, progress: ProgressCallback | None
) -> _Losses:
    """Train the logits of all widths on the same batches, and evaluate them after half of the steps and at the end.

    Each half is a training of its own, with a learning rate that falls to 0, so that the first one is the same run with
    half of the steps.
    """
    losses = _Losses(*(np.full((len(widths), len(tokens.heldout)), np.nan) for _ in range(3)))
    if not widths:
        return losses
    directions = principal_directions(tokens.head, tokens.train)
    heads = [LowRankHead(directions, width, tokens.head.logit_map.cap, seed) for width in widths]
    first = some_tokens(tokens.train, TOKENS_PER_STEP).float()
    optimizers = [low_rank.optimizer(_encoded_loss(tokens.head, directions, low_rank, first)) for low_rank in heads]
    directions = directions.without_decoder()  # the weights of the logits are copies of it
    dtype, device = product_dtype(tokens.train.device), tokens.train.device
    # The widest first, so that no thread is left with it at the end.
    trained = sorted(zip(heads, optimizers, strict=True), key=lambda pair: -pair[0].decode.shape[1])
    n_parallel = len(widths) if max(widths) * len(tokens.head.weight) <= MAX_PARALLEL_WEIGHTS else 1
    random = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    n_halves = [steps // 2, steps - steps // 2]
    done = 0
    with threads_for(n_parallel, device) as for_each:
        for n_steps, best, every in zip(n_halves, (losses.half, losses.best), (TOKENS_PER_HALF_TOKEN, 1), strict=True):
            for step in range(n_steps):
                if len(order) < TOKENS_PER_STEP:
                    order = torch.cat([order, torch.randperm(len(tokens.train), generator=random)])
                chosen, order = order[:TOKENS_PER_STEP], order[TOKENS_PER_STEP:]
                for optimizer in optimizers:
                    set_lr(optimizer, step, n_steps)
                _train_step_of_all(tokens, directions, trained, chosen, dtype, for_each)
                done += 1
                if progress:
                    progress(done, steps)
            evaluated = [(low_rank, best[i], losses.encoded[i]) for i, low_rank in enumerate(heads)]
            for_each(partial(_evaluate, tokens, directions, every, dtype), evaluated[::-1])
    return losses


def _train_step_of_all(
    tokens: HeadTokens,
    directions: PrincipalDirections,
    trained: Sequence[tuple[LowRankHead, torch.optim.Optimizer]],
    chosen: Int64[Tensor, " token"],
    dtype: torch.dtype,
    for_each: ForEach,
) -> None:
    """Take an optimizer step with the logits of every width, on the same training tokens."""
    hidden = tokens.train[chosen.to(tokens.train.device)].float()
    p = tokens.head.probabilities(hidden, dtype)
    coordinates = directions.coordinates(hidden)
    for_each(lambda pair: train_step(*pair, coordinates, p, dtype), trained)


@torch.no_grad()
def _encoded_loss(
    head: TeacherHead, directions: PrincipalDirections, low_rank: LowRankHead, hidden: Float[Tensor, "token d_model"]
) -> float:
    """Return the mean loss of some tokens, with the encoder's z."""
    kl = []
    for chunk in torch.split(hidden, tokens_per_chunk(len(head.weight), hidden.device)):
        z = low_rank.encode(directions.coordinates(chunk))
        log_q = low_rank.logit_map(z @ low_rank.decode.T + low_rank.bias).log_softmax(-1)
        kl.append(kl_from_log_probs(head.log_probs(chunk), log_q))
    return max(0.0, float(torch.cat(kl).mean()))


def _evaluate(
    tokens: HeadTokens,
    directions: PrincipalDirections,
    every: int,
    dtype: torch.dtype,
    evaluated: tuple[LowRankHead, Float64[np.ndarray, " token"], Float64[np.ndarray, " token"]],
) -> None:
    """Write the losses of every n-th held-out token, with the best z and with the encoder's.

    Args:
        tokens: the last hidden states.
        directions: their principal directions.
        every: tokens of which one is evaluated.
        dtype: dtype of the products with the Hessian.
        evaluated: the logits, and the arrays that the losses with the best z and with the encoder's are written to.
    """
    low_rank, best, encoded = evaluated
    size = tokens_per_chunk(len(tokens.head.weight), tokens.heldout.device)
    for first in range(0, len(tokens.heldout), size * every):
        rows = slice(first, first + size * every, every)
        hidden = tokens.heldout[rows].float()
        with torch.no_grad():
            z = low_rank.encode(directions.coordinates(hidden))
        result = best_logits(
            tokens.head.log_probs(hidden), low_rank.decode, low_rank.bias, z, low_rank.logit_map, dtype
        )
        best[rows], encoded[rows] = result.kl.cpu().double().numpy(), result.start_kl.cpu().double().numpy()


def _result(
    stream: TokenStream, tokens: HeadTokens, widths: Sequence[int], losses: _Losses, settings: dict[str, int]
) -> HeadFloor:
    """Average the losses, and make them non-increasing over the widths: a wider student can do the same."""
    n_wide = len(widths) - len(losses.best)
    sequence = np.unique(tokens.heldout_sequence.numpy(), return_inverse=True)[1]
    if not sequence.any():  # the error cannot be told from one sequence, only from its tokens
        sequence = np.arange(len(sequence))
    n_of_sequence = np.bincount(sequence)
    sums = np.array([np.bincount(sequence, best) for best in losses.best]).reshape(-1, len(n_of_sequence))
    errors = [*ratio_standard_error(sums, n_of_sequence).tolist(), *[0.0] * n_wide]

    def non_increasing(means: Float64[np.ndarray, " narrower"]) -> tuple[float, ...]:
        return tuple(np.minimum.accumulate(means).tolist() if len(means) else ()) + (0.0,) * n_wide

    floor = losses.best.mean(1)
    in_both = ~np.isnan(losses.half[0]) if len(losses.half) else slice(0)
    gain = (losses.half - losses.best)[:, in_both].mean(1) if len(losses.half) else floor
    return HeadFloor(
        model_name=stream.teacher.name,
        text_name=stream.text.name,
        d_model=tokens.train.shape[1],
        vocab_size=len(tokens.head.weight),
        widths=tuple(widths),
        floor=non_increasing(floor),
        standard_error=tuple(errors),
        half_steps=non_increasing(np.maximum(0.0, floor + gain)),
        encoded=non_increasing(losses.encoded.mean(1)),
        known_share=tokens.head.known_share(some_tokens(tokens.train, SHARE_TOKENS)),
        fingerprint=teacher_fingerprint(stream.teacher.model, None).to_text(),
        steps=settings["steps"],
        n_train_tokens=len(tokens.train),
        n_heldout_tokens=len(tokens.heldout),
        settings=settings | {"context_size": stream.context_size, "text": stream.text.fingerprint},
        warnings=(
            *stream.teacher.warnings,
            *warn_of_missing_layers(stream.teacher.model, stream.teacher.name),
            *head_warnings(widths[: len(floor)], floor, gain, len(tokens.train)),
        ),
    )


def _free_memory(device: torch.device) -> int:
    """Return the bytes that can still be allocated on a device, with those that torch has reserved but does not use."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + unused)


def _check_memory(model: HookedModel, widths: Sequence[int], n_tokens: int) -> None:
    """Raise an InputError if hidden states, the weights of all widths and a step's logits do not fit into memory."""
    weight = next(iter(model.parameters()))
    vocabulary, d_model = teacher_vocabulary(model), int(model.cfg.d_model)
    hidden = HIDDEN_COPIES * n_tokens * d_model * weight.element_size()
    needed = hidden + vocabulary * (BYTES_PER_WEIGHT * sum(widths) + 4 * LOGIT_ARRAYS * TOKENS_PER_STEP)
    free = _free_memory(weight.device)
    if needed > free:
        raise InputError(
            f"the head floor of {len(widths)} widths with {vocabulary:,} tokens of vocabulary needs"
            f" {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; name fewer or narrower widths with --widths, or"
            " read fewer --tokens"
        )
