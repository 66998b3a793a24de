"""The mixin by which a record shows itself; records do not import their views."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go

VIEWS = "tl_distill_floor.display.views"
"""The module that knows how each record looks, resolved by name as pandas resolves a plotting backend."""


class Displayable:
    """A record with a table in notebooks and a figure."""

    def plot(self) -> "go.Figure":
        """Return the record as a plotly figure."""
        figure: go.Figure = import_module(VIEWS).figure_of(self)
        return figure

    def _repr_html_(self) -> str:
        """Return the record as an HTML table, for notebooks."""
        html: str = import_module(VIEWS).html_of(self)
        return html
