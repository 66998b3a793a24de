"""Print a result: tables for people, JSON for programs."""

import json

from rich.console import Console, RenderableType


def print_json(result: object) -> None:
    """Print one line of JSON; a number that is not known or not finite is null."""
    # Python writes NaN and Infinity, which other programs do not accept, and calls `parse_constant` for them.
    print(json.dumps(json.loads(json.dumps(result), parse_constant=lambda _name: None)))


def print_result(result: RenderableType, note: str | None = None) -> None:
    """Print a table or a sentence, and below it where the result is saved and what to type next.

    Names of models and files are printed as they are, not as rich's markup or names of emoji.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(result)
    if note is not None:
        console.print(note, style="dim")
