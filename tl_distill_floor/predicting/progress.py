"""Count the steps of a training for a progress callback, and make progress bars for the stages of a prediction."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

from tl_distill_floor.annotations import ProgressCallback
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction

ProgressBarFactory: TypeAlias = Callable[[str, str], AbstractContextManager[ProgressCallback | None]]
"""Called with a unit and the name of a stage, such as "tokens" and "measuring"; returns a context manager that yields a
progress callback, or None."""
UnfinishedCallback: TypeAlias = Callable[[list[FeatureFloorPrediction]], None]
"""Called with predictions of which a part is still being computed."""
STEPS_PER_REPORT = 100
"""Training steps from one call of a progress callback to the next."""


def no_progress_bar(_unit: str, _stage: str) -> AbstractContextManager[None]:
    """Return a context manager that shows no progress.

    Example:
        >>> with no_progress_bar("tokens", "measuring") as progress:
        ...     print(progress)
        None
    """
    return nullcontext()


class StepCounter:
    """A count of training steps that calls a progress callback at every hundredth step and at the end."""

    def __init__(self, progress: ProgressCallback | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def step(self) -> None:
        """Count one step."""
        self.done = min(self.done + 1, self.total)
        if self.progress and (self.done % STEPS_PER_REPORT == 0 or self.done == self.total):
            self.progress(self.done, self.total)
