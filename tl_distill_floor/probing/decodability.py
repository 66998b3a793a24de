"""Which of the teacher's features a line still reads off a student's activation: a test of assumption A2."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from scipy.linalg import eigh
from scipy.sparse import csr_array, vstack
from scipy.stats import rankdata
from torch import Tensor

from tl_distill_floor.distilling.layers import student_hook
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.encoding import encode_tokens
from tl_distill_floor.measuring.hooks import reader
from tl_distill_floor.measuring.token_stream import device_of, mask_first_position
from tl_distill_floor.results.probes import Decodability
from tl_distill_floor.results.student import StudentResult
from tl_distill_floor.sources.teachers import Teacher, load_teacher, special_token_ids
from tl_distill_floor.sources.text import TextSource, load_text

if TYPE_CHECKING:
    from tl_distill_floor.results.floor_prediction import FloorPrediction

MOST_FEATURES = 2_000
LEAST_FIRED = 10
"""Tokens on which a feature must fire, and on which it must not, of those judged on and of those trained on."""
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Penalties, in units of the mean variance of the activation."""


class Tokens(NamedTuple):
    """Tokens of a text: what the SAE finds on them, and where they stand."""

    ids: Tensor
    """[sequence, position]"""
    counts: Bool[np.ndarray, "sequence position"]
    fired: csr_array
    """[token that counts, feature]: the codes."""
    sequence: Int64[np.ndarray, " token"]


def decodability(
    floor: "FloorPrediction",
    teacher: Teacher,
    sae: Any,
    students: Sequence[StudentResult],
    text: Any = None,
    *,
    n_tokens: int = 60_000,
    prepend_bos: bool = True,
    seed: int = 0,
    batch_size: int = 16,
    report: Callable[[str], None] = lambda _doing: None,
) -> list[Decodability]:
    """Read every feature of a sample off the teacher's and the students' activations, by ridge regression on its codes.

    One regression gives both numbers: how well its output ranks the tokens by whether the feature fires, and how much
    of the variance of the feature's activation it explains. A fifth of the sequences judges, a fifth chooses the
    penalty.

    Args:
        floor: says which features each width keeps.
        teacher, sae: that were measured.
        students: saved ones.
        text: see `load_text`; the embedded text when left out.
        n_tokens: to read.
        prepend_bos: lead every sequence with the beginning-of-text token, as the SAE was trained.
        seed: of the choice of sequences and of features.
        batch_size: sequences a batch.
        report: told of every model.

    Raises:
        InputError: the text cannot be read, or too few features fire on it.
    """
    stats = floor.stats
    size = stats.settings.get("context_size")
    source = load_text(text, teacher.model.tokenizer, context_size=size, prepend_bos=prepend_bos)
    tokens = _tokens(teacher.model, sae, stats.hook_name, source, n_tokens, batch_size)
    parts = _parts(tokens.sequence, seed)
    chosen = _features(tokens, parts, stats.alive(floor.min_count), seed)
    codes = tokens.fired[:, chosen].tocsc()

    def of(model: Any, hook: str, name: str, width: int | None) -> Decodability:
        x = _activations(model, hook, tokens, batch_size)
        auroc, explained = decoded(x, codes, parts)
        kept = np.ones(len(chosen), bool) if width is None else floor.kept(width)[chosen]
        lost = np.zeros(len(chosen)) if width is None else floor.lost_share(width)[chosen]
        report(f"features in {name}")
        n = int((parts == 0).sum())
        rounded = (tuple(np.round(values, 5).tolist()) for values in (auroc, explained))
        places = (tuple(chosen.tolist()), *rounded, tuple(kept.tolist()), tuple(np.round(lost, 5).tolist()))
        return Decodability(name, width, hook, n, *places)

    found = [of(teacher.model, stats.hook_name, teacher.name, None)]
    for student in students:
        model = load_teacher(student.path, device=str(device_of(teacher.model))).model
        hook = student_hook(stats.hook_name, int(teacher.model.cfg.n_layers), student.depth)
        found.append(of(model, hook, student.name, student.width))
    return found


def decoded(
    x: Float32[np.ndarray, "token d_model"], codes: Any, parts: Int64[np.ndarray, " token"]
) -> tuple[Float64[np.ndarray, " feature"], Float64[np.ndarray, " feature"]]:
    """(AUROC of firing, variance of the activation explained) of each feature on part 0.

    Args:
        x: activations.
        codes: [token, feature], compressed sparse columns.
        parts: of every token: 0 is judged on, 1 chooses each feature's penalty, what is left is trained on.
    """
    train, validation, test = parts >= 2, parts == 1, parts == 0
    mean, scale = x[train].mean(0), x[train].std(0) + 1e-6
    seen = [((x[part] - mean) / scale).astype(np.float64) for part in (train, validation, test)]
    target = [codes[np.flatnonzero(part)] for part in (train, validation, test)]
    offset = np.asarray(target[0].mean(0)).ravel()
    values, vectors = eigh(seen[0].T @ seen[0] / len(seen[0]))
    along = vectors.T @ np.asarray((target[0].T @ seen[0]).T) / len(seen[0])  # the columns of seen[0] have mean 0
    best, error = np.zeros_like(along), np.full(along.shape[1], np.inf)
    held = seen[1] @ vectors
    truth = np.asarray(target[1].todense()) - offset
    for ridge in RIDGES:
        slopes = along / (np.maximum(values, 0.0) + ridge)[:, None]
        missed = ((held @ slopes - truth) ** 2).sum(0)
        best, error = np.where(missed < error, slopes, best), np.minimum(missed, error)
    guess = seen[2] @ (vectors @ best)
    truth = np.asarray(target[2].todense())
    spread = ((truth - truth.mean(0)) ** 2).sum(0)
    explained = 1.0 - ((guess + offset - truth) ** 2).sum(0) / np.maximum(spread, 1e-300)
    return auroc(guess, truth != 0), explained


def auroc(score: Float64[np.ndarray, "token feature"], fired: Bool[np.ndarray, "token feature"]) -> Any:
    """[feature] area under the ROC curve: how often a token where it fires is ranked above one where it does not."""
    n_fired, n = fired.sum(0), len(fired)
    ranks = np.array([rankdata(score[:, i])[fired[:, i]].sum() for i in range(score.shape[1])])
    return (ranks - n_fired * (n_fired + 1) / 2) / np.maximum(n_fired * (n - n_fired), 1)


@torch.no_grad()
def _tokens(model: Any, sae: Any, hook: str, source: TextSource, n_tokens: int, batch_size: int) -> Tokens:
    rows = []
    for row in source.read():
        rows.append(row)
        if len(rows) * source.context_size >= n_tokens:
            break
    if len(rows) < 5:
        raise InputError(
            f"features are read off 5 sequences of {source.context_size} tokens or more, got {len(rows)} of"
            f" {source.name}; set --feature-tokens higher, or give more --text"
        )
    ids = torch.stack(rows)
    counts = mask_first_position(ids.shape) & ~torch.isin(ids, torch.tensor(special_token_ids(model), dtype=ids.dtype))
    fired: list[csr_array] = []
    with reader(model, [hook]) as read:
        for batch, mask in zip(torch.split(ids, batch_size), torch.split(counts, batch_size), strict=True):
            (activation,) = read(batch.to(device_of(model)))
            codes = encode_tokens(sae, activation[mask.to(activation.device)], int(model.cfg.n_heads))
            fired.append(csr_array(codes.cpu().numpy()))
    return Tokens(ids, counts.numpy(), vstack(fired, format="csr"), counts.nonzero()[:, 0].numpy())


def _activations(model: Any, hook: str, tokens: Tokens, batch_size: int) -> Float32[np.ndarray, "token d_model"]:
    counts, found = torch.from_numpy(tokens.counts), []
    with reader(model, [hook]) as read:
        for batch, mask in zip(torch.split(tokens.ids, batch_size), torch.split(counts, batch_size), strict=True):
            (activation,) = read(batch.to(device_of(model)))
            found.append(activation[mask.to(activation.device)].flatten(1).float().cpu().numpy())
    return np.concatenate(found)


def _parts(sequence: Int64[np.ndarray, " token"], seed: int) -> Int64[np.ndarray, " token"]:
    """0 to 4 for every token, the same for all of a sequence."""
    numbers, place = np.unique(sequence, return_inverse=True)
    part = np.random.default_rng(seed).permutation(np.arange(len(numbers)) % 5)
    return part[place]


def _features(
    tokens: Tokens, parts: Int64[np.ndarray, " token"], alive: Bool[np.ndarray, " feature"], seed: int
) -> Int64[np.ndarray, " chosen"]:
    """At most `MOST_FEATURES` alive ones that fire often enough to be trained and judged."""
    enough = alive.copy()
    for part in (parts == 0, parts == 1, parts >= 2):
        n_fired = np.asarray((tokens.fired[np.flatnonzero(part)] != 0).sum(0)).ravel()
        enough &= (n_fired >= LEAST_FIRED) & (part.sum() - n_fired >= LEAST_FIRED)
    found = np.flatnonzero(enough)
    if len(found) < 2:
        raise InputError(
            f"only {len(found)} features fire {LEAST_FIRED} times in every part of the text; set --feature-tokens"
            " higher, or give more --text"
        )
    if len(found) > MOST_FEATURES:
        found = np.sort(np.random.default_rng(seed).choice(found, MOST_FEATURES, replace=False))
    return found
