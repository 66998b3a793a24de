"""Predict the students of a teacher from its head floor alone, without an SAE."""

from tl_distill_floor.annotations import ProgressCallback, TeacherLike, TextLike, WidthsLike
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.config import LoadConfig
from tl_distill_floor.predicting.config import PredictConfig
from tl_distill_floor.predicting.head_floor import N_TOKENS, head_floor, head_steps
from tl_distill_floor.predicting.progress import ProgressBarFactory
from tl_distill_floor.results.floor_prediction import FloorPrediction

MIN_STEPS = 8
"""Fewest training steps of a prediction of which the head floor's share is enough to train it."""


def predict_without_sae(
    model: TeacherLike,
    text: TextLike | None,
    *,
    widths: WidthsLike | None,
    n_tokens: int,
    loading: LoadConfig,
    predicting: PredictConfig,
    progress: ProgressCallback | None = None,
    progress_bar: ProgressBarFactory | None = None,
) -> FloorPrediction:
    """Predict the bound and the expected loss of students from the head floor; what needs features is None.

    Args:
        model: teacher, see `load_teacher`.
        text: text, see `load_text`; the embedded text if None.
        widths: [width] student widths in dimensions; shares of the teacher's width if None.
        n_tokens: tokens to read, at most.
        loading: how the teacher is loaded and the text is read.
        predicting: its `steps` are those of a prediction with an SAE, of which the head floor takes a fifth; and its
            `seed` is used.
        progress: see `head_floor`.
        progress_bar: see `head_floor`.

    Raises:
        InputError: there are fewer than 8 steps; or see `head_floor`.
    """
    if predicting.steps < MIN_STEPS:
        raise InputError(
            "without an SAE the prediction is that of the head floor, which is trained for a fifth of the steps and"
            f" needs at least {MIN_STEPS}; raise the steps, got {predicting.steps}"
        )
    head = head_floor(
        model,
        text,
        widths=widths,
        steps=head_steps(predicting.steps),
        n_tokens=min(n_tokens, N_TOKENS),
        context_size=loading.context_size,
        batch_size=loading.batch_size,
        device=loading.device,
        dtype=loading.dtype,
        seed=predicting.seed,
        progress=progress,
        progress_bar=progress_bar,
    )
    return FloorPrediction.from_head(head)
