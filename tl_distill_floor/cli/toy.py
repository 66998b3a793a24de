"""The work of `tl-floor toy`: train toy models, and set what they reached beside what was predicted."""

import json
from typing import Any

from rich.console import Console

from tl_distill_floor.display.toy_tables import score_view, toy_view


def show_toys(results: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(results))
        return
    console = Console()
    for result in results if len(results) <= 4 else []:
        console.print(toy_view(result))
    if len(results) > 1:
        console.print(score_view(results))
