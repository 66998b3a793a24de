"""Parts that all tables share."""

import copy
import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from tl_distill_floor.errors import name_options

GAP = 2
"""Spaces between two columns."""
FOLDED = 16
"""Characters at which a column that may be folded is broken within words."""
UNLIMITED = 1_000
"""Characters of a console that is wide enough for every cell."""


class ColumnWidths(NamedTuple):
    """Widths that a column may have, in characters."""

    natural: int
    """Nothing is broken."""
    numbers: int
    """Headings and names are broken at spaces, but no cell of a column of numbers is."""
    least: int
    """All cells are broken at spaces."""


class UncutTable(Table):
    """A table in which no word and no number is cut. Only names in columns with `overflow="fold"` are broken anywhere.

    Its title may be wider than its columns. If it is too wide for the console, headings and names are broken at spaces,
    then numbers with their intervals. If it is still too wide, its lines are longer than the console.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the title and the lines of the table."""
        if self.title:
            yield self.title
        shown = copy.copy(self)
        shown.title = None
        columns = [self._widths_of(console, options, column) for column in self.columns]
        gaps = GAP * (len(columns) - 1)
        widths = [column.natural for column in columns]
        if sum(widths) + gaps <= options.max_width:
            yield from Table.__rich_console__(shown, console, options)
            return
        for least in ([column.numbers for column in columns], [column.least for column in columns]):
            widths = shrink_widths(widths, least, options.max_width - gaps)
        shown.columns = [
            dataclasses.replace(column, width=width) for column, width in zip(self.columns, widths, strict=True)
        ]
        enough = options.update(max_width=max(options.max_width, sum(widths) + gaps))
        yield from Table.__rich_console__(shown, console, enough)

    def _widths_of(self, console: Console, options: ConsoleOptions, column: Column) -> ColumnWidths:
        if column.width is not None:
            return ColumnWidths(column.width, column.width, column.width)
        wide = options.update(max_width=UNLIMITED)
        heading = Measurement.get(console, wide, column.header if self.show_header else "")
        cells = [Measurement.get(console, wide, cell) for cell in column.cells]
        natural = max([heading.maximum, *(cell.maximum for cell in cells)])
        shortest = FOLDED if column.overflow == "fold" else natural
        least = max([heading.minimum, *(min(cell.minimum, shortest) for cell in cells)])
        numbers = max([heading.minimum, *(cell.maximum for cell in cells)]) if column.justify == "right" else least
        return ColumnWidths(natural, numbers, least)


def shrink_widths(widths: Sequence[int], least: Sequence[int], total: int) -> list[int]:
    """Return widths of columns that sum to at most a total, as far as their least widths allow.

    The widest column is shrunk first.

    Args:
        widths: width of each column, in characters.
        least: least width of each column.
        total: characters for all columns together.

    Example:
        >>> shrink_widths([20, 8, 5], least=[6, 8, 2], total=21)
        [8, 8, 5]
        >>> shrink_widths([20, 8, 5], least=[6, 8, 2], total=10)
        [6, 8, 2]
    """
    shrunk = list(widths)
    while sum(shrunk) > total and (shrinkable := [i for i, width in enumerate(shrunk) if width > least[i]]):
        shrunk[max(shrinkable, key=shrunk.__getitem__)] -= 1
    return shrunk


def plain_table(title: str | None = None, *, expand: bool = False) -> Table:
    """Return an empty table without borders. The title is text, not rich markup."""
    heading = None if title is None else Text(title)
    return UncutTable(title=heading, title_justify="left", box=None, pad_edge=False, expand=expand)


def key_value_table(rows: Iterable[tuple[str, str]], title: str | None = None) -> Table:
    """Return a table of names in bold and their values. Values are text, not rich markup."""
    table = plain_table(title)
    table.show_header = False
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def command_text(text: str, style: str = "") -> Text:
    """Return text with commands to copy, whose lines are not broken where the console ends."""
    return Text(text, style, no_wrap=True, overflow="ignore")


def warning_lines(warnings: Iterable[str]) -> Group:
    """Return one yellow line per warning."""
    return Group(*(Text(f"! {name_options(warning)}", style="yellow") for warning in warnings))


def format_share(share: float) -> str:
    """Return a share in percent with three significant digits."""
    return f"{100 * share:.3g}%"


def format_number(value: float, spec: str) -> str:
    """Format a number; an empty string for NaN."""
    return "" if math.isnan(value) else f"{value:{spec}}"
