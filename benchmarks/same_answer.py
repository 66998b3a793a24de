"""Repeat one measurement with other batch sizes, threads and precisions, and print how much its results change.

    python benchmarks/same_answer.py [--tokens 65536] [--cost fisher]

Every row is compared with the first: one thread, fp32, batches of 16 sequences. The columns F and codes are differences
of counts. The other columns are relative differences: alpha is that of 1 − α, and a floor is the largest over the
widths, relative to at least a thousandth of the largest floor.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from tl_distill_floor import FloorPrediction, load_sae, load_teacher, predict_floor
from tl_distill_floor.cli.libraries import quiet_libraries
from tl_distill_floor.cli.memory import tune_allocator

WIDTHS = [16, 32, 64, 128]


class Variant(NamedTuple):
    """Settings that should not change the result."""

    name: str
    batch_size: int = 16
    n_threads: int = 1
    dtype: str = "fp32"


VARIANTS = (
    Variant("first"), Variant("again"), Variant("batches of 4", batch_size=4), Variant("batches of 32", batch_size=32),
    Variant("2 threads", n_threads=2), Variant("teacher in bf16", dtype="bf16"),
    Variant("all in float64", dtype="float64"),
)  # fmt: skip


def main() -> None:
    """Predict floors with every variant, and print the differences from the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--cost", default="fisher")
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    tune_allocator()
    first: FloorPrediction | None = None
    print(f"{'':16}{'F':>8}{'alpha':>12}{'d*':>12}{'theorem':>12}{'independent':>12}{'features':>12}{'codes':>10}")
    for variant in VARIANTS:
        with quiet_libraries():
            floor = predict_with(variant, options.tokens, options.cost, options.steps)
        first = first or floor
        print(f"{variant.name:16}" + "".join(format_differences(first, floor)), flush=True)


def predict_with(variant: Variant, n_tokens: int, cost: str, steps: int) -> FloorPrediction:
    """Predict the floors of the embedded teacher with the settings of a variant."""
    torch.set_num_threads(variant.n_threads)
    teacher = load_teacher("tiny-prose", dtype="bf16" if variant.dtype == "bf16" else "fp32").model
    sae = load_sae(None, model_name="tiny-prose").sae
    if variant.dtype == "float64":
        teacher, sae = teacher.double(), sae.double()
    return predict_floor(
        teacher, sae, widths=WIDTHS, cost=cost, n_tokens=n_tokens, steps=steps, batch_size=variant.batch_size
    )


def format_differences(first: FloorPrediction, other: FloorPrediction) -> list[str]:
    """Return the cells of a row: differences of counts, and relative differences of the other numbers."""

    def relative_difference(value: Callable[[FloorPrediction], Any]) -> str:
        expected, actual = np.atleast_1d(value(first)), np.atleast_1d(value(other))
        error = np.abs(actual - expected) / np.maximum(np.abs(expected), 1e-3 * np.abs(expected).max())
        return f"{error.max():>12.1e}"

    codes = [floor.stats.codes for floor in (first, other)]
    n_codes = [0 if each is None else len(each.value) for each in codes]
    return [
        f"{other.n_features - first.n_features:>+8d}",
        relative_difference(lambda floor: 1.0 - floor.alpha),
        relative_difference(lambda floor: floor.critical_width),
        relative_difference(lambda floor: floor.theorem),
        relative_difference(lambda floor: floor.independent),
        relative_difference(lambda floor: floor.feature_floor),
        f"{n_codes[1] - n_codes[0]:>+10,d}",
    ]


if __name__ == "__main__":
    main()
