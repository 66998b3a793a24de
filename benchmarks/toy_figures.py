"""Draw the figures of the toy experiments as SVG files.

    tl-floor toy --paper --out toy_paper.json && python benchmarks/toy_figures.py toy_paper.json benchmarks/figures

The figures: floor against width for four tasks, predicted against reached floors of all tasks, and g and d* against α.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from tl_distill_floor import capacity, critical_width
from tl_distill_floor.display.toy_views import capacity_figure, predicted_against_reached_figure, toy_floor_figure


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
