"""Print a result: tables for people, JSON for programs."""

import json

from rich.console import Console, RenderableType


def print_json(result: object) -> None:
    """Print one line of JSON."""
    print(json.dumps(result))


def print_result(result: RenderableType, note: str | None = None) -> None:
    """Print a table or a sentence, and below it where the result is saved and what to type next.

    Names of models and files are printed as they are, not as rich's markup.
    """
    console = Console(highlight=False, markup=False)
    console.print(result)
    if note is not None:
        console.print(note, style="dim")
