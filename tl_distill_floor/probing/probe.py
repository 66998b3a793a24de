"""`probe`: fit linear probes for one kind of label to one activation."""

import dataclasses

from tl_distill_floor.annotations import Dtype, LabelsLike, Pooling, TeacherLike
from tl_distill_floor.errors import InputError
from tl_distill_floor.probing.activations import collect_activations
from tl_distill_floor.probing.config import ProbeConfig
from tl_distill_floor.probing.examples import tokenize_examples
from tl_distill_floor.probing.fitting import fit_probes, probe_result
from tl_distill_floor.results.probes import ProbeResult
from tl_distill_floor.sources.labels import load_labels
from tl_distill_floor.sources.teachers import choose_context_size, load_teacher, tokenizer_of
from tl_distill_floor.sources.torch_state import neutral_torch_state


@neutral_torch_state()
def probe(
    model: TeacherLike,
    hook_name: str,
    labelled: LabelsLike | None = None,
    *,
    label: str | None = None,
    pool: Pooling = "mean",
    per_class: int = 1000,
    n_splits: int = 5,
    seed: int = 0,
    context_size: int | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    dtype: Dtype = "fp32",
) -> ProbeResult:
    """Measure how well a label can be predicted from a model's activation by logistic regression.

    One probe is fitted for each of several random splits of the documents, and scored on documents that it was not
    fitted to. To probe a teacher, its students and the forecasts for them together, use `probe_run`.

    Args:
        model: the model; see `load_teacher`. A student's directory works too.
        hook_name: hook point, by its HookedTransformer or TransformerBridge name.
        labelled: labelled texts; see `load_labels`. The embedded passages if None.
        label: field that holds the label; "label" if None, or "author" for the embedded passages.
        pool: which activation of a text is probed: the "mean" over its tokens, without the first one and special
            tokens, or that of its "last" token. Words are probed at their last token.
        per_class: largest number of examples per class; more are sampled down at random.
        n_splits: number of random splits of the documents.
        seed: seed of the splits and of the sample of examples.
        context_size: tokens per text, longer texts are truncated; 256 or the model's context size if None.
        batch_size: texts per forward pass.
        device: torch device of a model that is loaded here.
        dtype: "fp32" or "bf16", for a model that is loaded here.

    Returns:
        ProbeResult: accuracy and AUROC on the test documents of every split, with the majority-class baseline.

    Raises:
        InputError: the model, the labels or the hook point cannot be loaded, an option is out of its range, or a label
            has fewer than two classes that occur in 5 documents.

    Example:
        >>> from tl_distill_floor import load_teacher, probe
        >>> result = probe(load_teacher("tiny-prose"), "blocks.1.hook_resid_post", per_class=50)  # doctest: +SKIP
        >>> result.mean_accuracy, result.mean_majority  # doctest: +SKIP
    """
    config = ProbeConfig(pool=pool, per_class=per_class, n_splits=n_splits, seed=seed, batch_size=batch_size)
    teacher = load_teacher(model, device=device, dtype=dtype)
    context_size = choose_context_size(teacher.model, context_size)
    names = None if label is None and labelled is not None else [label or "author"]
    labelled_text = load_labels(labelled, names)
    if len(labelled_text.tasks) > 1:
        raise InputError(
            f"{len(labelled_text.tasks)} kinds of labels were given; name one with label=, or use probe_run"
        )
    examples = tokenize_examples(
        labelled_text,
        tokenizer_of(teacher.model),
        pool=config.pool,
        context_size=context_size,
        per_class=config.per_class,
        seed=config.seed,
    )
    ((activation,),) = collect_activations(teacher.model, hook_name, examples, batch_size=config.batch_size).values()
    (task,) = examples.tasks
    scores = fit_probes(activation, task, n_splits=config.n_splits, seed=config.seed)
    result = probe_result(task, scores, teacher.name, "teacher", None, hook_name)
    return dataclasses.replace(result, warnings=examples.warnings)
