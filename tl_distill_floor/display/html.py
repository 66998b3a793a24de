"""Turn the terminal's tables and sentences into HTML, with all text escaped."""

from html import escape

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tl_distill_floor.display.escaping import escape_control


def to_html(view: RenderableType) -> str:
    """Return a table of this package as HTML.

    Args:
        view: rich tables and text, or a group of them.

    Returns:
        HTML without scripts or styles. A sentence that begins with "! " gets the class "warning".

    Raises:
        TypeError: the view contains another kind of rich object.

    Example:
        >>> to_html(Text("a < b"))
        '<p>a &lt; b</p>'
    """
    if isinstance(view, Group):
        return "\n".join(to_html(part) for part in view.renderables)
    if isinstance(view, Table):
        return _table(view)
    if isinstance(view, str | Text):
        return _paragraph(view)
    raise TypeError(f"{type(view).__name__} cannot be converted to HTML")


def _paragraph(text: str | Text) -> str:
    content = _plain(text)
    if not content.strip():
        return ""
    return f'<p class="warning">{escape(content)}</p>' if content.startswith("! ") else f"<p>{escape(content)}</p>"


def _table(table: Table) -> str:
    title = escape(_plain(table.title))
    caption = f"<caption>{title}</caption>" if title else ""
    attributes = [' class="number"' if column.justify == "right" else "" for column in table.columns]
    # An empty heading becomes a <td>: a screen reader would announce an empty <th>.
    headings = "".join(
        f'<th scope="col"{attribute}>{heading}</th>' if heading else f"<td{attribute}></td>"
        for attribute, heading in zip(
            attributes, (escape(_plain(column.header)) for column in table.columns), strict=True
        )
    )
    rows = "".join(_row(row, attributes) for row in zip(*(column.cells for column in table.columns), strict=True))
    head = f"<thead><tr>{headings}</tr></thead>" if table.show_header else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{title or "Table"}">'
        f"<table>{caption}{head}<tbody>{rows}</tbody></table></div>"
    )


def _row(row: tuple[RenderableType, ...], attributes: list[str]) -> str:
    first, *others = map(_cell, row)
    cells = "".join(f"<td{attribute}>{cell}</td>" for attribute, cell in zip(attributes[1:], others, strict=True))
    heading = f'<th scope="row"{attributes[0]}>{first}</th>' if first else "<td></td>"
    return f"<tr>{heading}{cells}</tr>"


def _cell(cell: RenderableType) -> str:
    if isinstance(cell, Bar):
        return f'<meter aria-label="bar" min="0" max="{cell.size}" value="{cell.end}"></meter>'
    return escape(_plain(cell))


def _plain(cell: RenderableType | None) -> str:
    """Return the text of a cell, with control characters escaped."""
    return escape_control(cell.plain if isinstance(cell, Text) else str(cell or ""))
