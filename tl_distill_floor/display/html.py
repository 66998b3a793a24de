"""What the terminal shows as HTML: tables, sentences and warnings, everything escaped."""

from html import escape

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tl_distill_floor.display.escaping import shown


def fragment(view: RenderableType) -> str:
    """A view of this package, made of tables and sentences, as HTML.

    Raises:
        TypeError: it holds something else.
    """
    if isinstance(view, Group):
        return "\n".join(fragment(part) for part in view.renderables)
    if isinstance(view, Table):
        return _table(view)
    if isinstance(view, str | Text):
        return _sentence(view)
    raise TypeError(f"no HTML for {type(view).__name__}")


def _sentence(text: str | Text) -> str:
    words = _plain(text)
    if not words.strip():
        return ""
    return f'<p class="warning">{escape(words)}</p>' if words.startswith("! ") else f"<p>{escape(words)}</p>"


def _table(table: Table) -> str:
    title = escape(_plain(table.title))
    caption = f"<caption>{title}</caption>" if title else ""
    numeric = [' class="number"' if column.justify == "right" else "" for column in table.columns]
    # A heading without words is no heading: a screen reader would read out nothing.
    heads = "".join(
        f'<th scope="col"{form}>{words}</th>' if words else f"<td{form}></td>"
        for form, words in zip(numeric, (escape(_plain(column.header)) for column in table.columns), strict=True)
    )
    rows = "".join(_row(row, numeric) for row in zip(*(column.cells for column in table.columns), strict=True))
    head = f"<thead><tr>{heads}</tr></thead>" if table.show_header else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{title or "Table"}">'
        f"<table>{caption}{head}<tbody>{rows}</tbody></table></div>"
    )


def _row(row: tuple[RenderableType, ...], numeric: list[str]) -> str:
    first, *others = map(_cell, row)
    cells = "".join(f"<td{form}>{words}</td>" for form, words in zip(numeric[1:], others, strict=True))
    head = f'<th scope="row"{numeric[0]}>{first}</th>' if first else "<td></td>"
    return f"<tr>{head}{cells}</tr>"


def _cell(cell: RenderableType) -> str:
    if isinstance(cell, Bar):
        return f'<meter aria-label="bar" min="0" max="{cell.size}" value="{cell.end}"></meter>'
    return escape(_plain(cell))


def _plain(cell: RenderableType | None) -> str:
    """The words of a cell, with signs for what could not be seen."""
    return shown(cell.plain if isinstance(cell, Text) else str(cell or ""))
