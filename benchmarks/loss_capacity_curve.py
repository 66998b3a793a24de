"""Measure the loss-capacity curve r(C; p) at small widths, with toy models of equally important features.

    python benchmarks/loss_capacity_curve.py --out curve.json            # 1.7 hours on one core; goes on
    python benchmarks/loss_capacity_curve.py --out curve.json --ship     # into the package's data file

K equally important features in d dimensions get C = d / K of a dimension each; r is the floor per feature over its cost
I · E[x²]. Every point is measured with several seeds, of which both the mean and the least are kept.
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
MOST_FEATURES = 768
MANY_DIMENSIONS = 1e9
"""Stands for the limit of the scalar denoiser."""
DATA_FILE = Path(tl_distill_floor.__file__).parent / "assets" / "loss_capacity_curve.json"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=Path("loss_capacity_curve.json"))
    options.add_argument("--ship", action="store_true", help="write the package's data file from --out")
    given = options.parse_args()
    found = json.loads(given.out.read_text()) if given.out.exists() else []
    if given.ship:
        ship(found)
        return
    known = {(point["width"], point["rate"], point["n_features"]) for point in found}
    for width in WIDTHS:
        for rate in RATES:
            for n_features in sorted({round(width * r) for r in FEATURES_PER_DIMENSION} - set(range(width + 1))):
                if n_features > MOST_FEATURES:
                    break
                if (width, rate, n_features) not in known:
                    found.append(measured(width, rate, n_features))
                    write_atomically(given.out, json.dumps(found).encode())
                    print(found[-1], flush=True)
                at = next(p for p in found if (p["width"], p["rate"], p["n_features"]) == (width, rate, n_features))
                if at["mean"] > 0.97 * (1 - 0.75 * rate):
                    break  # more features than this width can make anything of


def measured(width: int, rate: float, n_features: int) -> dict[str, float]:
    """One point: r over the seeds, and what it cost to measure."""
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


def ship(points: list[dict[str, float]]) -> None:
    """Write the hull of every width and rate, the denoiser's limit, and p = 1, where only linear codes are left."""
    rates = sorted(RATES)
    measured_widths = sorted({point["width"] for point in points})
    r = [[_hull_of(points, width, rate) for rate in rates] for width in measured_widths]
    r.append([_limit(rate) for rate in rates])
    for of_width in r:
        of_width.append(((1.0 - CAPACITIES) * nothing_kept(1.0)).tolist())
    rounded = [[[float(f"{value:.4g}") for value in row] for row in of_width] for of_width in r]
    data = {"capacities": CAPACITIES.tolist(), "widths": [*measured_widths, MANY_DIMENSIONS], "rates": [*rates, 1.0]}
    write_atomically(DATA_FILE, json.dumps(data | {"r": rounded}).encode())
    print(f"{len(points)} points in {sum(p['seconds'] for p in points):.0f} s; wrote {DATA_FILE.name}")


def _hull_of(points: list[dict[str, float]], width: int, rate: float) -> list[float]:
    found = {width / p["n_features"]: p["least"] for p in points if (p["width"], p["rate"]) == (width, rate)}
    found |= {0.0: float(nothing_kept(rate)), 1.0: 0.0}
    capacities = np.array(sorted(found))
    return lower_hull(capacities, np.array([found[c] for c in capacities])).tolist()


def _limit(rate: float) -> list[float]:
    return lower_hull(CAPACITIES, np.array([scalar_denoiser(c, rate) for c in CAPACITIES[:-1]] + [0.0])).tolist()


if __name__ == "__main__":
    main()
