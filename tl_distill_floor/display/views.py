"""The table and the figure of each record, by the name of its class.

`results.record_files.Displayable` finds this module by name, so that records do not import how they are displayed.
"""

from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go
from rich.console import RenderableType

from tl_distill_floor.display import (
    diagnosis_views,
    figures,
    floor_tables,
    head_views,
    lost_feature_views,
    measurement_views,
    plan_views,
    probe_views,
    sparse_probe_views,
    student_views,
    toy_views,
)
from tl_distill_floor.display.html import to_html
from tl_distill_floor.results.floor_prediction import FloorPrediction

TABLES: dict[str, Callable[[Any], RenderableType]] = {
    "Calibration": student_views.calibration_table,
    "Decodability": lambda model: probe_views.decodability_table([model]),
    "Diagnosis": diagnosis_views.diagnosis_table,
    "FeatureStats": measurement_views.stats_table,
    "FeatureFloorPrediction": floor_tables.floor_table,
    "FloorPrediction": head_views.prediction_table,
    "HeadFloor": lambda head: head_views.prediction_table(FloorPrediction.from_head(head)),
    "LostFeatures": lost_feature_views.lost_table,
    "OneFeature": lost_feature_views.feature_table,
    "Plan": plan_views.plan_table,
    "ProbeResult": probe_views.probe_table,
    "Probes": probe_views.probes_table,
    "Simulation": measurement_views.simulation_table,
    "SparseProbes": sparse_probe_views.sparse_probes_table,
    "StudentResult": lambda student: student_views.students_table([student]),
    "TailLoss": measurement_views.tail_loss_table,
    "ToyResult": lambda result: toy_views.toy_table(toy_views.toy_result_json(result)),
}
"""Function that returns the table of a record, by the name of its class."""
FIGURES: dict[str, Callable[[Any], go.Figure]] = {
    "Calibration": student_views.calibration_figure,
    "Decodability": lambda model: probe_views.decodability_figure([model]),
    "Diagnosis": diagnosis_views.diagnosis_figure,
    "FeatureStats": measurement_views.stats_figure,
    "FeatureFloorPrediction": figures.floor_figure,
    "FloorPrediction": head_views.prediction_figure,
    "HeadFloor": lambda head: head_views.prediction_figure(FloorPrediction.from_head(head)),
    "LostFeatures": lost_feature_views.lost_features_figure,
    "OneFeature": lost_feature_views.one_feature_figure,
    "Plan": plan_views.plan_figure,
    "ProbeResult": probe_views.probe_figure,
    "Probes": probe_views.retention_figure,
    "Simulation": measurement_views.simulation_figure,
    "SparseProbes": sparse_probe_views.sparse_probes_figure,
    "StudentResult": lambda student: student_views.learning_figure([student]),
    "TailLoss": measurement_views.tail_loss_figure,
    "ToyResult": lambda result: toy_views.toy_floor_figure(toy_views.toy_result_json(result)),
}
"""Function that returns the figure of a record, by the name of its class."""


def table_of(record: object) -> RenderableType:
    """Return a record as a table for the terminal.

    Raises:
        TypeError: records of this class have no table.
    """
    table: RenderableType = _lookup(TABLES, record, "table")(record)
    return table


def html_of(record: object) -> str:
    """Return a record as an HTML table, for notebooks.

    Raises:
        TypeError: records of this class have no table.
    """
    return to_html(table_of(record))


def figure_of(record: object) -> go.Figure:
    """Return a record as a plotly figure.

    Raises:
        TypeError: records of this class have no figure.
    """
    return _lookup(FIGURES, record, "figure")(record)


def _lookup(views: dict[str, Callable[[Any], Any]], record: object, kind: str) -> Callable[[Any], Any]:
    name = type(record).__name__
    if name not in views:
        raise TypeError(f"a record of type {name} has no {kind}")
    return views[name]
