"""Measure how often `diagnose` gives the right verdict.

    python benchmarks/diagnose.py            # simulated trainings with known ends
    python benchmarks/diagnose.py --students # the atlas's students, cut at a third of their training

A simulated student reaches a loss of 0.05 to 3 nats, of which 1 % to 90 % is left to gain (both log-uniform). Its
learning curve is of a kind of `learning_curves.py`, with the exponents and the noise there, or of one of five more:
"two rates" is the sum of a fast power law (exponents 0.8 to 1.5) and a slow one (0.2 to 0.6); "training log" is a plain
curve of 2,000 points with noise of 3 %, as trainers log them. Of schedules that decay over all steps, "linear, logged"
and "cosine, logged" have the learning rate in their log, and "cosine" has not. The expected loss scatters around the
loss at which the student would saturate as the atlas's teachers do (a standard deviation of 0.3 of the logarithm), and
the bound is 2.2 to 10 times lower. Two more situations are "stalled", where the student would saturate at 1.2 to 4
times the upper end of the 95 % interval, and "wrong loss", where the curve is multiplied by a number that brings its
end to 1 % to 90 % of the bound.

The right verdict is "under-trained" if more than a tenth of the last loss (without noise) is left, otherwise
"capacity-limited", or "stalled above the expected loss" if that is the situation; and "below what the width allows" for
a wrong loss.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from learning_curves import N_STEPS, NOISES, training_losses
from learning_curves import Kind as ConstantKind
from scipy.optimize import brentq

from tl_distill_floor.annotations import Verdict
from tl_distill_floor.distilling.planning.diagnose import UNDER_TRAINED_SHARE, diagnose
from tl_distill_floor.distilling.training.config import DistillConfig
from tl_distill_floor.results.diagnosis import Diagnosis
from tl_distill_floor.results.expected_loss import expected_loss_fit
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.head_floor import HeadFloor
from tl_distill_floor.sources.learning_curves import LearningCurve

Kind = Literal[
    "plain", "warm-up", "decay", "averaged", "two rates", "training log", "linear, logged", "cosine, logged", "cosine"
]
Situation = Literal["as expected", "stalled", "wrong loss"]
REACHED, LEFT_AT_END = (0.05, 3.0), (0.01, 0.9)
TEACHERS_SPREAD, KNOWN_SHARE = 0.3, 0.45
WIDTH, TEACHER_WIDTH, VOCABULARY = 64, 256, 4096
N_TOKENS, N_LOGGED, LOG_NOISE = 3e6, 2000, 0.03
ATLAS = Path(__file__).parent / "atlas"
SHARE_OF_TRAINING = 1 / 3


class Simulated(NamedTuple):
    """A simulated student and the right verdict."""

    curve: LearningCurve
    floor: FloorPrediction
    left: float
    """Share of the last loss that more tokens would remove."""
    end: float
    """Loss at which the training would saturate, nats per token."""
    verdict: Verdict
    tokens_for_half: float
    """More tokens, at the highest learning rate, after which half of what is left is gained."""


class Training(NamedTuple):
    """A simulated learning curve."""

    tokens: np.ndarray
    losses: np.ndarray
    rates: tuple[float, ...] | None
    """Learning rate at each point; None if it is not logged."""
    reached: float
    """Last loss without noise."""
    tokens_for_half: float
    """More tokens, at the highest learning rate, after which half of what is left is gained."""


def simulate(kind: Kind, situation: Situation, seed: int) -> Simulated:
    """Simulate a student.

    Args:
        kind: what its training has; see the module's docstring.
        situation: how its loss compares with what its width lets expect.
        seed: seed of everything that is random.
    """
    random = np.random.default_rng([seed, get_args(Kind).index(kind), get_args(Situation).index(situation)])
    reached, left = 10 ** random.uniform(*np.log10(REACHED)), 10 ** random.uniform(*np.log10(LEFT_AT_END))
    end = reached * (1 - left)
    training = _train(kind, end, reached * left, random)
    losses, reached = training.losses, training.reached
    left = 1 - end / reached
    verdict: Verdict = "under-trained" if left > UNDER_TRAINED_SHARE else "capacity-limited"
    expected = end * math.exp(TEACHERS_SPREAD * random.standard_normal())
    if situation == "stalled":
        expected *= end / (_prediction(expected, 0.0).expected_at(WIDTH).high * random.uniform(1.2, 4.0))
        verdict = "stalled above the expected loss" if verdict == "capacity-limited" else verdict
    bound = min(end, expected) / 10 ** random.uniform(math.log10(2.2), 1.0)
    if situation == "wrong loss":
        scale, verdict = bound / reached * 10 ** random.uniform(-2.0, math.log10(0.9)), "below what the width allows"
        losses, end = losses * scale, end * scale
    curve = LearningCurve(
        tuple(training.tokens.tolist()), tuple(losses.tolist()), width=WIDTH, learning_rates=training.rates
    )
    return Simulated(curve, _prediction(expected, bound), left, end, verdict, training.tokens_for_half)


def _train(kind: Kind, end: float, amplitude: float, random: np.random.Generator) -> Training:
    """Simulate a training that would saturate at `end`, and has `amplitude` left."""
    exponent, noise, excess = random.uniform(0.2, 1.2), random.choice(NOISES), random.uniform(0, 0.05)
    points, rates, progress = np.array(DistillConfig().evaluation_steps(N_STEPS)), None, 1.0
    shares, half = points / N_STEPS, 2 ** (1 / exponent)
    if kind == "training log":
        shares, noise = np.arange(1, N_LOGGED + 1) / N_LOGGED, LOG_NOISE
        losses = end + amplitude * shares**-exponent
    elif kind == "two rates":
        mix, fast, slow = random.uniform(0.2, 0.8), random.uniform(0.8, 1.5), random.uniform(0.2, 0.6)
        losses = end + amplitude * (mix * shares**-fast + (1 - mix) * shares**-slow)
        half = brentq(lambda factor: mix * factor**-fast + (1 - mix) * factor**-slow - 0.5, 1.0, 1e3)
    elif kind in get_args(ConstantKind):
        losses = training_losses(kind, end, amplitude, exponent, excess)[points - 1]
    else:
        steps = np.arange(N_STEPS) / N_STEPS
        lr = 1 - steps if kind.startswith("linear") else (1 + np.cos(np.pi * steps)) / 2
        progress = lr.mean()
        trained = np.cumsum(lr) / lr.sum()
        losses = ((end + amplitude * trained**-exponent) * (1 + excess * lr))[points - 1]
        rates = tuple(lr[points - 1].tolist()) if kind.endswith("logged") else None
    noisy = losses * (1 + noise * random.standard_normal(len(losses)))
    return Training(shares * N_TOKENS, noisy, rates, float(losses[-1]), (half - 1) * progress * N_TOKENS)


def _prediction(expected: float, bound: float) -> FloorPrediction:
    """Return a prediction with a given expected loss and a given bound."""
    intercept, slope, of_share = expected_loss_fit("encoded", KNOWN_SHARE).fit.coefficients
    encoded = math.exp((math.log(expected) - intercept - of_share * math.log(KNOWN_SHARE)) / slope)
    bounds = {
        "floor": (bound,),
        "standard_error": (0.02 * bound,),
        "half_steps": (1.03 * bound,),
        "encoded": (encoded,),
    }
    steps = {"steps": 200, "n_train_tokens": 180_000, "n_heldout_tokens": 8192}
    head = HeadFloor(
        "simulated", "simulated", TEACHER_WIDTH, VOCABULARY, (WIDTH,), **bounds, **steps, known_share=KNOWN_SHARE
    )
    return FloorPrediction.from_head(head)


def print_verdicts(n_curves: int, first_seed: int) -> None:
    """Print how often the verdict is right, for each kind of curve and each situation."""
    print("| situation | kind | right | not known | wrong | end in its 95 % interval | error of what is left | half |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    confusion: Counter[tuple[str, str]] = Counter()
    for situation in get_args(Situation):
        for kind in get_args(Kind):
            students = [simulate(kind, situation, seed) for seed in range(first_seed, first_seed + n_curves)]
            judged = [(student, diagnose(student.curve, student.floor)) for student in students]
            confusion.update((student.verdict, diagnosis.verdict) for student, diagnosis in judged)
            right = sum(student.verdict == diagnosis.verdict for student, diagnosis in judged)
            unknown = sum(diagnosis.verdict == "not known" for _, diagnosis in judged)
            shares = " | ".join(f"{n / n_curves:.1%}" for n in (right, unknown, n_curves - right - unknown))
            print(f"| {situation} | {kind} | {shares} | {'| |' if situation == 'wrong loss' else _accuracy(judged)} |")
    print("\n| right verdict | " + " | ".join(get_args(Verdict)) + " |")
    print("| --- |" + " --- |" * len(get_args(Verdict)))
    for truth in get_args(Verdict)[:-1]:
        counts = [confusion[truth, verdict] for verdict in get_args(Verdict)]
        print(f"| {truth} | " + " | ".join(f"{count:,}" for count in counts) + " |")


def _accuracy(judged: Sequence[tuple[Simulated, Diagnosis]]) -> str:
    """Return how often the end is in its interval, the median error of what is left, and tokens for half of it."""
    known = [(student, diagnosis) for student, diagnosis in judged if diagnosis.left is not None]
    covered = [d.end_interval[0] * 0.998 <= s.end <= d.end_interval[1] * 1.002 for s, d in known]
    errors = [abs(d.left - s.left) for s, d in known]
    ratios = [d.tokens_for_half / s.tokens_for_half for s, d in known if d.verdict == s.verdict == "under-trained"]
    low, median, high = np.quantile(ratios or [math.nan], [0.1, 0.5, 0.9])
    return f"{np.mean(covered):.0%} | {np.median(errors):.3f} | {median:.2f} ({low:.2f} to {high:.2f})"


def print_students() -> None:
    """Print the verdict on each student of the atlas at a third of its training and at its end."""
    print("| teacher | width | tokens | loss | verdict at a third | end (95 %) | end of training | L∞ | truth |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    n_students: Counter[str] = Counter()
    for file in sorted(ATLAS.glob("*.json")):
        row = json.loads(file.read_text())
        floor = _atlas_floor(row)
        for student in row["students"]:
            early = _diagnosis(student, floor, SHARE_OF_TRAINING)
            later = student["losses"][-1]
            limit = min(student["floor"], later)
            truth = "under-trained" if limit < (1 - UNDER_TRAINED_SHARE) * early.reached else "not shown"
            n_students[truth] += 1
            n_students[f"{truth}, {early.verdict}"] += 1
            low, high = early.end_interval
            n_students["end interval holds L∞ of the full curve"] += low <= limit <= high
            print(
                f"| {row['teacher']} | {student['width']} | {early.tokens[-1] / 1e6:.1f} M | {early.reached:.3f} |"
                f" {early.verdict} | {early.end or math.nan:.3f} ({low:.3f} to {high:.3f}) | {later:.3f} |"
                f" {student['floor']:.3f} | {truth} |"
            )
    print()
    for name, count in n_students.items():
        print(f"{name}: {count}")


def _atlas_floor(row: dict[str, Any]) -> FloorPrediction:
    """Return the head floor of a row of the atlas as a prediction."""
    columns, recipe = row["predictions"], row["recipe"]
    head = HeadFloor(
        model_name=row["teacher"],
        text_name="atlas",
        d_model=recipe["d_model"],
        vocab_size=recipe["vocab_size"],
        widths=tuple(columns["widths"]),
        floor=tuple(columns["head"]),
        standard_error=tuple(columns["head_standard_error"]),
        half_steps=tuple(columns["head_half_steps"]),
        encoded=tuple(columns["head_encoded"]),
        known_share=columns["known_share"],
        steps=200,
        n_train_tokens=1,
        n_heldout_tokens=1,
    )
    return FloorPrediction.from_head(head)


def _diagnosis(student: dict[str, Any], floor: FloorPrediction, share: float) -> Diagnosis:
    """Return the verdict on a student after a share of its training."""
    points: Sequence[tuple[int, float]] = [
        (tokens, loss)
        for tokens, loss in zip(student["tokens"], student["losses"], strict=True)
        if tokens <= share * student["tokens"][-1]
    ]
    curve = LearningCurve(tuple(float(t) for t, _ in points), tuple(loss for _, loss in points), width=student["width"])
    return diagnose(curve, floor)


def main() -> None:
    """Parse the options and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--students", action="store_true", help="judge the atlas's students at a third of their training"
    )
    parser.add_argument("--curves", type=int, default=500, help="simulated students of each kind and situation")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first of them")
    arguments = parser.parse_args()
    if arguments.students:
        print_students()
    else:
        print_verdicts(arguments.curves, arguments.first_seed)


if __name__ == "__main__":
    main()
