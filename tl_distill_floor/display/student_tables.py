"""Students as tables: what they reached, how they follow the prediction, and which one to train."""

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tl_distill_floor.results.calibration import Calibration
from tl_distill_floor.results.plan import Plan
from tl_distill_floor.results.student import StudentResult
from tl_distill_floor.theory.regression import LinearFit

LOSS = "KL(teacher ‖ student), nats/token"


def students_view(results: list[StudentResult]) -> RenderableType:
    """What every student reached on held-out text, and where its learning curve ends."""
    first = results[0]
    table = _table(f"Students of {first.teacher}: {LOSS}, on {first.heldout_tokens:,} held-out tokens")
    for heading in ("student", "parameters", "tokens", "reached", "floor", "95 % interval", ""):
        table.add_column(heading, justify="left" if heading in ("student", "") else "right")
    for student in results:
        low, high = student.interval
        table.add_row(
            Text(student.name),
            f"{student.n_parameters:,}",
            f"{student.tokens[-1]:,}" if student.tokens else "",
            f"{student.loss:.4f}" if student.tokens else "",
            f"{student.floor:.4f}" if student.tokens else "",
            f"{low:.4g}–{high:.4g}" if student.tokens else "",
            student.status,
        )
    note = Text("floor is where the learning curve ends, L∞ of L∞ + A · t^-b; its interval is of that fit alone.")
    lost = [f"! {s.name} diverged {s.settings.get('diverged', '')}" for s in results if s.status == "diverged"]
    return Group(table, note, *(Text(line, style="yellow") for line in lost))


def calibration_view(calibration: Calibration) -> RenderableType:
    """Students beside the predictions, the lines through them, and models that know nothing of features."""
    unit = "nats/token" if calibration.unit == "nats" else "MSE"
    students = _table(f"Students of {calibration.teacher}: {LOSS}; predictions: {unit}")
    names = list(calibration.predictors)
    for heading in ("width", "student", *names, "calibrated", "95 %"):
        students.add_column(heading, justify="right", no_wrap=True)
    for i, (width, loss) in enumerate(zip(calibration.widths, calibration.losses, strict=True)):
        line = calibration.fit.at(calibration.fit.x[i])
        students.add_row(
            f"{width:,}",
            f"{loss:.4f}",
            *(f"{calibration.predictors[name].x[i]:.4g}" for name in names),
            f"{line.value:.4f}",
            f"{line.low:.3g}–{line.high:.3g}",
        )
    parts: list[RenderableType] = [students, Text(), _fits(calibration), Text(_verdict(calibration))]
    return Group(*parts, *(Text(f"! {warning}", style="yellow") for warning in calibration.warnings))


def plan_view(plan: Plan, run: Path | None = None) -> RenderableType:
    """The student to train, and what that stands on."""
    unit = "nats/token" if plan.unit == "nats" else "MSE"
    table = _table(f"Train a student of width {plan.width:,}")
    table.show_header = False
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    of_teacher = plan.n_parameters / plan.teacher_parameters
    sure = (
        "how sure that is, one block of text does not say"
        if plan.bound is None
        else f"below {plan.bound:.4g} with 90 % confidence"
    )
    loses = f"{plan.loss:.4g} {unit} expected, {sure}"
    depth = "" if plan.depth == plan.teacher_depth else f" --depth {plan.depth}"
    rows = [
        ("teacher", f"{plan.teacher}, {plan.teacher_parameters:,} parameters"),
        ("loss", loses + ("" if plan.calibrated else " (not calibrated: no student was measured)")),
        ("parameters", f"{plan.n_parameters:,} ({of_teacher:.1%} of the teacher's), {plan.depth} layers"),
        ("memory", f"{plan.megabytes:,.1f} MB of weights in half precision"),
        ("speed", f"{plan.speed:.1f} times the teacher's tokens a second, forward, on this machine"),
        (
            "features",
            f"holds {plan.kept:,} of {plan.features:,}; tl-floor lost {run or 'RUN'} --width {plan.width} names the"
            " others",
        ),
        *(("known", sentence) for sentence in plan.known),
        *(("assumed", sentence) for sentence in plan.assumed),
    ]
    for name, words in rows:
        table.add_row(name, Text(words))
    return Group(table, Text(f"Next: tl-floor distill {plan.teacher} --widths {plan.width}{depth} --text YOUR_TEXT"))


def _fits(calibration: Calibration) -> Table:
    table = _table("loss = C · prediction + B, nats/token (95 %); error: of a width from the others, of the mean loss")
    for heading in ("", "C", "B", "R²", "error"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for name, fit in calibration.predictors.items():
        mark = " *" if name == calibration.predictor else ""
        table.add_row(name + mark, *_numbers(fit))
    for name, error in calibration.nulls.items():
        table.add_row(f"null, {name}", "", "", "", f"{error:.1%}")
    return table


def _numbers(fit: LinearFit) -> tuple[str, ...]:
    (slope_low, slope_high), (low, high) = fit.slope_interval, fit.baseline_interval
    return (
        f"{fit.slope:.3g} ({slope_low:.2g}…{slope_high:.2g})",
        f"{fit.baseline:.2g} ({low:.2g}…{high:.2g})",
        f"{fit.r2:.4f}",
        f"{fit.loo_error:.1%}",
    )


def _verdict(calibration: Calibration) -> str:
    null, error = min(calibration.nulls.items(), key=lambda item: item[1])
    better = "less" if calibration.loo_error < error else "no less"
    return (
        f"calibrated is the line of *, with the interval of a new student. Its error is {better} than that of the best"
        f" null model, {null}. By it a student as wide as the teacher loses {calibration.at_teacher_width:.4g} nats per"
        " token."
    )


def _table(title: str) -> Table:
    return Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
