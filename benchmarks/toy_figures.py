"""The paper's figures of the toy model, as SVG.

    tl-floor toy --paper --out toy_paper.json && python benchmarks/toy_figures.py toy_paper.json benchmarks/figures

Floor against width of four tasks, predicted against reached over all of them, g and d* against α.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from tl_distill_floor import capacity, critical_width
from tl_distill_floor.display.figures import capacity_figure, predicted_against_reached_figure, toy_floor_figure


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("results", type=Path)
    options.add_argument("directory", type=Path)
    given = options.parse_args()
    results = json.loads(given.results.read_text())
    given.directory.mkdir(parents=True, exist_ok=True)
    figures = {"predicted_against_reached": predicted_against_reached_figure(results)}
    for result in results:
        if result["n_features"] == 80 and result["teacher_width"] == 20:
            figures[f"floor_against_width_{result['alpha']:g}"] = toy_floor_figure(result)
    alpha = 1.0 - np.geomspace(1e-4, 0.36, 60)
    g, d = [capacity(a) for a in alpha], [critical_width(28_700, a) for a in alpha]
    figures["capacity_against_sparsity"] = capacity_figure(alpha.tolist(), g, d, 28_700)
    for name, figure in figures.items():
        figure.write_image(given.directory / f"{name}.svg", width=700, height=450)
        print(given.directory / f"{name}.svg")


if __name__ == "__main__":
    main()
