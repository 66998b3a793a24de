"""`tl-floor lost`: show the features that a student loses, or one feature."""

from typing import Annotated

import typer

from tl_distill_floor.cli.errors import report_errors
from tl_distill_floor.cli.options import (
    DebugOption,
    JsonOption,
    PromotedOption,
    RunArgument,
    SaeFormatOption,
    with_format,
)
from tl_distill_floor.cli.output import print_json, print_result
from tl_distill_floor.cli.unused_options import refuse_unused


@report_errors
def lost(
    ctx: typer.Context,
    run: RunArgument,
    width: Annotated[
        int | None,
        typer.Option(help="Width of the student.", metavar="N", show_default="the narrowest of the prediction"),
    ] = None,
    feature: Annotated[
        int | None,
        typer.Option(help="Show one feature, by its index in the SAE, at every width of the prediction.", metavar="N"),
    ] = None,
    top: Annotated[int, typer.Option(help="Number of lost features to describe.", metavar="N")] = 20,
    promoted: PromotedOption = False,
    sae: Annotated[
        str | None,
        typer.Option(
            help="SAE that --promoted loads, given as in tl-floor measure.",
            show_default="the measured one",
        ),
    ] = None,
    sae_format: SaeFormatOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Show which features a student loses and what they fire on, or at which widths one feature survives."""
    from tl_distill_floor.cli.promoted_option import compute_and_save_promoted_tokens
    from tl_distill_floor.cli.run_directory import load_floor
    from tl_distill_floor.display.lost_feature_views import feature_json, feature_table, lost_json, lost_table
    from tl_distill_floor.predicting.lost_features import lost_features, one_feature

    if not promoted:
        refuse_unused(ctx, ("sae", "sae_format"), "without --promoted, which loads the SAE", "add --promoted")
    if feature is not None:
        refuse_unused(ctx, ["top"], "with --feature, which shows one feature")
    source = with_format(sae, sae_format)
    floor = load_floor(run)
    if feature is None:
        features = lost_features(floor, width, top)
        if promoted:
            floor = compute_and_save_promoted_tokens(run, floor, features.lost[:top], source)
            features = lost_features(floor, width, top)
        if as_json:
            print_json(lost_json(features))
        else:
            print_result(lost_table(features))
    else:
        described = one_feature(floor, feature, width)
        if promoted:
            floor = compute_and_save_promoted_tokens(run, floor, [feature], source)
            described = one_feature(floor, feature, width)
        if as_json:
            print_json(feature_json(described))
        else:
            print_result(feature_table(described))
