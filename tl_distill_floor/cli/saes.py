"""`tl-floor saes`: list the SAEs that are known for a model."""

import dataclasses
from shlex import quote

from tl_distill_floor.cli.errors import report_errors
from tl_distill_floor.cli.options import DebugOption, JsonOption, LayerOption, ModelArgument
from tl_distill_floor.cli.output import print_json, print_result


@report_errors
def saes(
    model: ModelArgument,
    layer: LayerOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """List the SAEs that are known for a model."""
    from tl_distill_floor.display.floor_tables import saes_table
    from tl_distill_floor.sources.sae_directory import find_saes, raise_no_known_sae

    entries = find_saes(model, layer)
    if as_json:
        print_json([dataclasses.asdict(entry) for entry in entries])
    elif entries:
        print_result(saes_table(model, entries), f"Next: tl-floor measure {quote(model)} --sae SAE, with one of these")
    else:
        raise_no_known_sae(model, layer)
