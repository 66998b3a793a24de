"""One run, or several side by side, as one self-contained HTML page: nothing is loaded from anywhere."""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import unescape
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import RenderableType

from tl_distill_floor.display.comparison import compared_view
from tl_distill_floor.display.escaping import shown
from tl_distill_floor.display.figures import (
    capacities_figure,
    compared_floors_figure,
    costs_figure,
    critical_widths_figure,
    floor_figure,
    growth_figure,
)
from tl_distill_floor.display.floor_tables import measured_view, warnings_view, widths_view
from tl_distill_floor.display.html import fragment
from tl_distill_floor.display.lost_features import lost_head
from tl_distill_floor.display.probe_tables import probes_view
from tl_distill_floor.display.run_parts import RunParts
from tl_distill_floor.display.student_figures import (
    calibration_figure,
    decodability_figure,
    learning_figure,
    survival_figure,
)
from tl_distill_floor.display.student_tables import calibration_view, students_view
from tl_distill_floor.results.feature_stats import UNIT_IN_WORDS
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.lost_features import FeatureAt

if TYPE_CHECKING:
    import plotly.graph_objects as go

SCRIPT = """
"use strict";
// A figure is drawn when it comes near, or when the page is printed: a dozen at once take seconds.
const draw = (place) => {
  const data = document.querySelector(`script[data-plot="${place.id}"]`);
  if (place.dataset.drawn || !data) return;
  place.dataset.drawn = "yes";
  const figure = JSON.parse(data.textContent);
  const narrow = innerWidth < 640;
  if (narrow) figure.layout.legend = { orientation: "h", y: -0.3 };
  Plotly.newPlot(place, figure.data, figure.layout, { responsive: true, displaylogo: false, displayModeBar: !narrow });
};
const places = [...document.querySelectorAll(".plot")];
const near = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)),
  { rootMargin: "400px" },
);
places.forEach((place) => near.observe(place));
addEventListener("beforeprint", () => places.forEach(draw));
"""
CITE = """@article{sarkar2026geometric,
  title = {Geometric Limits of Knowledge Distillation: A Minimum-Width Theorem via Superposition Theory},
  author = {Sarkar and Deka},
  year = {2026},
  journal = {arXiv preprint arXiv:2604.04037}
}"""
DRAWN = {
    "floors": ("floors", "costs", "capacities"),
    "students": ("learning-curves", "predicted-and-reached"),
    "probes": ("survival", "decodability"),
    "lost": (),
    "method": ("growth",),
    "cite": (),
}
"""Which figures stand in which section."""


class Figure(NamedTuple):
    """A figure of the page."""

    anchor: str
    title: str
    data: Any
    """Its JSON, safe within a script element."""


class Feature(NamedTuple):
    """A lost feature of the page."""

    feature: int
    neuronpedia: str | None
    numbers: str
    contexts: tuple[tuple[str, str, str], ...]
    promoted: str


@dataclass(frozen=True)
class Section:
    """A part of the page: views that the terminal has too, figures, features."""

    anchor: str
    heading: str
    views: tuple[Any, ...] = ()
    figures: tuple[Figure, ...] = ()
    features: tuple[Feature, ...] = ()


def report_html(parts: RunParts) -> str:
    """The page of one run.

    Raises:
        ValueError: the run holds nothing at all.
    """
    floor = parts.floor
    if floor is None and not parts.students and parts.probes is None:
        raise ValueError(f"{parts.name} holds nothing to report")
    figures = figures_of(parts)
    sections = [
        dataclasses.replace(
            made, figures=_figures({name: figures[name] for name in DRAWN[made.anchor] if name in figures})
        )
        for made in (_floors(parts), _students(parts), _probes(parts), _lost(parts), _method(parts), _cite())
    ]
    return _page(f"What students of {shown(_teacher(parts))} can become", shown(verdict(parts)), sections)


def comparison_html(runs: Sequence[RunParts]) -> str:
    """The page of several runs beside one another.

    Raises:
        ValueError: fewer than two of them hold a prediction.
    """
    found = [run for run in runs if run.floor is not None]
    floors = [run.floor for run in found if run.floor is not None]
    if len(floors) < 2:
        raise ValueError("a comparison takes two runs that hold a prediction")
    labels = [run.name for run in found]
    figures = _figures(compared_figures(found))
    together = Section("compared", "Side by side", _views(compared_view(floors, labels)), figures)
    each = [_of_run(number, label, floor) for number, (label, floor) in enumerate(zip(labels, floors, strict=True))]
    needs = (f"{label} {floor.critical_width:,.0f}" for label, floor in zip(labels, floors, strict=True))
    words = f"By Theorem 1 the features need, in dimensions: {', '.join(needs)}."
    return _page(f"{' and '.join(map(shown, labels))} compared", shown(words), [together, *each, _cite()])


def compared_figures(runs: Sequence[RunParts]) -> "dict[str, go.Figure]":
    """The figures of several runs together, by name."""
    floors = [run.floor for run in runs if run.floor is not None]
    labels = [run.name for run in runs if run.floor is not None]
    return {"compared": compared_floors_figure(floors, labels), "widths": critical_widths_figure(floors, labels)}


def verdict(parts: RunParts) -> str:
    """What a reader in a hurry should know, in a sentence or two."""
    floor = parts.floor
    if floor is None:
        return "This run holds no prediction; what else lies in it follows."
    stats, middle = floor.stats, len(floor.widths) // 2
    width, unit = int(floor.widths[middle]), UNIT_IN_WORDS[floor.unit]
    low, high = floor.interval[middle]
    sure = f" (95 %: {low:.3g} to {high:.3g})" if high == high else ""
    words = (
        f"A student of {stats.model_name} that is {width:,} of {stats.d_model:,} dimensions wide is expected to lose"
        f" {floor.expected[middle]:.3g}{sure} {unit} at the least, and {len(floor.lost(width)):,} of"
        f" {floor.n_features:,} features; by Theorem 1 every feature has room from"
        f" {floor.critical_width:,.0f} dimensions on."
    )
    calibration = floor.calibration
    if calibration is None:
        return words + " No student was held against this prediction."
    return words + (
        f" Held against {len(calibration.widths)} trained students, {calibration.predictor} is off by"
        f" {calibration.loo_error:.0%} at a width that it was not fitted to (C = {calibration.slope:.3g}, R² ="
        f" {calibration.r2:.3f}); calibrated, width {width:,} loses {floor.calibrated_at(width).value:.3g} nats per"
        " token."
    )


def figures_of(parts: RunParts) -> "dict[str, go.Figure]":
    """Every figure that can be drawn of a run, by name."""
    floor, found = parts.floor, {}
    if floor is not None:
        found["floors"], found["costs"] = floor_figure(floor), costs_figure(floor)
        found["capacities"], found["growth"] = capacities_figure(floor), growth_figure(floor)
    if parts.students:
        found["learning-curves"] = learning_figure(parts.students)
    if floor is not None and floor.calibration is not None:
        found["predicted-and-reached"] = calibration_figure(floor.calibration)
    if parts.probes is not None:
        found["survival"] = survival_figure(parts.probes)
        if len(parts.probes.features) > 1:
            found["decodability"] = decodability_figure(parts.probes)
    return found


def _floors(parts: RunParts) -> Section:
    floor = parts.floor
    notes = [f"! Not read: {reason}" for reason in parts.absent]
    if floor is None:
        return Section("floors", "Loss floors", _views(*notes, _missing("prediction", "tl-floor measure")))
    return Section("floors", "Loss floors", _views(*notes, widths_view(floor), warnings_view(floor)))


def _students(parts: RunParts) -> Section:
    if not parts.students:
        return Section("students", "Students", _views(_missing("students", "tl-floor distill")))
    calibration = parts.floor and parts.floor.calibration
    fit = calibration_view(calibration) if calibration else "No line was fitted: tl-floor calibrate does."
    return Section("students", "Students", _views(students_view(list(parts.students)), fit))


def _probes(parts: RunParts) -> Section:
    if parts.probes is None:
        return Section("probes", "What survives", _views(_missing("probes", "tl-floor probe")))
    return Section("probes", "What survives", _views(probes_view(parts.probes)))


def _lost(parts: RunParts) -> Section:
    found = parts.lost
    if found is None:
        return Section("lost", "Lost features", _views("Not known without a prediction."))
    return Section("lost", "Lost features", _views(lost_head(found)), features=tuple(map(_feature, found.shown)))


def _method(parts: RunParts) -> Section:
    floor = parts.floor
    if floor is None:
        return Section("method", "How it was measured", _views("Not known without a prediction."))
    settings = ", ".join(f"{name} {value}" for name, value in floor.stats.settings.items())
    return Section("method", "How it was measured", _views(measured_view(floor), f"Settings: {settings}."))


def _cite() -> Section:
    from markupsafe import Markup

    words = "The theorem is Sarkar and Deka's (2026), arXiv:2604.04037. This page was made by tl-distill-floor."
    return Section("cite", "How to cite", (*_views(words), Markup("<pre>{}</pre>").format(CITE)))


def _of_run(number: int, label: str, floor: FloorPrediction) -> Section:
    views = _views(measured_view(floor), widths_view(floor), warnings_view(floor))
    figures = _figures({"floors": floor_figure(floor), "costs": costs_figure(floor)}, f"{number}-")
    return Section(f"run{number}", f"{shown(label)}: {shown(floor.stats.model_name)}", views, figures)


def _feature(at: FeatureAt) -> Feature:
    contexts = tuple((shown(context.before), shown(context.peak), shown(context.after)) for context in at.contexts)
    numbers = (
        f"rank {at.rank:,} by cost ({at.cost:.3g}), fires on {at.firing_rate:.3%} of the tokens,"
        f" {at.lost_share:.0%} of it lost"
    )
    return Feature(at.feature, at.neuronpedia, numbers, contexts, " · ".join(map(shown, at.promoted)))


def _views(*views: RenderableType) -> tuple[Any, ...]:
    from markupsafe import Markup

    return tuple(Markup(fragment(view)) for view in views)  # noqa: S704 - fragment escapes all that it is given


def _teacher(parts: RunParts) -> str:
    if parts.floor is not None:
        return parts.floor.stats.model_name
    return parts.students[0].teacher if parts.students else parts.probes.teacher if parts.probes else parts.name


def _missing(what: str, command: str) -> str:
    return f"This run holds no {what}. {command} makes them."


def _figures(figures: "dict[str, go.Figure]", prefix: str = "") -> tuple[Figure, ...]:
    from markupsafe import Markup

    return tuple(
        Figure(f"figure-{prefix}{name}", shown(unescape(str(figure.layout.title.text))), Markup(_json(figure)))  # noqa: S704
        for name, figure in figures.items()
    )


def _json(figure: "go.Figure") -> str:
    """A figure's JSON, which no text in it can end early within a script element."""
    found = figure.to_plotly_json()
    found["layout"] = dict(found["layout"]) | {"title": None, "margin": {"t": 30, "r": 20}}
    from plotly.utils import PlotlyJSONEncoder

    text = json.dumps(found, cls=PlotlyJSONEncoder)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _page(title: str, words: str, sections: Sequence[Section]) -> str:
    from jinja2 import Environment
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("tl_distill_floor") / "assets" / "report.html.j2").read_text("utf-8"))
    plotly = get_plotlyjs()
    # Only these two scripts may run, whatever else the page should come to hold.
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in (plotly, SCRIPT))
    scripts = {"plotly": Markup(plotly), "script": Markup(SCRIPT)}  # noqa: S704
    page: str = template.render(title=title, verdict=words, sections=sections, hashes=Markup(hashes), **scripts)  # noqa: S704
    return page


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
