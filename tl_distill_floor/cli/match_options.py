"""Hook matching of `tl-floor distill`: options to student specifications."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tl_distill_floor.annotations import FormattedSae
from tl_distill_floor.cli.options import MatchedActivation
from tl_distill_floor.cli.run_directory import load_floor
from tl_distill_floor.distilling.students.layers import student_layer
from tl_distill_floor.distilling.training.config import StudentSpec
from tl_distill_floor.distilling.training.matching import Match, kept_reconstruction
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.hooks import resid_post
from tl_distill_floor.measuring.reloading import check_measured_teacher
from tl_distill_floor.sources.saes import load_sae
from tl_distill_floor.sources.teacher import Teacher


def match_hook_points(
    specs: Sequence[StudentSpec],
    teacher: Teacher,
    directory: Path,
    *,
    match: MatchedActivation,
    layer: int | None,
    weight: float | None,
    has_weights: bool,
    sae: str | FormattedSae | None,
    device: str,
) -> list[StudentSpec]:
    """Add what each student has to match.

    Args:
        specs: the students.
        teacher: the teacher.
        directory: run directory, whose prediction says which features each width keeps.
        match: "none", the full activation, or the part that the kept features reconstruct.
        layer: layer of the teacher; the layer of the prediction if None.
        weight: weight of the matching loss; the default of `Match` if None.
        has_weights: whether the weights of the teacher are loaded, so that it can be compared with the measured one.
        sae: SAE of "kept".
        device: torch device of the SAE.

    Raises:
        InputError: there is no prediction, or it was measured at another hook point, with another SAE or of another
            teacher.
    """
    if match == "none":
        return list(specs)
    target_of = None
    if match == "activation":
        hook_name = load_floor(directory).stats.hook_name if layer is None else resid_post(layer)
    else:
        floor = load_floor(directory)
        hook_name = floor.stats.hook_name
        if layer is not None and resid_post(layer) != hook_name:
            raise InputError(f"the prediction is for {hook_name}; leave out --match-layer")
        if has_weights:
            check_measured_teacher(floor.stats, teacher)
        loaded = load_sae(sae, model_name=floor.stats.model_name, device=device)
        target_of = partial(kept_reconstruction, floor, loaded.sae)
    n_layers = int(teacher.model.cfg.n_layers)
    match_weight = Match.weight if weight is None else weight
    return [
        dataclasses.replace(
            spec,
            match=Match(hook_name, student_layer(hook_name, n_layers, spec.depth or n_layers), match_weight),
            target=None if target_of is None else target_of(spec.width),
        )
        for spec in specs
    ]
