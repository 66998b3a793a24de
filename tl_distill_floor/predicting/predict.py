"""Predict the floor of every student width from a teacher and its SAEs.

The steps are: measure the features, train bottleneck students on the kept codes, measure the tail loss and the losses
of the students with the teacher, and compute the prediction.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from tl_distill_floor.annotations import (
    CostMethod,
    CostUnit,
    Dtype,
    ProgressCallback,
    SaeLike,
    TeacherLike,
    TextLike,
    WidthsLike,
)
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.config import LoadConfig, MeasureConfig
from tl_distill_floor.measuring.job import MeasurementJob, prepare_job
from tl_distill_floor.measuring.measurement import measure_job
from tl_distill_floor.measuring.processes import SINGLE_PROCESS, ProcessGroup
from tl_distill_floor.predicting.checks import integer_widths
from tl_distill_floor.predicting.config import STEPS, PredictConfig
from tl_distill_floor.predicting.floors import floor_from_stats
from tl_distill_floor.predicting.head_floor import N_TOKENS, head_floor_of_stream, head_steps
from tl_distill_floor.predicting.measured_floors import predict_measured, training_device
from tl_distill_floor.predicting.progress import ProgressBarFactory, UnfinishedCallback, no_progress_bar
from tl_distill_floor.predicting.without_sae import MIN_STEPS, predict_without_sae
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.floor_files import UNFINISHED
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction, FloorPrediction
from tl_distill_floor.results.head_floor import HeadFloor
from tl_distill_floor.sources.model_names import lookup_name
from tl_distill_floor.sources.sae_directory import find_saes
from tl_distill_floor.sources.torch_state import neutral_torch_state

NO_SAE_WARNING = (
    "no SAE is known for this teacher, so nothing is predicted from its features; give one, or train one with train_sae"
)
"""Warning of a prediction from the head floor alone."""
UNFINISHED_WARNINGS: dict[CostUnit, str] = {
    "nats": f"{UNFINISHED}: losses are summed costs of features, and the loss of dropping them together is larger; if"
    " the command was interrupted, add --resume",
    "mse": f"{UNFINISHED}: the simulated floor is missing; if the command was interrupted, add --resume",
}
"""Warning of a prediction that is reported before everything is computed, by the unit of the costs."""
UNFINISHED_BOOTSTRAP = 100
"""Resamples for the intervals of such a prediction."""


@neutral_torch_state()
def predict_floor(
    model: TeacherLike | None,
    sae: SaeLike | None = None,
    text: TextLike | None = None,
    *,
    widths: WidthsLike | None = None,
    layer: int | None = None,
    hook_name: str | None = None,
    cost: CostMethod = "fisher",
    n_samples: int = 1,
    n_tokens: int = 200_000,
    n_cost_tokens: int = 50_000,
    n_codes: int = 200_000,
    context_size: int | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    dtype: Dtype = "fp32",
    force: bool = False,
    steps: int = STEPS,
    head: bool = True,
    min_count: int = 1,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: ProgressCallback | None = None,
) -> FloorPrediction:
    """Measure a teacher's features and predict the loss floor of its students.

    Without an SAE, only the head floor and the expected loss of students are predicted, and what needs features is
    None. That is the case if no `sae`, `layer` or `hook_name` is given, no SAE is known for the teacher, `cost` is
    "fisher" and `head` is True; else an SAE is required.

    Sources: Sarkar and Deka 2026 (arXiv 2604.04037), Theorem 1; Scherlis et al. 2022, section 2; Elhage et al. 2022.

    Args:
        model: teacher, see `measure`.
        sae: SAE, see `measure`; if None, the one that is known for the teacher.
        text: text, see `measure`.
        widths: [width] student widths in dimensions, integers; shares of the teacher's width if None.
        layer: see `measure`.
        hook_name: see `measure`.
        cost: how the cost of removing a feature is measured, see `measure`: "fisher" or "ablation" in nats per token,
            "energy" in squared error.
        n_samples: outputs that "fisher" samples from the teacher at each position.
        n_tokens: tokens of the text to read.
        n_cost_tokens: number of tokens on which costs in nats are measured, about; see `measure`.
        n_codes: number of tokens, on average, whose SAE codes are kept to train bottleneck students on.
        context_size: tokens per sequence; that of the SAE's training if None.
        batch_size: sequences per batch.
        device: torch device of what is loaded here. Models and SAEs in memory stay where they are.
        dtype: dtype of a teacher that is loaded here, "fp32" or "bf16".
        force: go on with an SAE that does not fit the activations, see `measure`.
        steps: training steps of the bottleneck students for `simulated`; 0 trains none. The logits of `bound` are
            trained for a fifth of these steps.
        head: whether to compute `bound`, the head floor, if losses are in nats; see `head_floor`.
        min_count: a feature is alive if it fired on at least this many tokens.
        seed: seed of the resampling, of the training, and of the choice of the held-out text.
        checkpoint: file for the unfinished measurement, see `measure`.
        resume: continue from `checkpoint`, see `measure`.
        progress: called after every batch of the measurement with the tokens read and the total.

    Returns:
        FloorPrediction: floors [width], in nats per token or in squared error; with an SAE a `FeatureFloorPrediction`.

    Raises:
        InputError: see `measure`, `floor_from_stats` and `head_floor`.

    Example:
        >>> floor = predict_floor("tiny-prose", widths=[16, 64], n_tokens=20_000)  # doctest: +SKIP
        >>> floor.critical_width, floor.width_for(max_loss=0.1)  # doctest: +SKIP
    """
    measuring = MeasureConfig(
        cost=cost, n_samples=n_samples, n_tokens=n_tokens, n_cost_tokens=n_cost_tokens, n_codes=n_codes, force=force
    )
    loading = LoadConfig(context_size=context_size, batch_size=batch_size, device=device, dtype=dtype)
    predicting = PredictConfig(steps=steps, head=head, min_count=min_count, seed=seed)
    names_no_sae = sae is None and layer is None and hook_name is None
    if names_no_sae and model is not None and head and cost == "fisher" and not _has_known_sae(model):
        without_sae = predict_without_sae(
            model,
            text,
            widths=widths,
            n_tokens=measuring.n_tokens,
            loading=loading,
            predicting=predicting,
            progress=progress,
        )
        return dataclasses.replace(without_sae, warnings=(NO_SAE_WARNING, *without_sae.warnings))
    (floor,) = predict_floors(
        model,
        [sae],
        text,
        layers=[layer],
        hook_name=hook_name,
        widths=widths,
        measuring=measuring,
        loading=loading,
        predicting=predicting,
        checkpoints=[None if checkpoint is None else Path(checkpoint)],
        resume=resume,
        progress=progress,
    )
    return floor


@neutral_torch_state()
def predict_floors(
    model: TeacherLike | None,
    saes: Sequence[SaeLike | None],
    text: TextLike | None = None,
    *,
    layers: Sequence[int | None] | None = None,
    hook_name: str | None = None,
    widths: WidthsLike | None = None,
    measuring: MeasureConfig | None = None,
    loading: LoadConfig | None = None,
    predicting: PredictConfig | None = None,
    checkpoints: Sequence[Path | None] | None = None,
    resume: bool = False,
    process_group: ProcessGroup = SINGLE_PROCESS,
    progress: ProgressCallback | None = None,
    progress_bar: ProgressBarFactory | None = None,
    on_unfinished: UnfinishedCallback | None = None,
) -> list[FeatureFloorPrediction]:
    """Predict floors from several SAEs, of one layer or of several, in one pass over the teacher.

    Sources: see `predict_floor`.

    Args:
        model: teacher, see `measure`.
        saes: SAEs, each as `measure` takes it, that were trained on a teacher loaded in the same way.
        text: text, see `measure`.
        layers: layer of each SAE; None takes the SAE's own.
        hook_name: see `predict_floor`.
        widths: see `predict_floor`.
        measuring: what is measured of each feature, and on how many tokens; `MeasureConfig()` if None.
        loading: how the teacher is loaded and the text is read; `LoadConfig()` if None.
        predicting: what is computed from the features; `PredictConfig()` if None.
        checkpoints: for each SAE a file for the unfinished measurement, or None.
        resume: see `predict_floor`.
        process_group: the processes that share the measurement; the first one predicts.
        progress: see `predict_floor`.
        progress_bar: makes a progress bar for each stage; `progress` is used for the measurement if both are given.
        on_unfinished: called with what can be predicted once the text has been read, and again with the head floor,
            while the rest is still being computed; not called if nothing is left to compute.

    Returns:
        One prediction per SAE; none in the processes after the first.

    Raises:
        InputError: see `measure` and `floor_from_stats`; or the SAEs cannot be measured together.

    Example:
        >>> few = MeasureConfig(n_tokens=20_000)  # doctest: +SKIP
        >>> floors = predict_floors("tiny-prose", ["tiny-prose-sae"], measuring=few)  # doctest: +SKIP
    """
    measuring, loading, predicting = (
        measuring or MeasureConfig(),
        loading or LoadConfig(),
        predicting or PredictConfig(),
    )
    sizes = None if widths is None else integer_widths(widths)
    make_bar = progress_bar or no_progress_bar
    with make_bar("tokens", "measuring") as measuring_progress:
        job = prepare_job(model, saes, text, loading, layers=layers, hook_name=hook_name)
        all_stats = measure_job(
            job,
            measuring,
            checkpoints=checkpoints,
            resume=resume,
            progress=progress or measuring_progress,
            process_group=process_group,
        )
    if not all_stats:  # only the first process predicts
        return []
    return _predict_measured_saes(job, all_stats, sizes, measuring, predicting, loading.device, make_bar, on_unfinished)


def _predict_measured_saes(
    job: MeasurementJob,
    all_stats: Sequence[FeatureStats],
    widths: Int64[np.ndarray, " width"] | None,
    measuring: MeasureConfig,
    predicting: PredictConfig,
    device: str,
    make_bar: ProgressBarFactory,
    on_unfinished: UnfinishedCallback | None,
) -> list[FeatureFloorPrediction]:
    """Predict the floors of all measured SAEs, and compute the head floor of their teacher once."""
    measures_losses = job.teacher is not None and measuring.cost != "energy"
    report = on_unfinished if predicting.steps or measures_losses else None
    unfinished = [_unfinished(stats, widths, predicting) for stats in all_stats] if report else []
    if report:
        report(unfinished)
    wants_head = predicting.head and measures_losses and predicting.steps > 0
    head, head_warnings = (
        _head_floor(job, measuring.n_tokens, widths, predicting, make_bar) if wants_head else (None, ())
    )
    if report and head is not None:
        report([dataclasses.replace(floor, head=head) for floor in unfinished])
    floors = [
        predict_measured(
            dataclasses.replace(job, saes=(attached,)),
            stats,
            widths,
            predicting,
            device=training_device(attached, device),
            make_bar=make_bar,
        )
        for attached, stats in zip(job.saes, all_stats, strict=True)
    ]
    warnings = [tuple(dict.fromkeys([*floor.warnings, *head_warnings])) for floor in floors]
    return [dataclasses.replace(floor, head=head, warnings=w) for floor, w in zip(floors, warnings, strict=True)]


def _unfinished(
    stats: FeatureStats, widths: Int64[np.ndarray, " width"] | None, predicting: PredictConfig
) -> FeatureFloorPrediction:
    """Return the prediction from the features' statistics alone, with a warning that the rest is missing."""
    floor = floor_from_stats(
        stats, widths, min_count=predicting.min_count, steps=0, n_bootstrap=UNFINISHED_BOOTSTRAP, seed=predicting.seed
    )
    return dataclasses.replace(floor, warnings=(UNFINISHED_WARNINGS[floor.unit], *floor.warnings))


def _has_known_sae(model: TeacherLike) -> bool:
    """Return whether SAELens's directory or this package has an SAE for a teacher."""
    name = lookup_name(model)
    return name is not None and bool(find_saes(name))


def _head_floor(
    job: MeasurementJob,
    n_tokens: int,
    widths: Int64[np.ndarray, " width"] | None,
    predicting: PredictConfig,
    make_bar: ProgressBarFactory,
) -> tuple[HeadFloor | None, tuple[str, ...]]:
    """Return (head floor of the teacher, its warnings); if it cannot be computed, (None, the reason).

    The rest of the prediction does not depend on it.
    """
    if predicting.steps < MIN_STEPS:
        return None, (f"the head floor was not computed: it needs at least {MIN_STEPS} steps",)
    stream = job.token_stream
    if stream.positions is not None or stream.excluded_ids:  # an SAE may read some tokens only, students read all
        stream = dataclasses.replace(stream, positions=None, excluded_ids=())
    try:
        head = head_floor_of_stream(
            stream,
            widths,
            steps=head_steps(predicting.steps),
            n_tokens=min(n_tokens, N_TOKENS),
            seed=predicting.seed,
            progress_bar=make_bar,
        )
    except InputError as error:
        return None, (f"the head floor was not computed: {error}",)
    return head, head.warnings
