"""Linear probes: what a line can read off a model's activation at a hook point.

The classifier is scikit-learn's logistic regression on standardised activations. Documents stand on one side of a split
only: of five parts, one is tested on, one chooses the penalty, three are trained on, for every seed anew.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.hooks import reader
from tl_distill_floor.measuring.token_stream import device_of
from tl_distill_floor.probing.items import LEAST_DOCUMENTS, MEAN, Items, Sequences, sequences_of
from tl_distill_floor.results.probes import ProbeResult
from tl_distill_floor.sources.labels import load_labels
from tl_distill_floor.sources.teachers import check_context, load_teacher

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Of scikit-learn's C: the larger, the weaker the penalty."""
ITERATIONS = 100
DRAWINGS = 200


def probe(
    model: Any,
    hook_name: str,
    labelled: Any = None,
    *,
    label: str | None = None,
    pool: str = "mean",
    per_class: int = 1000,
    splits: int = 5,
    seed: int = 0,
    context_size: int | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    dtype: str = "fp32",
) -> ProbeResult:
    """How well a line reads a label off a model's activation.

    Args:
        model: see `load_teacher`; a student's directory too.
        hook_name: under HookedTransformer's or TransformerBridge's name.
        labelled: see `load_labels`; the embedded passages when left out.
        label: the field that is the label; "label", or "author" of the embedded passages, when left out.
        pool: for labels of texts, the "mean" of all tokens or the "last" one; words are probed at their last token.
        per_class: items of a class at the most.
        splits: of the documents, each with probes of its own.
        seed: of the splits and of the drawing of items.
        context_size: tokens of a text that are read at the most; 256, or what the model reads, when left out.
        batch_size: texts a batch.
        device, dtype: of a model that is loaded here.

    Raises:
        InputError: something cannot be loaded, no such hook point, or labels that cannot be probed.
    """
    loaded = load_teacher(model, device=device, dtype=dtype)
    check_context(loaded.model, context_size)
    found = load_labels(labelled, None if label is None and labelled is not None else [label or "author"])
    if len(found.tasks) > 1:
        raise InputError(f"labels of {len(found.tasks)} kinds were given; name one with label=, or use probe_run")
    size = context_size or min(256, int(loaded.model.cfg.n_ctx))
    sequences = sequences_of(
        found, loaded.model.tokenizer, pool=pool, context_size=size, per_class=per_class, seed=seed
    )
    activations = collect(loaded.model, hook_name, sequences, batch_size=batch_size)["activation"]
    (items,) = sequences.items
    scores = fit(activations[0], items, splits=splits, seed=seed)
    return result_of(items, scores, loaded.name, "teacher", None, hook_name)


def result_of(items: Items, scores: "Scores", subject: str, kind: str, width: int | None, hook: str) -> ProbeResult:
    """The record of some probes."""
    n_documents = len(np.unique(items.document))
    return ProbeResult(
        items.task, items.level, items.pool, subject, kind, width, hook, items.classes, len(items), n_documents,
        *(tuple(values) for values in scores),
    )  # fmt: skip


class Readout(NamedTuple):
    """What is probed of activations."""

    of_token: Callable[[Float[Tensor, "token d_model"]], Float[Tensor, "token held"]]
    """What each token gives, of which the mean over a text is taken, or one token's."""
    views: Callable[[Float[Tensor, "item held"]], Mapping[str, Float[Tensor, "item view"]]]
    """From that to what is probed, by name; linear, so that means come first."""


AS_IT_IS = Readout(lambda activation: activation, lambda activation: {"activation": activation})


@torch.no_grad()
def collect(
    model: Any, hook_name: str, sequences: Sequences, readout: Readout = AS_IT_IS, *, batch_size: int = 16
) -> dict[str, list[Float32[np.ndarray, "item view"]]]:
    """What is probed, by view and task.

    Texts of one length stand together and are padded on the right, which no earlier token of a causal model sees.

    Raises:
        InputError: no such hook point, or an activation is not finite.
    """
    used = np.unique(np.concatenate([items.text for items in sequences.items]))
    order = sorted(used.tolist(), key=lambda text: len(sequences.ids[text]))
    found: dict[str, list[np.ndarray]] = {}
    places = [_by_text(items) for items in sequences.items]
    with reader(model, [hook_name]) as read:
        for first in range(0, len(order), batch_size):
            texts = order[first : first + batch_size]
            padded = torch.nn.utils.rnn.pad_sequence([sequences.ids[text] for text in texts], batch_first=True)
            (activation,) = read(padded.to(device_of(model)))
            if not activation.isfinite().all():
                raise InputError(f"the activation at {hook_name} holds NaN or Inf; load the model in fp32")
            chosen = [[by_text(text) for by_text in places] for text in texts]
            lengths = [len(sequences.ids[text]) for text in texts]
            pooled = _pooled(sequences, chosen, activation.flatten(2).float(), lengths, readout)
            for task, held in enumerate(pooled):
                rows = np.concatenate([of_text[task] for of_text in chosen])
                for name, seen in readout.views(held).items():
                    if name not in found:
                        found[name] = [np.zeros((len(i), seen.shape[1]), dtype=np.float32) for i in sequences.items]
                    found[name][task][rows] = seen.float().cpu().numpy()
    return found


def _by_text(items: Items) -> Callable[[int], Int64[np.ndarray, " item"]]:
    """From a text to its items."""
    order = np.argsort(items.text, kind="stable")
    ordered = items.text[order]
    return lambda text: order[np.searchsorted(ordered, text) : np.searchsorted(ordered, text, side="right")]


def _pooled(
    sequences: Sequences,
    chosen: list[list[Int64[np.ndarray, " _"]]],
    activation: Float[Tensor, "text position d_model"],
    lengths: list[int],
    readout: Readout,
) -> list[Float[Tensor, "_ held"]]:
    """For every task what the chosen items of a batch hold, text after text."""
    positions = [[items.position[rows] for items, rows in zip(sequences.items, of, strict=True)] for of in chosen]
    tokens = [_tokens_needed(of_text, length) for of_text, length in zip(positions, lengths, strict=True)]
    gathered = [activation[place, torch.from_numpy(needed)] for place, needed in enumerate(tokens)]
    held = torch.split(readout.of_token(torch.cat(gathered)), [len(needed) for needed in tokens])

    def of(place: int, wanted: Int64[np.ndarray, " _"]) -> Tensor:
        """Of one text: the mean of its tokens, or those at some positions."""
        if (wanted == MEAN).any():
            return held[place].mean(0, keepdim=True).expand(len(wanted), -1)
        return held[place][torch.from_numpy(np.searchsorted(tokens[place], wanted))]

    n_tasks, n_texts = len(sequences.items), len(chosen)
    return [torch.cat([of(place, positions[place][task]) for place in range(n_texts)]) for task in range(n_tasks)]


def _tokens_needed(positions: list[Int64[np.ndarray, " _"]], length: int) -> Int64[np.ndarray, " token"]:
    """All but the first where a mean is wanted, else those at the positions."""
    wanted = np.unique(np.concatenate(positions))
    return np.arange(1, length) if MEAN in wanted else wanted


class Scores(NamedTuple):
    """Of every split."""

    accuracy: list[float]
    auroc: list[float]
    majority: list[float]
    penalty: list[float]


class Split(NamedTuple):
    """Which items are trained on, choose the penalty, and are tested on; no document stands in two of them."""

    train: Int64[np.ndarray, " train"]
    validation: Int64[np.ndarray, " validation"]
    test: Int64[np.ndarray, " test"]


def split_of(items: Items, seed: int) -> Split:
    """Five parts of whole documents, drawn at random until every class stands in all of: three, one and one.

    Raises:
        InputError: no drawing of many has every class to be trained on.
    """
    # scikit-learn's StratifiedGroupKFold gives the same parts for every seed where documents differ in their counts.
    random = np.random.default_rng(seed)
    documents, n_classes = np.unique(items.document), len(items.classes)
    found = None
    for _ in range(DRAWINGS):
        parts = np.array_split(random.permutation(documents), LEAST_DOCUMENTS)
        test, validation = (np.flatnonzero(np.isin(items.document, part)) for part in parts[:2])
        drawn = Split(np.flatnonzero(np.isin(items.document, np.concatenate(parts[2:]))), validation, test)
        n_there = [len(np.unique(items.label[part])) for part in drawn]
        if min(n_there) == n_classes:
            return drawn
        if found is None and n_there[0] == n_classes:
            found = drawn
    if found is None:
        raise InputError(
            f"{items.task}: no split of its {len(documents)} documents leaves every class to train on; give more"
        )
    return found


def fit(x: Float[np.ndarray, "item view"], items: Items, *, splits: int = 5, seed: int = 0) -> Scores:
    """Fit and judge one probe for every split.

    Raises:
        InputError: fewer than one split, or see `split_of`.
    """
    if splits < 1:
        raise InputError(f"the number of splits must be at least 1, got {splits}")
    found = Scores([], [], [], [])
    for number in range(splits):
        split = split_of(items, seed + number)
        scores = _fitted(x, items.label, split, len(items.classes))
        for values, value in zip(found, scores, strict=True):
            values.append(value)
    return found


def _fitted(
    x: Float[np.ndarray, "item view"], label: Int64[np.ndarray, " item"], split: Split, n_classes: int
) -> tuple[float, float, float, float]:
    """(accuracy, AUROC, majority, C) of the probe whose penalty the validation documents like best."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x[split.train])
    train, validation, test = (scaler.transform(x[part]) for part in split)
    model = LogisticRegression(warm_start=True, max_iter=ITERATIONS, tol=1e-3)
    best, chosen, probability = -1.0, PENALTIES[0], np.zeros((len(test), n_classes))
    with warnings.catch_warnings():
        # From a strong penalty to a weak one, each from where the last ended: what has not converged is chosen or not.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for penalty in PENALTIES:
            model.set_params(C=penalty).fit(train, label[split.train])
            accuracy = float(model.score(validation, label[split.validation]))
            if accuracy > best:
                best, chosen = accuracy, penalty
                probability = np.zeros((len(test), n_classes))
                probability[:, model.classes_] = model.predict_proba(test)
    right: Bool[np.ndarray, " test"] = probability.argmax(1) == label[split.test]
    majority = np.bincount(label[split.test]).max() / len(test)
    return float(right.mean()), auroc_of(probability, label[split.test]), float(majority), chosen


def auroc_of(probability: Float[np.ndarray, "item class"], label: Int64[np.ndarray, " item"]) -> float:
    """Mean over the classes that are among the labels, each against the rest."""
    from sklearn.metrics import roc_auc_score

    there = [c for c in np.unique(label) if (label == c).sum() < len(label)]
    return float(np.mean([roc_auc_score(label == c, probability[:, c]) for c in there])) if there else 0.5
