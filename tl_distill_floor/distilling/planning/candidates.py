"""Choose a student within limits, and list other students that are within them."""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tl_distill_floor.annotations import HookedModel, MemoryDtype, PlanRule, ProgressMessageCallback
from tl_distill_floor.distilling.planning.speeds import N_TIMED, SpeedTimer
from tl_distill_floor.distilling.students.build import check_student_runs
from tl_distill_floor.distilling.students.model_size import ModelSize, choose_cache_context, model_size
from tl_distill_floor.distilling.students.student_config import hugging_face_config, student_config
from tl_distill_floor.distilling.students.widths import spaced_widths, teacher_width, width_step
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.byte_sizes import format_bytes
from tl_distill_floor.results.plan import Limits
from tl_distill_floor.theory.regression import PredictedLoss

NARROWEST_SHARE = 1 / 8
"""Candidates that are narrower than the chosen student have at least this share of its width."""
SizeOption: TypeAlias = Literal["--max-width", "--max-params", "--max-memory"]
"""Option that limits the size of a student."""
NO_STUDENT = "no student of the teacher's family is as small as that"
"""Beginning of the message if no width is within a limit."""


class StudentFamily:
    """Students of one teacher by width. Their sizes and speeds are computed when they are needed, each once.

    Args:
        model: the teacher's model.
        depth: number of layers of the students; the teacher's if None.
        memory_dtype: dtype of the weights and the KV cache.
        context: tokens in the KV cache; see `choose_cache_context`.
        progress: see `SpeedTimer`.

    Raises:
        InputError: the context is out of range.
    """

    def __init__(
        self,
        model: HookedModel,
        depth: int | None = None,
        memory_dtype: MemoryDtype = "bf16",
        context: int | None = None,
        progress: ProgressMessageCallback | None = None,
    ) -> None:
        self.model, self.depth, self.memory_dtype = model, depth, memory_dtype
        self._config = hugging_face_config(model)  # read once: that of a HookedTransformer is looked up by its name
        self.context = choose_cache_context(model, context)
        self.timer = SpeedTimer(model, depth, progress)
        self._sizes: dict[int, ModelSize] = {}
        self._refusals: dict[int, str] = {}

    def size(self, width: int) -> ModelSize:
        """Return the size of the student of a width.

        Raises:
            InputError: the student cannot be built.
        """
        if width not in self._sizes:
            config = student_config(self._config, width, self.depth)
            self._sizes[width] = model_size(config, self.memory_dtype, self.context)
        return self._sizes[width]

    def next_narrower(self, width: int | None, divisor: int | None) -> int:
        """Return the next narrower width, whether it can be built or not; 0 if there is none.

        Args:
            width: a width; the teacher's if None.
            divisor: widths are multiples of this; see `family_widths`.
        """
        step = width_step(self.model, divisor)
        return ((teacher_width(self.model) if width is None else width) - 1) // step * step

    def refusal(self, width: int) -> str:
        """Return why a student of a width cannot be built and run; empty if it can."""
        if width not in self._refusals:
            try:
                check_student_runs(self._config, width, self.depth)
                self._refusals[width] = ""
            except InputError as error:
                self._refusals[width] = str(error)
        return self._refusals[width]

    def is_within(self, option: SizeOption, limits: Limits, width: int) -> bool:
        """Return whether a student is within the limit of one option.

        A student that cannot be built is as large as the next narrower one that can.

        Args:
            option: the option.
            limits: all limits.
            width: width of the student, dimensions.

        Raises:
            InputError: the limit is on the memory, and the size of the family's KV cache is not known.
        """
        limit = _size_limits(limits)[option]
        if limit is None or option == "--max-width":
            return limit is None or width <= limit
        size = self._nearest_size(width)
        if size is None or option == "--max-params":
            return size is None or size.n_parameters <= limit
        if size.cache_bytes is None:
            raise InputError(
                "the size of the KV cache of the teacher's family is not known, so --max-memory cannot be checked; set"
                " --max-params"
            )
        return size.weight_bytes + size.cache_bytes <= limit

    def _nearest_size(self, width: int) -> ModelSize | None:
        for narrower in range(width, 0, -1):
            try:
                return self.size(narrower)
            except InputError:
                continue
        return None


@dataclass(frozen=True)
class Choice:
    """The width of the chosen student, the rule that chose it, and the widths of the students to compare it with."""

    width: int
    rule: PlanRule
    widths: tuple[int, ...]
    """Widths of students within the limits, ascending; the chosen one is among them."""


def choose_student(
    family: StudentFamily, limits: Limits, widths: Sequence[int], loss_at: Callable[[int], PredictedLoss]
) -> Choice:
    """Choose the narrowest student that meets the largest loss; without such a limit the widest one within the others.

    Args:
        family: the students.
        limits: the limits, at least one.
        widths: the widths with a predicted loss, ascending.
        loss_at: the expected loss at a width, and its 80 % interval, whose upper end is the one-sided bound of 90 %.

    Raises:
        InputError: no student is within all limits.
    """
    if not widths:
        raise InputError(_no_width(family, limits))
    n_within = {
        option: _n_within(family, limits, widths, option)
        for option, limit in _size_limits(limits).items()
        if limit is not None
    }
    within = widths[: min(n_within.values(), default=len(widths))]
    if not within:
        raise InputError(_too_large(family, limits, widths[0], [option for option, n in n_within.items() if not n]))
    if limits.max_loss is None:
        return _with_candidates(family, limits, within, _widest(family, limits, within), "widest")
    needed = _narrowest(family, limits, widths, loss_at)
    chosen = next((width for width in within if width >= needed and _is_candidate(family, limits, width)), None)
    if chosen is None:
        allowed = {option: widths[n - 1] for option, n in n_within.items() if widths[n - 1] < needed}
        closest = _widest(family, limits, within)
        raise InputError(_too_narrow(limits, needed, allowed, closest, loss_at(closest)))
    if limits.min_speedup is not None and family.timer.measure(chosen) < limits.min_speedup:
        raise InputError(
            f"no student is within all limits: --max-loss {limits.max_loss:g} needs width {chosen:,}, which is the"
            f" closest, but it runs {family.timer.at(chosen):.3g} times as fast as its teacher on this machine, less"
            f" than --min-speedup {limits.min_speedup:g}; change one of them, or set --depth"
        )
    return _with_candidates(family, limits, within, chosen, "narrowest")


def _size_limits(limits: Limits) -> dict[SizeOption, int | None]:
    """Return the limits on the size, by the names of their options."""
    return {"--max-width": limits.max_width, "--max-params": limits.max_params, "--max-memory": limits.max_memory}


def _with_value(option: SizeOption, limits: Limits) -> str:
    """Return an option with the value that was given."""
    value = _size_limits(limits)[option]
    return f"{option} {format_bytes(value or 0) if option == '--max-memory' else value}"


def _n_within(family: StudentFamily, limits: Limits, widths: Sequence[int], option: SizeOption) -> int:
    """Return how many of the narrowest widths are within the limit of one option."""
    return bisect_left(widths, x=True, key=lambda width: not family.is_within(option, limits, width))


def _widest(family: StudentFamily, limits: Limits, widths: Sequence[int]) -> int:
    """Return the widest of some widths that can be built and is fast enough."""
    built = _nearest_candidate(family, limits, widths, len(widths) - 1)
    if built is None:
        raise InputError(_none_built(family, widths))
    if limits.min_speedup is None:
        return built
    least = limits.min_speedup
    speeds: dict[int, float] = {}

    def is_too_slow(index: int) -> bool:
        width = _nearest_candidate(family, limits, widths, index)
        if width is None:
            return False
        speeds[width] = family.timer.measure(width)
        return speeds[width] < least

    n_fast = bisect_left(range(len(widths)), x=True, key=is_too_slow)
    fastest = _nearest_candidate(family, limits, widths, n_fast - 1)
    if fastest is None:
        width, speed = min(speeds.items())
        raise InputError(
            f"no student is as fast as that: width {width:,}, the narrowest one, runs {speed:.3g} times as fast as its"
            f" teacher on this machine; lower --min-speedup {least:g}, or set --depth"
        )
    return fastest


def _nearest_candidate(family: StudentFamily, limits: Limits, widths: Sequence[int], index: int) -> int | None:
    """Return the widest width up to an index that can be built and is within the limits; None if there is none."""
    return next((width for width in reversed(widths[: index + 1]) if _is_candidate(family, limits, width)), None)


def _is_candidate(family: StudentFamily, limits: Limits, width: int) -> bool:
    """Return whether a student can be built and is within the limits on its size.

    The search by bisection assumes that students grow with the width, which numbers of heads can break.
    """
    return not family.refusal(width) and all(family.is_within(option, limits, width) for option in _size_limits(limits))


def _narrowest(
    family: StudentFamily, limits: Limits, widths: Sequence[int], loss_at: Callable[[int], PredictedLoss]
) -> int:
    """Return the narrowest width whose loss is at most the largest one."""
    assert limits.max_loss is not None
    losses = {width: loss_at(width) for width in widths}
    # The loss itself is compared if no interval is known.
    at_most = {width: loss.value if math.isnan(loss.high) else loss.high for width, loss in losses.items()}
    wide_enough = [width for width, most in at_most.items() if most <= limits.max_loss]
    needed = next((width for width in wide_enough if not family.refusal(width)), None)
    if needed is not None:
        return needed
    if wide_enough:
        raise InputError(
            f"no student with a loss below {limits.max_loss:g} can be built: {_reason(family, wide_enough[-1])}; raise"
            " --max-loss, or use another teacher"
        )
    width, loss = min(losses.items(), key=lambda item: item[1].value)
    bound = "" if math.isnan(loss.high) else f", at most {loss.high:.4g}"
    raise InputError(
        f"no student of up to {widths[-1]:,} dimensions stays below {limits.max_loss:g} with 90 % confidence: at width"
        f" {width:,} {loss.value:.4g} is expected{bound}; raise --max-loss"
    )


def _with_candidates(
    family: StudentFamily, limits: Limits, within: Sequence[int], chosen: int, rule: PlanRule
) -> Choice:
    """Return a choice with the students to compare it with, after timing them."""
    if rule == "narrowest":
        span = [width for width in within if width >= chosen]
    else:
        span = [width for width in within if NARROWEST_SHARE * chosen <= width <= chosen]
    widths = sorted(
        {chosen, *(width for width in spaced_widths(span, N_TIMED) if _is_candidate(family, limits, width))}
    )
    # A search for a speed has timed some students already; then the others are interpolated.
    timed = widths if limits.min_speedup is None or rule == "narrowest" else [widths[0], chosen]
    for width in timed:
        family.timer.measure(width)
    least = limits.min_speedup or 0.0
    return Choice(chosen, rule, tuple(width for width in widths if width == chosen or family.timer.at(width) >= least))


def _reason(family: StudentFamily, width: int) -> str:
    """Return why a student of a width cannot be built, without what to do."""
    return family.refusal(width).rpartition("; ")[0] or family.refusal(width)


def _none_built(family: StudentFamily, widths: Sequence[int]) -> str:
    """Return the message if no student of some widths, those within the limits, can be built."""
    refused = [width for width in widths if family.refusal(width)]
    reason = f": {_reason(family, refused[-1])}" if refused else ""
    return f"{NO_STUDENT}{reason}; raise --max-width or --max-params, or use another teacher"


def _no_width(family: StudentFamily, limits: Limits) -> str:
    """Return the message if there is no width with a predicted loss."""
    widest = family.next_narrower(None, limits.divisor)
    if widest and family.refusal(widest):
        return _none_built(family, [widest])
    is_multiple, advice = "", "measure with smaller --widths"
    if limits.divisor is not None:
        is_multiple, advice = f" and a width that is a multiple of {limits.divisor}", "set a smaller --divisor"
    return f"no student narrower than its teacher has a predicted loss{is_multiple}; {advice}"


def _too_large(family: StudentFamily, limits: Limits, narrowest: int, options: Sequence[SizeOption]) -> str:
    """Return the message if even the narrowest student is above some limits."""
    size = family.size(narrowest)
    memory = size.weight_bytes + (size.cache_bytes or 0)
    is_above: dict[SizeOption, str] = {
        "--max-width": "is wider than",
        "--max-params": f"has {size.n_parameters:,} parameters, more than",
        "--max-memory": (
            f"takes {format_bytes(memory)} in {family.memory_dtype} at a context of {family.context:,} tokens, more"
            " than"
        ),
    }
    reasons = [f"{is_above[option]} {_with_value(option, limits)}" for option in options]
    narrower = family.next_narrower(narrowest, limits.divisor)
    refused = f", and {_reason(family, narrower)}" if narrower and family.refusal(narrower) else ""
    return (
        f"{NO_STUDENT}: width {narrowest:,}, the narrowest with a predicted loss,"
        f" {' and '.join(reasons)}{refused}; raise {' and '.join(options)}"
    )


def _too_narrow(
    limits: Limits, needed: int, allowed: Mapping[SizeOption, int], closest: int, loss: PredictedLoss
) -> str:
    """Return the message if the width that the loss needs is above some limits.

    Args:
        limits: the limits.
        needed: narrowest width whose loss is at most the largest one.
        allowed: the widest width that each of these limits allows, by the name of its option; none if sizes do not
            grow with the width.
        closest: the widest width within all limits but the loss.
        loss: its loss.
    """
    allows = " and ".join(
        f"{_with_value(option, limits)} allows at most width {width:,}" for option, width in allowed.items()
    )
    allows = allows or "the limits on its size do not allow that"
    at_most = "" if math.isnan(loss.high) else f", and at most {loss.high:.4g} with 90 % confidence"
    return (
        f"no student is within all limits: --max-loss {limits.max_loss:g} needs width {needed:,}, and {allows}; the"
        f" closest is width {closest:,}, which is expected to lose {loss.value:.4g}{at_most}"
    )
