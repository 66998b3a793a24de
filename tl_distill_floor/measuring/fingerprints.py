"""Compare a teacher with the one that was measured, by what both compute for fixed token ids."""

import numpy as np
import torch
from torch import Tensor

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.hooks import activation_reader, eval_mode, forward_logits
from tl_distill_floor.results.teacher_fingerprint import TeacherFingerprint
from tl_distill_floor.sources.context_lengths import cut_to_context, teacher_vocabulary
from tl_distill_floor.sources.devices import device_of
from tl_distill_floor.sources.teacher_checks import ROUNDING_TOLERANCE, TOLERANCE, relative_difference

N_TOKENS, N_LOG_PROBS = 16, 256
"""Tokens of the sequence, and tokens of the vocabulary whose log-probabilities are kept."""
STRIDE = 2_654_435_761
"""Prime by which token ids are spread over a vocabulary of any size."""


def teacher_fingerprint(model: HookedModel, hook_name: str | None) -> TeacherFingerprint:
    """Return what a teacher computes for fixed token ids.

    Args:
        model: a HookedTransformer or a TransformerBridge.
        hook_name: hook point whose activation is part of it; None for the outputs alone.

    Raises:
        InputError: the model has no such hook point, or its forward pass fails.
    """
    vocabulary = teacher_vocabulary(model)
    ids, tokens = (
        np.unique(np.arange(1, 1 + n) * STRIDE % vocabulary) for n in (cut_to_context(N_TOKENS, model), N_LOG_PROBS)
    )
    return _computed(model, hook_name, ids, tokens)


def compare_with_fingerprint(
    fingerprint: TeacherFingerprint, model: HookedModel, hook_name: str | None, *, outputs_only: bool = False
) -> tuple[float, bool]:
    """Return how far a teacher is from a fingerprint, and whether this may be rounding.

    Args:
        fingerprint: that of the teacher that was measured.
        model: a HookedTransformer or a TransformerBridge.
        hook_name: the hook point of the fingerprint; None if it has outputs alone.
        outputs_only: compare the log-probabilities only, which do not depend on how weights were folded or centred.

    Returns:
        The difference as a share of the standard deviation, see `relative_difference`: that of the activations or of
        the log-probabilities, whichever is larger. 0 if the fingerprint has a value that is not a number; NaN if
        the two cannot be compared, since their vocabularies, contexts or activations have other sizes.

    Raises:
        InputError: the model has no such hook point.
    """
    longest = max(fingerprint.ids.max(initial=0), fingerprint.tokens.max(initial=0))
    if longest >= teacher_vocabulary(model) or cut_to_context(len(fingerprint.ids), model) < len(fingerprint.ids):
        return np.nan, False
    computed = _computed(model, None if outputs_only else hook_name, fingerprint.ids, fingerprint.tokens)
    return compare_fingerprints(fingerprint, computed, outputs_only=outputs_only)


def compare_fingerprints(
    expected: TeacherFingerprint, computed: TeacherFingerprint, *, outputs_only: bool
) -> tuple[float, bool]:
    """Return how far two fingerprints are apart, and whether this may be rounding; see `compare_with_fingerprint`."""
    if not (np.array_equal(expected.ids, computed.ids) and np.array_equal(expected.tokens, computed.tokens)):
        return np.nan, False
    if not outputs_only and expected.activation.shape != computed.activation.shape:
        return np.nan, False
    difference = _difference(expected.log_prob, computed.log_prob)
    if not outputs_only:
        difference = max(difference, _difference(expected.activation, computed.activation))
    is_rounded = max(float(expected.eps[0]), float(computed.eps[0])) > torch.finfo(torch.float32).eps
    return difference, difference <= (ROUNDING_TOLERANCE if is_rounded else TOLERANCE)


@torch.no_grad()
def _computed(model: HookedModel, hook_name: str | None, ids: np.ndarray, tokens: np.ndarray) -> TeacherFingerprint:
    """Return the fingerprint of a teacher for some token ids."""
    sequence = torch.from_numpy(ids)[None].to(device_of(model))
    activation = torch.zeros(1, len(ids), 0)
    if hook_name is not None:
        with activation_reader(model, [hook_name]) as read:
            (activation,) = read(sequence)
    try:
        with eval_mode(model):
            log_probs = forward_logits(model, sequence)[0].float().log_softmax(-1)
        tokens = tokens[tokens < log_probs.shape[-1]]
        log_prob = log_probs[:, torch.from_numpy(tokens)]
    except InputError:  # no logits, or none that mean something
        tokens, log_prob = tokens[:0], torch.zeros(len(ids), 0)
    dtype = next(model.parameters()).dtype
    return TeacherFingerprint(
        ids, _as_float32(activation[0].flatten(1)), tokens, _as_float32(log_prob), np.array([torch.finfo(dtype).eps])
    )


def _as_float32(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.float().cpu().numpy()
    return array


def _difference(expected: np.ndarray, computed: np.ndarray) -> float:
    """Return how far values are apart, as a share of their standard deviation."""
    if not expected.size or np.isnan(expected).any():
        return 0.0
    return relative_difference(torch.from_numpy(expected), torch.from_numpy(computed))
