"""Draw the figures of the toy experiments as SVG files.

    tl-floor toy --paper --out toy_paper.json && python benchmarks/toy_figures.py toy_paper.json benchmarks/figures

The figures: floor against width for four tasks, predicted against reached floors of all tasks, and g and d* against α.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from tl_distill_floor import capacity, critical_width
from tl_distill_floor.display.toy_views import toy_floor_figure


def predicted_against_reached_figure(results: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Return the predicted against the reached floors of several toy configurations; predictions of 0 are left out.

    Args:
        results: configurations, as `tl-floor toy --json` prints them.
    """
    figure = go.Figure()
    reached = np.concatenate([result["reached"] for result in results])
    for name in results[0]["predicted"]:
        predicted = np.concatenate([result["predicted"][name] for result in results])
        positive = predicted > 0
        figure.add_scatter(x=reached[positive], y=predicted[positive], mode="markers", marker={"size": 4}, name=name)
    ends = [float(reached.min()), float(reached.max())]
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": "black", "width": 1}, name="equal")
    figure.update_xaxes(type="log", title="reached (importance-weighted squared error)")
    figure.update_yaxes(type="log", title="predicted", range=np.log10([ends[0] / 3, ends[1] * 3]).tolist())
    figure.update_layout(title=f"{len(results)} toy configurations", template="plotly_white")
    return figure


def capacity_figure(
    alpha: Sequence[float], capacity: Sequence[float], critical_width: Sequence[float], n_features: int
) -> go.Figure:
    """Return the capacity function g(α) and the critical width d* against the sparsity α, on two axes.

    Args:
        alpha: sparsities.
        capacity: g at each sparsity, features per dimension.
        critical_width: d* at each sparsity, dimensions.
        n_features: the number of features that d* is for.
    """
    figure = go.Figure()
    figure.add_scatter(x=list(alpha), y=list(capacity), name="g(α), features per dimension")
    figure.add_scatter(x=list(alpha), y=list(critical_width), name=f"d* of {n_features:,} features", yaxis="y2")
    figure.update_layout(
        title="Theorem 1's capacity function and critical width",
        xaxis_title="sparsity α",
        yaxis={"title": "features per dimension", "type": "log"},
        yaxis2={"title": "dimensions", "overlaying": "y", "side": "right", "type": "log"},
        legend={"x": 0.05, "y": 0.05},
        template="plotly_white",
    )
    return figure


def main() -> None:
    """Write the figures into a directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    options.directory.mkdir(parents=True, exist_ok=True)
    figures = {"predicted_against_reached": predicted_against_reached_figure(results)}
    for result in results:
        if result["n_features"] == 80 and result["teacher_width"] == 20:
            figures[f"floor_against_width_{result['alpha']:g}"] = toy_floor_figure(result)
    alpha = 1.0 - np.geomspace(1e-4, 0.36, 60)
    g, d_star = [capacity(a) for a in alpha], [critical_width(28_700, a) for a in alpha]
    figures["capacity_against_sparsity"] = capacity_figure(alpha.tolist(), g, d_star, 28_700)
    for name, figure in figures.items():
        file = options.directory / f"{name}.svg"
        figure.write_image(file, width=700, height=450)
        print(file)


if __name__ == "__main__":
    main()
