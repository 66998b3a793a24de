"""Option `--promoted` of `tl-floor lost` and `tl-floor report`: compute the tokens that the shown features promote."""

from collections.abc import Sequence
from pathlib import Path

import typer

from tl_distill_floor.annotations import FormattedSae
from tl_distill_floor.cli.libraries import quiet_libraries
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction
from tl_distill_floor.storage.io_errors import COPY_ADVICE
from tl_distill_floor.storage.locks import lock_directory


def compute_and_save_promoted_tokens(
    run: Path, floor: FeatureFloorPrediction, features: Sequence[int], sae: str | FormattedSae | None = None
) -> FeatureFloorPrediction:
    """Add the tokens that some features promote to a prediction and its run directory.

    If the teacher or the SAE cannot be loaded, one line on stderr says so, and the prediction is returned unchanged.

    Args:
        run: run directory.
        floor: the prediction in it.
        features: indices in the SAE.
        sae: SAE that was measured; loaded by the name in the prediction if None.

    Raises:
        InputError: the directory cannot be written.
    """
    from tl_distill_floor.predicting.lost_features import promoted_by

    missing = [feature for feature in features if promoted_by(floor, feature) is None]
    if not missing:
        return floor
    with lock_directory(run, COPY_ADVICE), quiet_libraries():
        from tl_distill_floor.predicting.promoted_tokens import add_promoted_tokens

        try:
            completed = add_promoted_tokens(floor, missing, sae=sae)
        except InputError as error:
            reason = " ".join(str(error).split())
            typer.echo(
                f"tl-floor: the promoted tokens of {len(missing):,} features were not computed: {reason}; or call"
                " add_promoted_tokens in Python with the teacher and the SAE in memory",
                err=True,
            )
            return floor
        assert completed.promoted is not None
        completed.promoted.save(run)
    return completed
