"""The mixin that displays a record. Records do not import how they are displayed."""

import dataclasses
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go

VIEWS = "tl_distill_floor.display.views"
"""Module with the table and the figure of each record, imported by name as pandas imports a plotting backend."""


class Displayable:
    """A dataclass with a table in notebooks and a figure."""

    def __getstate__(self) -> dict[str, object]:
        """Return the fields alone: what was computed from them and kept may hold functions, which pickle refuses."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    def plot(self) -> "go.Figure":
        """Return the record as a plotly figure.

        Example:
            >>> floor.plot().show()  # doctest: +SKIP
        """
        figure: go.Figure = import_module(VIEWS).figure_of(self)
        return figure

    def _repr_html_(self) -> str:
        """Return the record as an HTML table, for notebooks."""
        html: str = import_module(VIEWS).html_of(self)
        return html
