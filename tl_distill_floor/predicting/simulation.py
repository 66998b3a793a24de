"""From measured statistics to what bottleneck students of a few widths reach on the codes that were kept."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.predicting.bottleneck import Batch, Bottleneck, steps_a_width, train
from tl_distill_floor.predicting.toy import StepCounter
from tl_distill_floor.results.codes import Codes
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.simulation import Simulation
from tl_distill_floor.results.tail_loss import ratio_standard_error

BATCH = 1024
"""Tokens a step."""
HELD_OUT, MOST_HELD_OUT, LEAST_HELD_OUT = 1 / 6, 16_384, 2
"""Share of the sequences that training does not see, about how many tokens they hold at the most, and the fewest."""
RARE = 8
"""Features that fired less often on held-out codes share one estimate of what is lost of them."""
DENSE_AT_ONCE = 2**20
"""Numbers, tokens times features, that are decoded at once: few enough to stay in a processor's cache."""
RATES = (1.0, 0.3, 0.1)
"""Learning rates that are tried in turn while training diverges."""
LEFT_ERROR = 1 / 3
"""Standard error of what training without end still gains, relative to what doubling the steps gained last."""

Hidden = Callable[[Float[Tensor, "token feature"]], Float[Tensor, "token width"]]
"""From an SAE's codes to what a student holds of them."""
Restored = Callable[[Float[Tensor, "token feature"]], Float[Tensor, "token feature"]]
"""From an SAE's codes to what a student gives back of them."""
Judge = Callable[[Sequence[Restored]], tuple[Float64[np.ndarray, "student sequence"], Int64[np.ndarray, " sequence"]]]
"""From students to what the teacher's output loses with each, summed over every held-out sequence (nats), and the
sequences' tokens."""


def simulate(
    stats: FeatureStats,
    widths: Int64[np.ndarray, " width"],
    *,
    steps: int,
    min_count: int = 1,
    n_seeds: int = 1,
    batch_size: int = BATCH,
    seed: int = 0,
    device: str = "cpu",
    judge: Judge | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Simulation:
    """Train bottlenecks of some widths on the codes that were kept, and measure what they lose on held-out ones.

    The held-out loss is taken relative to the cost of the same tokens' features, and multiplied with the cost over all
    tokens that were measured, which are more. Every width is trained twice, once for half as long. The excess falls
    about as 1/n, so what the longer training gained it would gain once more without end: L∞ = 2 L(n) − L(n/2), at least
    L(n)/2. Where the shorter one lost less, it is what counts.

    Args:
        stats: measured statistics that carry codes.
        widths: [width] dimensions, rising.
        steps: of the longer training of each width and seed, at least 2.
        min_count: a feature is alive when it fired on at least this many tokens; others are left out.
        n_seeds: models a width.
        batch_size: tokens a step.
        seed: of the weights, the order of the tokens and the choice of the held-out sequences.
        device: torch device.
        judge: what the teacher's output loses when students' codes take the place of its own; see `Judge`.
        progress: called now and then with steps done and steps in all.

    Returns:
        Simulation: floors in the unit of `stats.cost`, and in nats where there is a judge.

    Raises:
        InputError: there are no codes, some are negative, there are too few sequences of them to hold some out, or
            training diverged.
    """
    # Apple's devices have no compressed sparse rows.
    task = BottleneckTask.of(
        stats, stats.alive(min_count), seed, "cpu" if str(device).startswith("mps") else str(device)
    )
    report = StepCounter(progress, len(widths) * n_seeds * steps_a_width(steps))
    sizes = [int(width) for width in widths]
    by_seed = [task.reached(sizes, steps, batch_size, seed + number, report) for number in range(n_seeds)]

    def table(name: str) -> np.ndarray:
        return np.array([[getattr(each, name) for each in of_width] for of_width in zip(*by_seed, strict=True)])

    floor = table("floor")
    lost = np.zeros((len(widths), len(stats.cost)))
    lost[:, task.alive] = table("lost_share").mean(1) * stats.cost[task.alive]
    summed = lost.sum(1)
    lost *= np.divide(floor.mean(1), summed, out=np.zeros_like(summed), where=summed > 0)[:, None]
    return Simulation(
        widths=widths,
        floor=floor,
        reached=table("reached"),
        standard_error=table("standard_error").mean(1),
        lost_cost=lost,
        on_training_text=table("on_training_text"),
        held_out_sequences=float(task.held_out_sequences),
        steps=steps,
        **({} if judge is None else _judged(task, stats, by_seed, judge)),
    )


def hidden_states(
    stats: FeatureStats,
    widths: Sequence[int],
    *,
    steps: int,
    min_count: int = 1,
    seed: int = 0,
    device: str = "cpu",
) -> list[Hidden]:
    """What the bottleneck student of each width holds of an SAE's codes, trained as `simulate` trains it.

    Args: see `simulate`.

    Raises:
        InputError: see `simulate`.
    """
    task = BottleneckTask.of(
        stats, stats.alive(min_count), seed, "cpu" if str(device).startswith("mps") else str(device)
    )
    report = StepCounter(None, len(widths) * steps_a_width(steps))
    reached = task.reached([int(width) for width in widths], steps, BATCH, seed, report)
    return [task.holding(each.models[1], stats) for each in reached]


def held_out_sequences(stats: FeatureStats, seed: int = 0) -> Int64[np.ndarray, " sequence"]:
    """Numbers of the text's sequences that the students of that seed do not see; without codes, of as many others."""
    if stats.codes is not None and len(np.unique(stats.codes.sequence)) > LEAST_HELD_OUT:
        return np.unique(stats.codes.sequence[_held_out(stats.codes.sequence, seed)])
    size = stats.settings["context_size"]
    n = max(1, (stats.n_tokens + stats.n_masked) // size)
    chosen = np.random.default_rng(seed).permutation(n)[: max(LEAST_HELD_OUT, MOST_HELD_OUT // size)]
    return np.sort(chosen).astype(np.int64)


def _judged(
    task: "BottleneckTask", stats: FeatureStats, by_seed: list[list["Reached"]], judge: Judge
) -> dict[str, np.ndarray]:
    """The fields of `Simulation` in nats: every width's two trainings judged, and extrapolated as its floor is."""
    floors, lasts, errors = [], [], []
    for of_seed in by_seed:
        students = [task.restoring(model, stats) for reached in of_seed for model in reached.models]
        loss, n_tokens = judge(students)
        mean = loss.sum(1) / n_tokens.sum()
        shorter, longer = mean[::2], mean[1::2]
        floors.append([_extrapolated(*pair) for pair in zip(shorter, longer, strict=True)])
        lasts.append(longer)
        errors.append(
            np.hypot(ratio_standard_error(loss, n_tokens)[1::2], LEFT_ERROR * np.maximum(shorter - longer, 0.0))
        )
    return {"kl": np.array(floors).T, "kl_reached": np.array(lasts).T, "kl_error": np.mean(errors, axis=0)}


def _extrapolated(shorter: float, longer: float) -> float:
    """L∞ = 2 L(n) − L(n/2), at least L(n)/2; L(n/2) where the longer training lost more."""
    gained = shorter - longer
    return longer - min(gained, longer / 2.0) if gained > 0 else shorter


class Reached(NamedTuple):
    """What one bottleneck reached after all steps, and where that would end, in the unit of the costs."""

    floor: float
    reached: float
    standard_error: float
    lost_share: Float64[np.ndarray, " alive"]
    on_training_text: float
    models: tuple[Bottleneck, Bottleneck]
    """After half the steps, and after all."""


class Loss(NamedTuple):
    """What is lost of some codes, and what they cost, summed over tokens or over features."""

    of_feature: Float64[np.ndarray, " feature"]
    of_token: Float64[np.ndarray, " token"]
    cost_of_feature: Float64[np.ndarray, " feature"]
    cost_of_token: Float64[np.ndarray, " token"]

    @property
    def share(self) -> float:
        return float(self.of_token.sum() / self.cost_of_token.sum())

    @property
    def is_sound(self) -> bool:
        """Whether training ended with less than an output of 0 loses, give or take the held-out text."""
        return math.isfinite(self.share) and self.share < 1.2

    def standard_error(self, sequence: Int64[np.ndarray, " token"]) -> float:
        """Of `share`, a ratio of sums over sequences: tokens of one sequence are not independent."""
        place = np.unique(sequence, return_inverse=True)[1]
        residual = np.bincount(place, self.of_token - self.share * self.cost_of_token)
        n = effective_number(np.bincount(place, self.cost_of_token))
        return math.sqrt(float((residual**2).sum()) * n / max(n - 1.0, 0.1)) / float(self.cost_of_token.sum())

    def shares(self, count: Int64[np.ndarray, " feature"]) -> Float64[np.ndarray, " feature"]:
        """The share of each feature's cost that is lost; one share for all features that fired too seldom."""
        rare = count < RARE
        lost, cost = (np.where(rare, a[rare].sum(), a) for a in (self.of_feature, self.cost_of_feature))
        share: np.ndarray = np.divide(lost, cost, out=np.ones_like(lost), where=cost > 0)
        return share


@dataclasses.dataclass(frozen=True, eq=False)
class BottleneckTask:
    """Codes of the alive features, to train on and to evaluate on, and what an error costs."""

    alive: Int64[np.ndarray, " alive"]
    total: float
    """Summed cost of the alive features."""
    training: Codes
    held_out: Codes
    held_out_sequences: float
    """How many sequences of equal cost would scatter as the held-out ones do."""
    weight: Float[Tensor, " alive"]
    """Cost of a squared error."""
    amplitude: Float[Tensor, " alive"]

    @classmethod
    def of(
        cls, stats: FeatureStats, is_alive: Bool[np.ndarray, " feature"], seed: int, device: str
    ) -> "BottleneckTask":
        if stats.codes is None:
            raise InputError("no codes were kept to train on; measure with n_codes above 0")
        if stats.codes.value.min(initial=0) < 0:
            raise InputError("some codes are negative, which a student's ReLU cannot output; set the steps to 0")
        alive = np.flatnonzero(is_alive)
        norm, square = stats.decoder_norm[alive], stats.sum_act_sq[alive]
        codes = _of_features(stats.codes, is_alive, stats.decoder_norm)
        held_out = _held_out(codes.sequence, seed)
        weight = np.divide(stats.sum_cost[alive], square * norm**2, out=np.zeros_like(square), where=square * norm > 0)
        per_feature = (weight, np.sqrt(square / np.maximum(stats.firing_count[alive], 1)) * norm)
        parts = codes.of_tokens(~held_out), codes.of_tokens(held_out)
        cost = [part.value.astype(np.float64) ** 2 * weight[part.feature] for part in parts]
        if len(np.unique(parts[1].sequence)) < LEAST_HELD_OUT or not all(each.sum() > 0 for each in cost):
            raise InputError(
                f"codes of {codes.n_tokens} tokens are too few to train on some and hold out others; measure more"
                " tokens, or set the steps to 0"
            )
        place = np.unique(parts[1].sequence, return_inverse=True)[1]
        of_sequence = np.bincount(np.repeat(place, np.diff(parts[1].row_start)), cost[1])
        tensors = (torch.tensor(values, dtype=torch.float32, device=device) for values in per_feature)
        total, effective = float(stats.cost[alive].sum()), effective_number(of_sequence)
        return cls(alive, total, *parts, effective, *tensors)

    def reached(self, widths: list[int], steps: int, batch_size: int, seed: int, report: StepCounter) -> list[Reached]:
        """Train a bottleneck of every width, with a smaller learning rate where training diverged."""
        found: dict[int, Reached] = {}
        for rate in RATES:
            left = [width for width in widths if width not in found]
            trained = train(
                self.training, self.weight, self.amplitude, left,
                steps=steps, batch_size=min(batch_size, self.training.n_tokens), seed=seed, report=report, rate=rate,
            ) if left else []  # fmt: skip
            for width, models in zip(left, trained, strict=True):
                shorter, longer = (self.loss(model, self.held_out) for model in models)
                if shorter.is_sound and longer.is_sound:
                    found[width] = self._at_the_end(models, shorter, longer)
        diverged = [width for width in widths if width not in found]
        if diverged:
            raise InputError(f"the simulated student of width {diverged[0]} diverged; set the steps to 0 to do without")
        return [found[width] for width in widths]

    def _at_the_end(self, models: tuple[Bottleneck, Bottleneck], shorter: Loss, longer: Loss) -> Reached:
        gained = shorter.share - longer.share
        n_seen, n_compared = self.training.n_tokens, min(self.training.n_tokens, self.held_out.n_tokens)
        some = self.training.of_tokens(np.linspace(0, n_seen - 1, n_compared).astype(np.int64))
        return Reached(
            _extrapolated(shorter.share, longer.share) * self.total,
            longer.share * self.total,
            math.hypot(longer.standard_error(self.held_out.sequence), LEFT_ERROR * gained) * self.total,
            longer.shares(np.bincount(self.held_out.feature, minlength=len(self.alive))),
            self.loss(models[1], some).share * self.total,
            models,
        )

    def holding(self, model: Bottleneck, stats: FeatureStats) -> Hidden:
        """From an SAE's codes to the student's hidden state Wᵀx, x the codes times their decoders' norms."""
        norm = torch.tensor(stats.decoder_norm[self.alive], dtype=torch.float32, device=model.W.device)
        alive = torch.from_numpy(self.alive)
        return lambda codes: (codes[:, alive.to(codes.device)].to(model.W.device) * norm) @ model.W

    def restoring(self, model: Bottleneck, stats: FeatureStats) -> Restored:
        """From an SAE's codes to what the student gives back of them; nothing of features that are not alive."""
        norm = torch.tensor(stats.decoder_norm[self.alive], dtype=torch.float32, device=model.W.device)
        alive, hidden = torch.from_numpy(self.alive), self.holding(model, stats)

        def restored(codes: Tensor) -> Tensor:
            back = torch.where(norm > 0, model.output(hidden(codes)) / norm, 0.0)
            return torch.zeros_like(codes).index_copy_(1, alive.to(codes.device), back.to(codes))

        return restored

    @torch.no_grad()
    def loss(self, model: Bottleneck, codes: Codes) -> Loss:
        """Exactly, with every feature of every token."""
        batch, at_once = Batch.of(codes).to(self.weight.device), max(1, DENSE_AT_ONCE // len(self.alive))
        of_feature, of_token = torch.zeros(len(self.alive), dtype=torch.float64, device=self.weight.device), []
        for first in range(0, codes.n_tokens, at_once):
            lost = model.lost(batch.part(first, min(first + at_once, codes.n_tokens)), self.weight)
            of_feature += lost.sum(0)
            of_token.append(lost.sum(1).double())
        cost = batch.value.square().mul_(self.weight[batch.feature]).double().cpu().numpy()
        token = np.repeat(np.arange(codes.n_tokens), np.diff(codes.row_start))
        return Loss(
            of_feature.cpu().numpy(),
            torch.cat(of_token).cpu().numpy(),
            np.bincount(codes.feature, cost, len(self.alive)),
            np.bincount(token, cost, codes.n_tokens),
        )


def _of_features(codes: Codes, alive: Bool[np.ndarray, " feature"], norm: Float64[np.ndarray, " feature"]) -> Codes:
    """The codes of some features, numbered anew, times their decoders' norms."""
    kept = alive[codes.feature]
    number = np.cumsum(alive, dtype=np.int32) - 1
    before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(kept)])
    feature = codes.feature[kept]
    value = (codes.value[kept] * norm[feature]).astype(np.float32)
    return Codes(int(alive.sum()), before[codes.row_start], number[feature], value, codes.sequence)


def _held_out(sequence: Int64[np.ndarray, " token"], seed: int) -> Bool[np.ndarray, " token"]:
    """Tokens of sequences drawn at random, at least two of them."""
    numbers = np.random.default_rng(seed).permutation(np.unique(sequence))
    share = min(HELD_OUT, MOST_HELD_OUT / max(len(sequence), 1))
    held: np.ndarray = np.isin(sequence, numbers[: max(LEAST_HELD_OUT, round(len(numbers) * share))])
    return held


def effective_number(cost: Float64[np.ndarray, " sequence"]) -> float:
    """(Σ c)² / Σ c²: how many sequences of equal cost would scatter as these do."""
    return float(cost.sum() ** 2 / (cost**2).sum())
