"""Render sections as one self-contained HTML page, which loads nothing from elsewhere."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from importlib.resources import files
from typing import NamedTuple

import plotly.graph_objects as go
from jinja2 import Environment
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from plotly.utils import PlotlyJSONEncoder
from rich.console import RenderableType

from tl_distill_floor.display.escaping import escape_control
from tl_distill_floor.display.html import to_html

DRAW_SCRIPT = """
"use strict";
// On a narrow screen the legend is below the plot, one line per curve, and the buttons of the axis are above it.
const arrangeForNarrowScreen = (plot, { data, layout }) => {
  const legendHeight = 20 * data.filter((curve) => curve.name && curve.showlegend !== false).length;
  plot.style.height = `${360 + legendHeight}px`;
  layout.font = { ...layout.font, size: 10 };
  layout.margin = { ...layout.margin, t: 60, b: 60 + legendHeight };
  layout.legend = { orientation: "h", yref: "container", y: 0, yanchor: "bottom" };
  for (const menu of layout.updatemenus ?? []) Object.assign(menu, { x: 0, y: 1.1 });
};
// A figure is drawn when it comes into view or when the page is printed: a dozen at once would take seconds.
const draw = (plot) => {
  const data = document.querySelector(`script[data-plot="${plot.id}"]`);
  if (plot.dataset.drawn || !data) return;
  plot.dataset.drawn = "yes";
  const figure = JSON.parse(data.textContent);
  const narrow = innerWidth < 640;
  if (narrow) arrangeForNarrowScreen(plot, figure);
  Plotly.newPlot(plot, figure.data, figure.layout, { responsive: true, displaylogo: false, displayModeBar: !narrow });
};
const plots = [...document.querySelectorAll(".plot")];
const observer = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)),
  { rootMargin: "400px" },
);
plots.forEach((plot) => observer.observe(plot));
addEventListener("beforeprint", () => plots.forEach(draw));
"""
"""The page's own script, next to that of plotly."""


class PageFigure(NamedTuple):
    """A figure of the page."""

    anchor: str
    title: str
    data: Markup
    """JSON of the figure, safe inside a script element."""


class PageFeature(NamedTuple):
    """A lost feature of the page."""

    feature: int
    neuronpedia: str | None
    numbers: str
    contexts: tuple[tuple[str, str, str], ...]
    """Text (before, peak, after) of each context."""
    promoted: str


@dataclass(frozen=True)
class Section:
    """A section of the page: tables that the terminal shows too, figures, and features."""

    anchor: str
    heading: str
    views: tuple[Markup, ...] = ()
    figures: tuple[PageFigure, ...] = ()
    features: tuple[PageFeature, ...] = ()


def page_views(*views: RenderableType) -> tuple[Markup, ...]:
    """Convert tables and sentences to HTML."""
    return tuple(Markup(to_html(view)) for view in views)  # noqa: S704 - to_html escapes its input


def page_figures(figures: Mapping[str, go.Figure], prefix: str = "") -> tuple[PageFigure, ...]:
    """Convert named figures for the page; `prefix` makes their anchors unique."""
    return tuple(
        PageFigure(f"figure-{prefix}{name}", _title_of(figure), Markup(_script_json(figure)))  # noqa: S704
        for name, figure in figures.items()
    )


def render_page(title: str, summary: str, sections: Sequence[Section]) -> str:
    """Render the page.

    A content security policy allows only the page's own two scripts, whatever else the page contains.

    Args:
        title: heading of the page.
        summary: sentence or two below the heading.
        sections: the sections in their order.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("tl_distill_floor") / "assets" / "report.html.j2").read_text("utf-8"))
    plotly_script = get_plotlyjs()
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in (plotly_script, DRAW_SCRIPT))
    page: str = template.render(
        title=escape_control(title),
        summary=escape_control(summary),
        sections=sections,
        hashes=Markup(hashes),  # noqa: S704
        plotly=Markup(plotly_script),  # noqa: S704
        script=Markup(DRAW_SCRIPT),  # noqa: S704
    )
    return page


def _title_of(figure: go.Figure) -> str:
    return escape_control(unescape(str(figure.layout.title.text)))


def _script_json(figure: go.Figure) -> str:
    """Return a figure's JSON in which no text can end a script element."""
    content = figure.to_plotly_json()
    content["layout"] = dict(content["layout"]) | {"title": None, "margin": {"t": 30, "r": 20}}
    text = json.dumps(content, cls=PlotlyJSONEncoder)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
