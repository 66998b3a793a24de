"""The sparse way of training a bottleneck against the dense one: rate of a step, and the floor.

    python benchmarks/simulation_speed.py                             # a step at Pythia-410M's shape, 1 minute
    python benchmarks/simulation_speed.py --run runs/tiny-prose       # floors of tiny-prose, 4 minutes

The shape: 32,768 features, width 1,024, 200 active features per token, whose rates fall as i^-½. The dense way is the
same hand-written slope on dense codes, with two products for the forward pass and three for the slopes. Both rates
include Adam. For the floors, `dense` decodes every feature on every token of a batch, which is the dense way's slope.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tl_distill_floor import FeatureStats
from tl_distill_floor.codes import Codes
from tl_distill_floor.sparse import quiet_sparse
from tl_distill_floor.theory import bottleneck
from tl_distill_floor.theory.bottleneck import Batch, Bottleneck, Columns
from tl_distill_floor.theory.simulation import BATCH, simulate


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--features", type=int, default=32_768)
    options.add_argument("--width", type=int, default=1024)
    options.add_argument("--l0", type=int, default=200)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--run", type=Path)
    given = options.parse_args()
    if given.run:
        floors(FeatureStats.load(given.run))
    else:
        rates(given.features, given.width, given.l0, given.rounds)


def rates(n_features: int, width: int, l0: int, rounds: int) -> None:
    random = np.random.default_rng(0)
    share = np.arange(1, n_features + 1) ** -0.5
    keys = np.log(share / share.sum()) + random.gumbel(size=(BATCH, n_features))
    dense = np.zeros((BATCH, n_features), dtype=np.float32)
    np.put_along_axis(dense, np.argpartition(-keys, l0, axis=1)[:, :l0], random.random((BATCH, l0)) + 0.5, axis=1)
    batch, x = Batch.of(Codes.from_dense(dense)), torch.from_numpy(dense)
    model = Bottleneck(torch.randn(n_features, width) * 0.5 / width**0.5, torch.full((n_features,), -0.1))
    weight = torch.ones(n_features)
    n_inactive = bottleneck.n_inactive(n_features)

    def sparse() -> Bottleneck:
        return bottleneck.slopes(model, batch, Columns.of(batch, n_features), weight, n_inactive)

    torch.testing.assert_close(
        bottleneck.slopes(model, batch, Columns.of(batch, n_features), weight, BATCH).W,
        dense_slopes(model, x, weight).W,
        rtol=1e-3,
        atol=1e-5,
    )
    pairs = [(timed(sparse, model), timed(lambda: dense_slopes(model, x, weight), model)) for _ in range(rounds)]
    ours, theirs = np.median(np.array(pairs), axis=0)
    print(f"{n_features} features, width {width}, L0 {l0}, {BATCH} tokens a step, {n_inactive} with inactive features")
    print(f"sparse {BATCH / ours:8,.0f} tokens/s   dense {BATCH / theirs:8,.0f} tokens/s   {theirs / ours:.2f} times")


def timed(slope: Callable[[], Bottleneck], model: Bottleneck) -> float:
    """Seconds of one slope and one step of Adam."""
    parameter = model.W.clone().requires_grad_()
    optimizer = torch.optim.Adam([parameter], lr=1e-3, fused=True)
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    started = time.perf_counter()
    parameter.grad = slope().W
    optimizer.step()
    return time.perf_counter() - started


@torch.no_grad()
def dense_slopes(model: Bottleneck, x: torch.Tensor, weight: torch.Tensor) -> Bottleneck:
    hidden = x @ model.W
    output = model.output(hidden)
    fired = output > 0
    error = output.sub_(x).mul_(weight * (2.0 / len(x))).mul_(fired)
    return Bottleneck(error.T @ hidden + x.T @ (error @ model.W), error.sum(0))


def floors(stats: FeatureStats) -> None:
    for width in (32, 128):
        for name, least, most in (("dense", BATCH, BATCH), ("256 tokens", 256, 256), ("64 tokens", 64, 64)):
            bottleneck.LEAST_INACTIVE, bottleneck.MOST_INACTIVE = least, most
            started = time.perf_counter()
            found = simulate(stats, np.array([width]), steps=1000)
            took = time.perf_counter() - started
            print(f"width {width}, inactive features on {name}: floor {found.floor[0, 0]:.2f}", end="")
            print(f" (after 1,000 steps {found.reached[0, 0]:.2f}), {took:.0f} s", flush=True)


if __name__ == "__main__":
    with quiet_sparse():
        main()
