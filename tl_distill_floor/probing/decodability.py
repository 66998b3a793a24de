"""Decode the activations of the teacher's SAE features from a student: a test of assumption A2.

Assumption A2 of Sarkar and Deka (2026, arXiv 2604.04037): a student keeps the most important features and loses the
others completely.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from scipy.linalg import eigh
from scipy.sparse import csc_array, csr_array, vstack
from torch import Tensor

from tl_distill_floor.annotations import HookedModel, TextLike
from tl_distill_floor.distilling.students.layers import student_hook
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.active_codes import tokens_at_once
from tl_distill_floor.measuring.encoding import encode_tokens
from tl_distill_floor.measuring.hooks import activation_reader
from tl_distill_floor.measuring.token_stream import TokenStream, model_input
from tl_distill_floor.probing.fitting import column_auroc
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction
from tl_distill_floor.results.probes import Decodability
from tl_distill_floor.results.student import StudentResult
from tl_distill_floor.sources.devices import device_of
from tl_distill_floor.sources.packing import packing_of
from tl_distill_floor.sources.sae_source import SaeSource
from tl_distill_floor.sources.teacher import Teacher
from tl_distill_floor.sources.teachers import load_teacher, tokenizer_of
from tl_distill_floor.sources.text import load_text

MAX_FEATURES = 2_000
"""Largest number of features that are decoded; more are sampled down at random."""
MIN_FIRED = 10
"""A decoded feature fires on at least this many tokens of each part of the text, and is silent on at least as many."""
RIDGE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Penalties that are compared, for activations that are standardised to variance 1."""
N_PARTS = 5
"""Parts that the sequences are divided into."""
TEST_PART, VALIDATION_PART = 0, 1
"""Of the five parts of the sequences; the other three are for training."""
DECIMALS = 5
"""Decimals of saved scores."""


class EncodedText(NamedTuple):
    """Sequences of tokens, and the SAE's codes of the tokens that are counted."""

    ids: Int64[Tensor, "sequence position"]
    counted: Bool[np.ndarray, "sequence position"]
    """False for special tokens, first positions, and positions that the SAE was not trained on."""
    codes: csr_array
    """SAE codes [counted token, feature]."""
    sequence: Int64[np.ndarray, " token"]
    """Number of each counted token's sequence."""


def decodability(
    floor: FeatureFloorPrediction,
    teacher: Teacher,
    source: SaeSource,
    students: Sequence[StudentResult],
    text: TextLike | None = None,
    *,
    n_tokens: int = 60_000,
    seed: int = 0,
    batch_size: int = 16,
    on_model_done: Callable[[str], None] = lambda _message: None,
) -> list[Decodability]:
    """Predict each feature's SAE activation from the teacher's and the students' activations, by ridge regression.

    The regression's output is scored in two ways: by how well it ranks tokens on which the feature fires above the
    others (AUROC), and by the share of the variance of the feature's activation that it explains. One fifth of the
    sequences is the test set, one fifth selects the penalty.

    Args:
        floor: the prediction, which says which features each width keeps.
        teacher: the teacher that was measured.
        source: the SAE that was measured. As in a measurement, the text is put into sequences as in its training.
        students: saved students.
        text: see `load_text`; the embedded text if None.
        n_tokens: tokens of the text to read.
        seed: seed of the split of the sequences and of the sample of features.
        batch_size: sequences per forward pass.
        on_model_done: called with a short message after each model.

    Returns:
        One record for the teacher and one per student, all of the same features.

    Raises:
        InputError: the text cannot be loaded, or too few features fire on it.
    """
    stats = floor.stats
    loaded = load_text(
        text,
        tokenizer_of(teacher.model),
        context_size=stats.settings.get("context_size"),
        prepend_bos=source.prepend_bos is not False,
        packing=packing_of(source),
    )
    stream = TokenStream(
        teacher, loaded, batch_size, positions=source.counted_positions, excluded_ids=source.excluded_ids
    )
    encoded = _encode_text(stream, source, stats.hook_name, n_tokens)
    part = _assign_parts(encoded, seed)
    features = _decodable_features(encoded, part, stats.alive(floor.min_count), seed)
    codes = encoded.codes[:, features].tocsc()

    def decode(model: HookedModel, hook_name: str, name: str, width: int | None) -> Decodability:
        auroc, explained = decode_features(_activations(model, hook_name, encoded, batch_size), codes, part)
        kept = np.ones(len(features), bool) if width is None else floor.kept(width)[features]
        lost_share = np.zeros(len(features)) if width is None else floor.lost_share(width)[features]
        on_model_done(f"features in {name}")
        return Decodability(
            subject=name,
            width=width,
            hook_name=hook_name,
            n_tokens=int((part == TEST_PART).sum()),
            feature=tuple(features.tolist()),
            auroc=_rounded(auroc),
            explained=_rounded(explained),
            kept=tuple(kept.tolist()),
            lost_share=_rounded(lost_share),
        )

    records = [decode(teacher.model, stats.hook_name, teacher.name, None)]
    for student in students:
        assert student.path is not None
        model = load_teacher(student.path, device=str(device_of(teacher.model))).model
        hook_name = student_hook(stats.hook_name, int(teacher.model.cfg.n_layers), student.depth)
        records.append(decode(model, hook_name, student.name, student.width))
    return records


def decode_features(
    x: Float32[np.ndarray, "token d_model"], codes: csc_array, part: Int64[np.ndarray, " token"]
) -> tuple[Float64[np.ndarray, " feature"], Float64[np.ndarray, " feature"]]:
    """Fit a ridge regression from activations to each feature, and score it on the test part.

    Args:
        x: activations.
        codes: the features' activations [token, feature].
        part: part of each token: 0 is the test part, 1 selects each feature's penalty, the others are for training.

    Returns:
        (AUROC of whether the feature fires, share of the variance of its activation that is explained), each [feature].
    """
    from sklearn.preprocessing import StandardScaler

    train, validation, test = part > VALIDATION_PART, part == VALIDATION_PART, part == TEST_PART
    scaler = StandardScaler().fit(x[train])
    x_train, x_validation, x_test = (scaler.transform(x[rows].astype(np.float64)) for rows in (train, validation, test))
    y_train, y_validation, y_test = (codes[np.flatnonzero(rows)] for rows in (train, validation, test))
    offset = np.asarray(y_train.mean(0)).ravel()
    # In the eigenvectors of the covariance a penalty only changes each direction's divisor.
    eigenvalues, eigenvectors = eigh(x_train.T @ x_train / len(x_train))
    covariance = eigenvectors.T @ np.asarray((y_train.T @ x_train).T) / len(x_train)  # x_train has mean 0
    weights, least_error = np.zeros_like(covariance), np.full(covariance.shape[1], np.inf)
    validation_target = np.asarray(y_validation.todense()) - offset
    projected = x_validation @ eigenvectors
    for penalty in RIDGE_PENALTIES:
        candidate = covariance / (np.maximum(eigenvalues, 0.0) + penalty)[:, None]
        error = ((projected @ candidate - validation_target) ** 2).sum(0)
        weights = np.where(error < least_error, candidate, weights)
        least_error = np.minimum(error, least_error)
    predicted = x_test @ (eigenvectors @ weights)
    target = np.asarray(y_test.todense())
    total = ((target - target.mean(0)) ** 2).sum(0)
    explained = 1.0 - ((predicted + offset - target) ** 2).sum(0) / np.maximum(total, 1e-300)
    return column_auroc(predicted, target != 0), explained


@torch.no_grad()
def _encode_text(stream: TokenStream, source: SaeSource, hook_name: str, n_tokens: int) -> EncodedText:
    model, batch_size, text = stream.teacher.model, stream.batch_size, stream.text
    ids = stream.read_sequences(n_tokens, padded=True)
    if len(ids) < N_PARTS:
        raise InputError(
            f"decoding features needs at least {N_PARTS} sequences of {text.context_size} tokens, got {len(ids)} from"
            f" {text.name}; set --feature-tokens higher, or give more --text"
        )
    counted = stream.counted(ids)
    size = tokens_at_once(len(source.sae.W_dec), source.sae.W_dec.device)
    codes: list[csr_array] = []
    with activation_reader(model, [hook_name]) as read:
        for batch, mask in zip(torch.split(ids, batch_size), torch.split(counted, batch_size), strict=True):
            (activation,) = read(model_input(model, batch))
            for tokens in torch.split(activation[mask.to(activation.device)], size):
                codes += [csr_array(encode_tokens(source.sae, tokens, int(model.cfg.n_heads)).cpu().numpy())]
    return EncodedText(ids, counted.numpy(), vstack(codes, format="csr"), counted.nonzero()[:, 0].numpy())


def _activations(
    model: HookedModel, hook_name: str, encoded: EncodedText, batch_size: int
) -> Float32[np.ndarray, "token d_model"]:
    """Return the activation of every counted token."""
    counted = torch.from_numpy(encoded.counted)
    activations = []
    with activation_reader(model, [hook_name]) as read:
        for batch, mask in zip(torch.split(encoded.ids, batch_size), torch.split(counted, batch_size), strict=True):
            (activation,) = read(model_input(model, batch))
            activations.append(activation[mask.to(activation.device)].flatten(1).float().cpu().numpy())
    return np.concatenate(activations)


def _assign_parts(encoded: EncodedText, seed: int) -> Int64[np.ndarray, " token"]:
    """Return the part (0 to 4) of each token; all tokens of a sequence and of its copies are in the same part."""
    copies: dict[bytes, int] = {}
    number = np.array([copies.setdefault(ids.numpy().tobytes(), len(copies)) for ids in encoded.ids])
    numbers, index = np.unique(number[encoded.sequence], return_inverse=True)
    part: np.ndarray = np.random.default_rng(seed).permutation(np.arange(len(numbers)) % N_PARTS)
    return part[index]


def _decodable_features(
    encoded: EncodedText, part: Int64[np.ndarray, " token"], alive: Bool[np.ndarray, " feature"], seed: int
) -> Int64[np.ndarray, " decoded"]:
    """Return at most `MAX_FEATURES` alive features that fire often enough in each part."""
    decodable = alive.copy()
    for rows in (part == TEST_PART, part == VALIDATION_PART, part > VALIDATION_PART):
        n_fired = np.asarray((encoded.codes[np.flatnonzero(rows)] != 0).sum(0)).ravel()
        decodable &= (n_fired >= MIN_FIRED) & (rows.sum() - n_fired >= MIN_FIRED)
    features = np.flatnonzero(decodable)
    if len(features) < 2:
        raise InputError(
            f"only {len(features)} features fire at least {MIN_FIRED} times in every part of the text; set"
            " --feature-tokens higher, or give more --text"
        )
    if len(features) > MAX_FEATURES:
        features = np.sort(np.random.default_rng(seed).choice(features, MAX_FEATURES, replace=False))
    return features


def _rounded(values: Float64[np.ndarray, " feature"]) -> tuple[float, ...]:
    return tuple(np.round(values, DECIMALS).tolist())
