"""Measure how often the 95 % interval of a learning curve's floor covers the true floor.

    python benchmarks/learning_curves.py             # coverage of each kind of simulated training
    python benchmarks/learning_curves.py --schedules # coverage with other learning-rate schedules
    python benchmarks/learning_curves.py --atlas     # fits to a part of real trainings, and to the full ones
    python benchmarks/learning_curves.py --students  # floors of the students in students_tiny_prose.json

A simulated training follows L(t) = L∞ + A · t^-b, where t is the sum of the learning rates up to a step. Each kind adds
to the one before: "plain" has a constant learning rate; "warm-up" a linear rise over the first 2 % of the steps;
"decay" a linear fall to 0 over the last fifth, and an excess loss in proportion to the learning rate, which the decay
removes; "averaged" the loss of a power-law average over the steps. Points, exponents (0.2 to 1.2) and relative noise (0
to 1 %) are those of the trainings that `distill` runs. With other schedules, a training is as "averaged", at the
learning rates of its settings.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from tl_distill_floor.distilling.training.config import DistillConfig
from tl_distill_floor.distilling.training.learning_rates import fit_student
from tl_distill_floor.theory.learning_curve import LearningCurveFit, fit_learning_curve

Kind = Literal["plain", "warm-up", "decay", "averaged"]
N_STEPS, AVERAGE_POWER, TOKENS_PER_STEP = 800, 16, 4096.0
SCHEDULES: dict[str, dict[str, Any]] = {
    "decay over the last 0.2": {"decay": 0.2},
    "decay over the last 0.35": {"decay": 0.35},
    "decay over the last 0.5": {"decay": 0.5},
    "decay over all steps": {"decay": 1.0},
    "cosine": {"schedule": "cosine"},
    "cosine, warm-up over 0.2": {"schedule": "cosine", "warmup": 0.2},
}
FLOORS = (0.0, 0.02, 0.05, 0.2, 0.5, 1.0)
NOISES = (0.0, 5e-4, 1e-3, 3e-3, 1e-2)
STUDENTS = Path(__file__).parent / "students_tiny_prose.json"
ATLAS = Path(__file__).parent / "atlas"
SHARES = (0.25, 1 / 3, 0.5, 0.7)
"""Shares of real trainings that are fitted."""


class Curve(NamedTuple):
    """A simulated learning curve."""

    n_tokens: np.ndarray
    losses: np.ndarray
    floor: float
    """The loss at which the training would saturate."""


def simulate(kind: Kind, seed: int) -> Curve:
    """Simulate the learning curve of one training.

    Args:
        kind: what the training has; see the module's docstring.
        seed: seed of the floor, the amplitude, the exponent, the excess loss and the noise.
    """
    return _simulate(lambda *parameters: training_losses(kind, *parameters), seed)


def simulate_schedule(config: DistillConfig, seed: int) -> Curve:
    """Simulate the learning curve of one training with the schedule of some settings.

    Args:
        config: the settings.
        seed: see `simulate`.
    """
    lr = np.array([config.lr_at(step, N_STEPS) for step in range(N_STEPS)]) / config.lr

    def losses(floor: float, amplitude: float, exponent: float, excess: float) -> np.ndarray:
        return _averaged((floor + amplitude * (np.cumsum(lr) / N_STEPS) ** -exponent) * (1 + excess * lr))

    return _simulate(losses, seed)


def _simulate(training: Callable[[float, float, float, float], np.ndarray], seed: int) -> Curve:
    """Simulate a curve, given its losses without noise as a function of floor, amplitude, exponent and excess loss."""
    random = np.random.default_rng(seed)
    floor, exponent = float(random.choice(FLOORS)), random.uniform(0.2, 1.2)
    amplitude = 10 ** random.uniform(-1.5, 0.3) * max(floor, 0.3)
    noise, excess = random.choice(NOISES), random.uniform(0, 0.05)
    losses = training(floor, amplitude, exponent, excess)
    points = np.array(DistillConfig().evaluation_steps(N_STEPS))
    noisy = losses[points - 1] * (1 + noise * random.standard_normal(len(points)))
    return Curve(points * TOKENS_PER_STEP, noisy, floor)


def training_losses(kind: Kind, floor: float, amplitude: float, exponent: float, excess: float) -> np.ndarray:
    """Return the losses after each step of a training, without noise.

    Args:
        kind: what the training has; see the module's docstring.
        floor: loss at which it would saturate.
        amplitude: what is left above the floor at the end of a training at a constant learning rate.
        exponent: exponent of the power law.
        excess: share of the loss that the learning rate adds, if there is a decay.
    """
    steps, level = np.arange(1, N_STEPS + 1), get_args(Kind).index(kind)
    lr = np.ones(N_STEPS)
    if level >= 1:
        lr *= np.minimum(1.0, steps / (0.02 * N_STEPS))
    if level >= 2:
        lr *= np.minimum(1.0, (N_STEPS - steps + 1) / (0.2 * N_STEPS))
    losses: np.ndarray = floor + amplitude * (np.cumsum(lr) / N_STEPS) ** -exponent
    if level >= 2:
        losses = losses * (1 + excess * lr)
    return _averaged(losses) if level >= 3 else losses


def _averaged(losses: np.ndarray) -> np.ndarray:
    """Return the losses of a power-law average of the weights over the steps."""
    averaged = losses.copy()
    for i in range(1, N_STEPS):
        share = 1 - (1 - 1 / (i + 1)) ** (AVERAGE_POWER + 1)
        averaged[i] = averaged[i - 1] * (1 - share) + losses[i] * share
    return averaged


def print_coverage(n_curves: int) -> None:
    """Print how often the interval covers the true floor, for each kind of curve."""
    print("| kind | covered | floor known | covered, of those | width of the interval, of the last loss |")
    print("| --- | --- | --- | --- | --- |")
    for kind in get_args(Kind):
        curves = [simulate(kind, seed) for seed in range(n_curves)]
        print(f"| {kind} | {_coverage(curves, [fit_learning_curve(c.n_tokens, c.losses) for c in curves])} |")


def print_schedules(n_curves: int) -> None:
    """Print how often the interval covers the true floor for each schedule, and how often without its rates."""
    print("| schedule | covered | floor known | covered, of those | width of the interval | covered without rates |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, settings in SCHEDULES.items():
        config = DistillConfig(n_tokens=int(N_STEPS * TOKENS_PER_STEP), **settings)
        curves = [simulate_schedule(config, seed) for seed in range(n_curves)]
        fits = [fit_student(config, curve.n_tokens.astype(int).tolist(), curve.losses.tolist()) for curve in curves]
        without = [fit_learning_curve(curve.n_tokens, curve.losses) for curve in curves]
        covered = np.mean([_covers(curve, fit) for curve, fit in zip(curves, without, strict=True)])
        print(f"| {name} | {_coverage(curves, fits)} | {covered:.1%} |", flush=True)


def _covers(curve: Curve, fit: LearningCurveFit) -> bool:
    """Return whether the interval of the fit alone holds the true floor."""
    return fit.fit_interval[0] - 1e-9 <= curve.floor <= fit.fit_interval[1] + 1e-9


def _coverage(curves: Sequence[Curve], fits: Sequence[LearningCurveFit]) -> str:
    """Return the cells of a table on how often the intervals hold the true floors."""
    covered = np.array([_covers(curve, fit) for curve, fit in zip(curves, fits, strict=True)])
    last = np.array([curve.losses[-1] for curve in curves])
    known = np.array([fit.interval != (0.0, loss) for fit, loss in zip(fits, last, strict=True)])
    widths = np.array([fit.fit_interval[1] - fit.fit_interval[0] for fit in fits]) / last
    return f"{covered.mean():.1%} | {known.mean():.0%} | {covered[known].mean():.1%} | {np.median(widths[known]):.2f}"


class PartialFit(NamedTuple):
    """The fit to a part of a real training, next to that to all of it."""

    teacher: str
    fit: LearningCurveFit
    last: float
    """Last loss of the part."""
    full: float
    """L∞ by the fit to the full training."""

    @property
    def left_ratio(self) -> float:
        """What is left after the part by the fit to all, relative to what the fit to the part says."""
        return (self.last - self.full) / (self.last - self.fit.floor)


def partial_fits(share: float) -> list[PartialFit]:
    """Fit a share of the training of each student of the atlas, and of one more teacher, where both L∞ are known.

    Args:
        share: share of the tokens.
    """
    fits = []
    for file in sorted([*ATLAS.glob("*.json"), *(ATLAS / "new").glob("*.json")]):
        row = json.loads(file.read_text(encoding="utf-8"))
        for student in row["students"]:
            tokens, losses = np.array(student["tokens"], dtype=float), np.array(student["losses"])
            used = tokens <= share * tokens[-1] + 1
            part, full = fit_learning_curve(tokens[used], losses[used]), fit_learning_curve(tokens, losses)
            if part.amplitude and full.amplitude:
                fits.append(PartialFit(row["teacher"], part, float(losses[used][-1]), full.floor))
    return fits


def print_partial_fits() -> None:
    """Print how often the intervals of fits to a part of real trainings hold L∞ of the full ones."""
    print("| part | curves | in the interval of the fit | in the full interval | widths | left, full : part (95 %) |")
    print("| --- | --- | --- | --- | --- | --- |")
    for share in SHARES:
        fits = partial_fits(share)
        cells = []
        for intervals in ([p.fit.fit_interval for p in fits], [p.fit.interval for p in fits]):
            held = [low <= p.full <= high for p, (low, high) in zip(fits, intervals, strict=True)]
            widths = [(high - low) / p.last for p, (low, high) in zip(fits, intervals, strict=True)]
            cells.append((f"{np.mean(held):.0%}", f"{np.median(widths):.2f}"))
        low, median, high = np.quantile([p.left_ratio for p in fits], [0.025, 0.5, 0.975])
        (of_fit, narrow), (of_all, wide) = cells
        ratio = f"{median:.2f} ({low:.2f} to {high:.2f})"
        print(f"| {share:.2f} | {len(fits)} | {of_fit} | {of_all} | {narrow}, {wide} | {ratio} |")
    third_and_half = [fit for share in SHARES[1:3] for fit in partial_fits(share)]
    print("\n| teacher left out | factor of 95 % of the others | fits | in the interval with it |")
    print("| --- | --- | --- | --- |")
    for teacher in sorted({fit.teacher for fit in third_and_half}):
        others = [abs(np.log(fit.left_ratio)) for fit in third_and_half if fit.teacher != teacher]
        factor, own = float(np.exp(np.quantile(others, 0.95))), [f for f in third_and_half if f.teacher == teacher]
        held = sum(1 / factor <= fit.left_ratio <= factor or _in_fit_interval(fit) for fit in own)
        print(f"| {teacher} | {factor:.2f} | {len(own)} | {held} |")


def _in_fit_interval(partial: PartialFit) -> bool:
    """Return whether L∞ of the full training is in the interval of the fit to the part."""
    low, high = partial.fit.fit_interval
    return low <= partial.full <= high


def print_students() -> None:
    """Print the stored floor of every student, and the floor that the fit gives now."""
    print("| student | reached | stored floor (95 %), status | floor now (95 %), status |")
    print("| --- | --- | --- | --- |")
    for student in json.loads(STUDENTS.read_text())["students"]:
        fit = fit_learning_curve(student["tokens"], student["losses"])
        old, (low, high) = student["interval"], fit.interval
        known = fit.interval != (0.0, student["losses"][-1])
        now = f"{fit.floor:.4f} ({low:.4f} to {high:.4f})" if known else "not known"
        before = f"{student['floor']:.4f} ({old[0]:.4f} to {old[1]:.4f}), {student['status']}"
        print(f"| {student['name']} | {student['losses'][-1]:.4f} | {before} | {now}, {fit.status} |")


def main() -> None:
    """Parse the options and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--students", action="store_true", help="print the floors of the stored students")
    parser.add_argument("--schedules", action="store_true", help="measure other learning-rate schedules")
    parser.add_argument("--atlas", action="store_true", help="fit parts of real trainings")
    parser.add_argument("--curves", type=int, default=1000, help="simulated curves of each kind")
    arguments = parser.parse_args()
    if arguments.students:
        print_students()
    elif arguments.atlas:
        print_partial_fits()
    elif arguments.schedules:
        print_schedules(arguments.curves)
    else:
        print_coverage(arguments.curves)


if __name__ == "__main__":
    main()
