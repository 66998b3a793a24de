"""Parts that all tables share."""

import math
from collections.abc import Iterable

from rich.console import Group
from rich.table import Table
from rich.text import Text


def plain_table(title: str | None = None) -> Table:
    """Return an empty table without borders. The title is text, not rich markup."""
    return Table(title=None if title is None else Text(title), title_justify="left", box=None, pad_edge=False)


def key_value_table(rows: Iterable[tuple[str, str]], title: str | None = None) -> Table:
    """Return a table of names in bold and their values. Values are text, not rich markup."""
    table = plain_table(title)
    table.show_header = False
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def warning_lines(warnings: Iterable[str]) -> Group:
    """Return one yellow line per warning."""
    return Group(*(Text(f"! {warning}", style="yellow") for warning in warnings))


def format_number(value: float, spec: str) -> str:
    """Format a number; an empty string for NaN."""
    return "" if math.isnan(value) else f"{value:{spec}}"
