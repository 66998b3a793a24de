"""How each record looks: as a table for the terminal and notebooks, and as a figure."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from tl_distill_floor.display.floor_tables import floor_view
from tl_distill_floor.display.html import fragment
from tl_distill_floor.display.probe_tables import probe_view, probes_view
from tl_distill_floor.display.student_tables import calibration_view, plan_view, students_view
from tl_distill_floor.results.calibration import Calibration
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.plan import Plan
from tl_distill_floor.results.probes import ProbeResult, Probes
from tl_distill_floor.results.student import StudentResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

TABLES: dict[type, Callable[[Any], RenderableType]] = {
    Calibration: calibration_view,
    FloorPrediction: floor_view,
    Plan: plan_view,
    ProbeResult: probe_view,
    Probes: probes_view,
    StudentResult: lambda student: students_view([student]),
}


def table_of(record: object) -> RenderableType:
    """Return a record as a table for the terminal."""
    return TABLES[type(record)](record)


def html_of(record: object) -> str:
    """Return a record as an HTML table."""
    return fragment(table_of(record))


def figure_of(record: object) -> "go.Figure":
    """Return a record as a plotly figure."""
    from tl_distill_floor.display import figures, student_figures

    drawn: dict[type, Callable[[Any], go.Figure]] = {
        Calibration: student_figures.calibration_figure,
        FloorPrediction: figures.floor_figure,
        Probes: student_figures.survival_figure,
        StudentResult: lambda student: student_figures.learning_figure([student]),
    }
    return drawn[type(record)](record)
