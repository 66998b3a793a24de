"""Plans and pilots as rich tables and figures."""

from collections.abc import Sequence
from pathlib import Path
from shlex import quote

import plotly.graph_objects as go
from rich.console import Group, RenderableType
from rich.text import Text

from tl_distill_floor.display.figure_style import COLOURS, CYCLE, add_curve, apply_style, escape_markup
from tl_distill_floor.display.tables import command_text, key_value_table, plain_table, warning_lines
from tl_distill_floor.display.units import AXIS_UNIT, SHORT_UNIT, STUDENT_LOSS
from tl_distill_floor.errors import name_options
from tl_distill_floor.results.byte_sizes import format_bytes
from tl_distill_floor.results.plan import Candidate, Pilots, Plan
from tl_distill_floor.theory.regression import PredictedLoss

TASK_SCORES = "A distillation loss alone does not predict task scores: test the trained student on your own tasks."


def plan_table(plan: Plan, run: Path | None = None) -> RenderableType:
    """Return the student to train, what its choice is based on, and other students within the limits.

    Args:
        plan: the plan.
        run: run directory, for the commands that list the lost features and train the student.
    """
    has_fewer_layers = plan.depth != plan.teacher_depth
    bound = (
        "no upper bound is known from one block of text"
        if plan.upper_bound is None
        else f"below {plan.upper_bound:.4g} with 90 % confidence"
    )
    rows = [
        *(() if plan.rule is None else [("chosen", _rule(plan))]),
        ("teacher", f"{plan.teacher}, {plan.teacher_parameters:,} parameters"),
        (
            "loss",
            f"{plan.loss:.4g} {SHORT_UNIT[plan.unit]} expected, {bound}"
            + ("" if plan.calibrated else "; no student of this teacher is part of it"),
        ),
        (
            "parameters",
            f"{plan.n_parameters:,} ({plan.n_parameters / plan.teacher_parameters:.1%} of the teacher's),"
            f" {plan.depth} layers" + (", whose effect on the loss is not predicted" if has_fewer_layers else ""),
        ),
        ("memory", _memory(plan)),
        ("speed", f"{plan.speed:.1f} times the teacher's forward passes per second on this machine"),
        *(() if plan.kept is None else [("features", _kept(plan, run))]),
        *(("known", sentence) for sentence in plan.known),
        *(("assumed", sentence) for sentence in plan.assumed),
    ]
    title = f"Train a student of width {plan.width:,}"
    command = f"Next: tl-floor distill {quote(plan.teacher)} --widths {plan.width}"
    command += f" --depth {plan.depth}" if has_fewer_layers else ""
    command += " --text YOUR_TEXT" + ("" if run is None else f" --out {quote(str(run))}")
    others = (Text(), _candidates(plan)) if len(plan.candidates) > 1 else ()
    return Group(key_value_table(rows, title), *others, Text(TASK_SCORES), command_text(command))


def plan_figure(plan: Plan) -> go.Figure:
    """Return the losses of the plan's candidates against their parameters, or the parameters alone if it has none."""
    bound = "" if plan.upper_bound is None else f", below {plan.upper_bound:.4g} with 90 % confidence"
    title = f"Plan for {escape_markup(plan.teacher)}: {plan.loss:.4g} {AXIS_UNIT[plan.unit]} expected{bound}"
    figure = go.Figure()
    if len(plan.candidates) < 2:
        names = ["teacher", f"student of width {plan.width:,}"]
        parameters = [plan.teacher_parameters, plan.n_parameters]
        figure.add_bar(x=names, y=parameters, marker={"color": [CYCLE[-1], CYCLE[0]]}, name="parameters")
        return apply_style(figure, title, "", "parameters")
    parameters = [candidate.n_parameters for candidate in plan.candidates]
    widths = [f"{candidate.width:,}" for candidate in plan.candidates]
    bounded = [candidate for candidate in plan.candidates if candidate.upper_bound is not None]
    with_head = [candidate for candidate in plan.candidates if candidate.least_loss is not None]
    colour, sizes = COLOURS["expected"], [candidate.n_parameters for candidate in bounded]
    bounds = [candidate.upper_bound for candidate in bounded]
    add_curve(figure, sizes, bounds, "90 % upper bound", colour, dash="dot", markers=False)
    figure.add_scatter(
        x=parameters, y=[candidate.loss for candidate in plan.candidates], mode="lines+markers+text",
        line={"color": colour}, text=widths, textposition="bottom left", name="expected, by width",
    )  # fmt: skip
    figure.add_scatter(
        x=[plan.n_parameters], y=[plan.loss], mode="markers", marker={"size": 14, "color": colour},
        name=f"chosen: width {plan.width:,}",
    )  # fmt: skip
    if plan.unit == "nats" and with_head:
        sizes = [candidate.n_parameters for candidate in with_head]
        least = [candidate.least_loss for candidate in with_head]
        add_curve(figure, sizes, least, "head floor", COLOURS["head"], dash="dash", markers=False)
    figure.update_xaxes(type="log")
    figure.update_yaxes(rangemode="tozero")
    loss = STUDENT_LOSS if plan.unit == "nats" else "loss"
    return apply_style(figure, title, "parameters", f"{loss}, {AXIS_UNIT[plan.unit]}")


def pilots_table(pilots: Pilots, plan: Plan, run: Path) -> RenderableType:
    """Return which narrow students to train first, and what their losses would tell.

    Args:
        pilots: the narrow students.
        plan: the student that is planned.
        run: run directory, for the commands.
    """
    widths = ",".join(str(width) for width in pilots.widths)
    rows = [
        ("widths", f"{', '.join(str(width) for width in pilots.widths)}"),
        ("cost", f"{pilots.cost:.0%} of the parameters of the planned student"),
        ("interval", f"80 %: {pilots.before.low:.3g} to {pilots.before.high:.3g} nats per token now"),
        ("", f"{pilots.after.low:.3g} to {pilots.after.high:.3g} then, if they lose what is expected of them"),
    ]
    directory = quote(str(run))
    commands = command_text(
        f"Next: tl-floor distill {quote(plan.teacher)} --widths {widths} --text YOUR_TEXT --out {directory}\n"
        f"      tl-floor calibrate {directory}\n"
        f"      tl-floor plan {directory} --max-width {plan.width}\n"
        "Or all three: add --train --text YOUR_TEXT to --pilots"
    )
    return Group(Text(), key_value_table(rows, "Pilots: train narrow students first"), commands)


def trained_pilots_table(
    pilots: Pilots, width: int, after: PredictedLoss, warnings: Sequence[str] = ()
) -> RenderableType:
    """Return how the pilots that were trained changed the expected loss of the planned student.

    Args:
        pilots: the narrow students, with the expected loss before they were trained.
        width: width of the planned student, dimensions.
        after: its expected loss and 80 % interval now, nats per token.
        warnings: what to keep in mind when using the pilots' losses.
    """
    before = pilots.before
    rows = [
        ("widths", ", ".join(str(pilot) for pilot in pilots.widths)),
        ("before", f"{before.value:.4g} nats per token expected at width {width:,}, 80 %: {_interval(before)}"),
        ("now", f"{after.value:.4g} expected, 80 %: {_interval(after)}"),
    ]
    title = "Pilots: trained, and the run is calibrated with them"
    return Group(key_value_table(rows, title), warning_lines(warnings), Text())


def _interval(loss: PredictedLoss) -> str:
    return f"{loss.low:.3g} to {loss.high:.3g}"


def _rule(plan: Plan) -> str:
    """Return the rule that chose the student, with the limits."""
    limits = plan.limits
    memory = None if limits.max_memory is None else format_bytes(limits.max_memory)
    given = {
        "--max-width": limits.max_width,
        "--max-params": limits.max_params,
        "--max-memory": memory,
        "--min-speedup": None if limits.min_speedup is None else f"{limits.min_speedup:g}",
        "--divisor": limits.divisor,
    }
    others = name_options(", ".join(f"{option} {limit}" for option, limit in given.items() if limit is not None))
    if plan.rule == "narrowest":
        within = f", within {others}" if others else ""
        if plan.upper_bound is None:
            return f"the narrowest student whose expected loss is at most {limits.max_loss:g}{within}"
        return f"the narrowest student whose loss stays below {limits.max_loss:g} with 90 % confidence{within}"
    return f"the widest student within {others}"


def _memory(plan: Plan) -> str:
    """Return the memory of the planned student: its weights and, if it is known, its KV cache."""
    chosen = plan.chosen
    if chosen is None or plan.context is None:
        return f"{plan.megabytes:,.1f} MB of weights in half precision"
    cache = (
        "a KV cache of unknown size" if chosen.cache_bytes is None else f"{format_bytes(chosen.cache_bytes)} KV cache"
    )
    return (
        f"{format_bytes(chosen.weight_bytes)} weights and {cache} in {plan.memory_dtype}, one sequence of"
        f" {plan.context:,} tokens"
    )


def _kept(plan: Plan, run: Path | None) -> str:
    """Return how many features are kept, and the command that lists the others."""
    return (
        f"{plan.kept:,} of {plan.features:,} kept; list the others with tl-floor lost {quote(str(run or 'RUN'))}"
        f" --width {plan.width}"
    )


def _candidates(plan: Plan) -> RenderableType:
    """Return a table of the students within the limits, with an explanation."""
    table = plain_table(f"Students within the limits; losses in {SHORT_UNIT[plan.unit]}")
    for heading in ("width", "parameters", "memory", "speed", "expected", "90 % upper bound", "head floor"):
        table.add_column(heading, justify="right")
    for candidate in plan.candidates:
        table.add_row(*_cells(candidate), style="bold" if candidate.width == plan.width else "")
    has_cache = all(candidate.cache_bytes is not None for candidate in plan.candidates)
    measured = "memory: weights and KV cache" if has_cache else "memory: weights alone, as the KV cache is not known;"
    speed = "speed: forward passes per second relative to the teacher's, on this machine"
    if not all(candidate.speed_is_measured for candidate in plan.candidates):
        speed += " (~: interpolated between students that were timed)"
    notes = [
        f"{measured} in {plan.memory_dtype} of one sequence of {plan.context:,} tokens; 1 GB = 10^9 bytes, 1 MB = 10^6"
        f" bytes. {speed}. head floor: about the least loss of any student, in nats."
    ]
    if plan.depth != plan.teacher_depth:
        notes.append(f"All have {plan.depth} of {plan.teacher_depth} layers: what fewer layers cost is not predicted.")
    return Group(table, Text(" ".join(notes)))


def _cells(candidate: Candidate) -> tuple[str, ...]:
    return (
        f"{candidate.width:,}",
        f"{candidate.n_parameters:,}",
        format_bytes(candidate.memory),
        f"{'' if candidate.speed_is_measured else '~'}{candidate.speed:.1f}",
        f"{candidate.loss:.4g}",
        "" if candidate.upper_bound is None else f"{candidate.upper_bound:.4g}",
        "" if candidate.least_loss is None else f"{candidate.least_loss:.4g}",
    )
