"""Measure the loss-capacity curve r(C; p) at small widths, with toy models of equally important features.

    python benchmarks/loss_capacity_curve.py --out curve.json            # 1.7 hours on one core; resumes from --out
    python benchmarks/loss_capacity_curve.py --out curve.json --ship     # write the package's data file from --out

In a toy model of width d, K equally important features have a capacity of C = d / K dimensions each. r is the floor per
feature divided by the feature's cost I · E[x²]. Every point is measured with several seeds, whose mean and minimum are
stored.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

import tl_distill_floor
from tl_distill_floor.predicting import toy
from tl_distill_floor.storage.atomic import write_atomically
from tl_distill_floor.theory.loss_capacity import CAPACITIES, lower_hull, nothing_kept, scalar_denoiser

WIDTHS = (1, 2, 3, 4, 6, 8, 16, 32)
RATES = (0.9, 0.7, 0.5, 0.35, 0.2, 0.1, 0.05, 0.02, 0.01, 5e-3, 2e-3, 1e-3, 3e-4, 1e-4, 1e-5)
FEATURES_PER_DIMENSION = (1.125, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5, 6, 8, 11, 16, 23, 32, 45, 64, 90, 128)
MAX_FEATURES = 768
NEARLY_NOTHING_KEPT = 0.97
"""Share of the loss of keeping no feature above which more features are not tried."""
WIDE_LIMIT = 1e9
"""Width under which the data file stores the scalar denoiser, the limit for many dimensions."""
DATA_FILE = Path(tl_distill_floor.__file__).parent / "assets" / "loss_capacity_curve.json"


def main() -> None:
    """Measure the points that are missing in --out, or write the package's data file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("loss_capacity_curve.json"))
    parser.add_argument("--ship", action="store_true", help="write the package's data file from --out")
    options = parser.parse_args()
    points = json.loads(options.out.read_text()) if options.out.exists() else []
    if options.ship:
        write_data_file(points)
    else:
        measure_missing_points(points, options.out)


def measure_missing_points(points: list[dict[str, float]], out: Path) -> None:
    """Measure every point of the grid that is not in `points`, and write `out` after each."""
    by_key = {(point["width"], point["rate"], point["n_features"]): point for point in points}
    for width in WIDTHS:
        feature_counts = sorted({round(width * ratio) for ratio in FEATURES_PER_DIMENSION} - set(range(width + 1)))
        for rate in RATES:
            for n_features in feature_counts:
                if n_features > MAX_FEATURES:
                    break
                key = (width, rate, n_features)
                if key not in by_key:
                    by_key[key] = measure_point(width, rate, n_features)
                    points.append(by_key[key])
                    write_atomically(out, json.dumps(points).encode())
                    print(points[-1], flush=True)
                if by_key[key]["mean"] > NEARLY_NOTHING_KEPT * (1 - 0.75 * rate):
                    break


def measure_point(width: int, rate: float, n_features: int) -> dict[str, float]:
    """Train toy models with several seeds and return one point of the curve."""
    started = time.perf_counter()
    result = toy.train(
        n_features,
        1.0 - rate,
        [width],
        importance=np.ones(n_features),
        n_seeds=6 if n_features <= 128 else 3 if n_features <= 384 else 2,
        batch_size=int(np.clip(n_features / max(1.0, rate * n_features), 256, 1024)),
        learning_rate=0.01,
        seed=width,
    )
    r = result.floor[0] / result.cost.sum()
    return {
        "width": width,
        "rate": rate,
        "n_features": n_features,
        "mean": float(r.mean()),
        "least": float(r.min()),
        "kept": float(result.kept.mean()),
        "seconds": round(time.perf_counter() - started, 2),
    }


def write_data_file(points: list[dict[str, float]]) -> None:
    """Write the lower hull for every width and rate, the limit for many dimensions, and p = 1.

    At p = 1 only linear codes are possible.
    """
    rates = sorted(RATES)
    measured_widths = sorted({point["width"] for point in points})
    curves = [[_hull(points, width, rate) for rate in rates] for width in measured_widths]
    curves.append([_limit(rate) for rate in rates])
    for curves_of_width in curves:
        curves_of_width.append(((1.0 - CAPACITIES) * nothing_kept(1.0)).tolist())
    rounded = [[[float(f"{value:.4g}") for value in curve] for curve in of_width] for of_width in curves]
    data = {"capacities": CAPACITIES.tolist(), "widths": [*measured_widths, WIDE_LIMIT], "rates": [*rates, 1.0]}
    write_atomically(DATA_FILE, json.dumps(data | {"r": rounded}).encode())
    print(f"{len(points)} points, measured in {sum(p['seconds'] for p in points):.0f} s; wrote {DATA_FILE.name}")


def _hull(points: list[dict[str, float]], width: float, rate: float) -> list[float]:
    """Return the lower hull of one width's and rate's points at the capacities of the data file."""
    losses = {width / p["n_features"]: p["least"] for p in points if (p["width"], p["rate"]) == (width, rate)}
    losses |= {0.0: float(nothing_kept(rate)), 1.0: 0.0}
    capacities = np.array(sorted(losses))
    return lower_hull(capacities, np.array([losses[capacity] for capacity in capacities])).tolist()


def _limit(rate: float) -> list[float]:
    """Return the lower hull of the scalar denoiser, which is the curve for many dimensions."""
    return lower_hull(CAPACITIES, np.array([scalar_denoiser(c, rate) for c in CAPACITIES[:-1]] + [0.0])).tolist()


if __name__ == "__main__":
    main()
