"""Print a result: tables for people, JSON for programs."""

import json
from collections.abc import Iterable, Iterator

from rich.console import Console, Group, RenderableType
from rich.segment import Segment, Segments

from tl_distill_floor.display.escaping import escape_control
from tl_distill_floor.display.tables import command_text


def print_json(result: object) -> None:
    """Print one line of JSON; a number that is not known or not finite is null."""
    # Python writes NaN and Infinity, which other programs do not accept, and calls `parse_constant` for them.
    print(json.dumps(json.loads(json.dumps(result), parse_constant=lambda _name: None)))


def print_result(result: RenderableType, note: str | None = None) -> None:
    """Print a table or a sentence, and below it where the result is saved and what to type next.

    Names of models, files and classes are printed as they are, not as rich's markup or names of emoji; but their
    control characters are escaped. Lines have no spaces at their end.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    printed = result if note is None else Group(result, command_text(note, style="dim"))
    # The lines of a table may be longer than those of the terminal.
    console.print(Segments(_cleaned(console.render(printed))), end="", crop=False)


def _cleaned(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Yield the parts of rendered lines without control characters, and without the spaces that fill up a line."""
    for line in Segment.split_lines(segments):
        while line and not line[-1].text.strip(" "):
            line.pop()
        if line:
            line[-1] = Segment(line[-1].text.rstrip(" "), line[-1].style)
        yield from (Segment(escape_control(text), style) for text, style, _ in line)
        yield Segment.line()
