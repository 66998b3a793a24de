"""What changes when nothing should: the same measurement again, in other batches, threads and precisions.

    python benchmarks/same_answer.py [--tokens 65536] [--cost fisher]

Every line is held against the first: one thread, fp32, batches of 16 sequences. F and the codes are differences, alpha
is that of 1 − α, and floors are the largest relative one of the widths, of at least a thousandth of the largest floor.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from tl_distill_floor import FloorPrediction, load_sae, load_teacher, predict_floor
from tl_distill_floor.cli.measuring import quiet_libraries

WIDTHS = [16, 32, 64, 128]


class Way(NamedTuple):
    """How it is measured."""

    name: str
    batch_size: int = 16
    threads: int = 1
    dtype: str = "fp32"


WAYS = (
    Way("first"), Way("again"), Way("batches of 4", batch_size=4), Way("batches of 32", batch_size=32),
    Way("2 threads", threads=2), Way("teacher in bf16", dtype="bf16"), Way("all in float64", dtype="float64"),
)  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tokens", type=int, default=65_536)
    options.add_argument("--cost", default="fisher")
    options.add_argument("--steps", type=int, default=400)
    given = options.parse_args()
    first: FloorPrediction | None = None
    print(f"{'':16}{'F':>8}{'alpha':>12}{'d*':>12}{'theorem':>12}{'independent':>12}{'expected':>12}{'codes':>10}")
    for way in WAYS:
        with quiet_libraries():
            found = measured(way, given.tokens, given.cost, given.steps)
        first = first or found
        print(f"{way.name:16}" + "".join(differences(first, found)), flush=True)


def measured(way: Way, tokens: int, cost: str, steps: int) -> FloorPrediction:
    torch.set_num_threads(way.threads)
    teacher = load_teacher("tiny-prose", dtype="bf16" if way.dtype == "bf16" else "fp32").model
    sae = load_sae(None, model_name="tiny-prose").sae
    if way.dtype == "float64":
        teacher, sae = teacher.double(), sae.double()
    return predict_floor(
        teacher, sae, widths=WIDTHS, cost=cost, n_tokens=tokens, steps=steps, batch_size=way.batch_size
    )


def differences(first: FloorPrediction, found: FloorPrediction) -> list[str]:
    """How far each number is from the first one's: F as it is, the others relative."""

    def relative(of: Callable[[FloorPrediction], Any]) -> str:
        one, other = np.atleast_1d(of(first)), np.atleast_1d(of(found))
        error = np.abs(other - one) / np.maximum(np.abs(one), 1e-3 * np.abs(one).max())
        return f"{error.max():>12.1e}"

    entries = [floor.stats.codes for floor in (first, found)]
    n_entries = [0 if codes is None else len(codes.value) for codes in entries]
    return [
        f"{found.n_features - first.n_features:>+8d}",
        relative(lambda f: 1.0 - f.alpha),
        relative(lambda f: f.critical_width),
        relative(lambda f: f.theorem),
        relative(lambda f: f.independent),
        relative(lambda f: f.expected),
        f"{n_entries[1] - n_entries[0]:>+10,d}",
    ]


if __name__ == "__main__":
    main()
