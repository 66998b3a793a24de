"""Test `tl-floor diagnose` in this process, on made curves and on students of a tiny random teacher."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.cli import refused, run
from tests.helpers.learning_curves import made_head
from tl_distill_floor import StudentResult
from tl_distill_floor.annotations import StudentStatus


@pytest.fixture
def made_run(tmp_path: Path) -> Path:
    """Return a run directory with a head floor of width 64, measured without an SAE."""
    directory = tmp_path / "run"
    made_head(expected=0.3, bound=0.1).save(directory)
    return directory


@pytest.fixture
def students(made_run: Path) -> Path:
    """Return a run directory with three students of width 64, the last of which has no learning curve."""
    tokens = np.geomspace(2e4, 1e6, 24).round()
    for name, end in (("first", 0.295), ("second", 0.2), ("third", None)):
        losses = () if end is None else tuple((end + (0.3 - end) * (tokens / tokens[-1]) ** -0.6).tolist())
        curve = (tuple(tokens.astype(int).tolist())[: len(losses)], losses)
        status: StudentStatus = "diverged" if end is None else "under-trained"
        student = StudentResult(name, "made", 64, 2, 100, *curve, 0.2, (0.1, 0.3), status, 10)
        student.save(made_run / "students" / name)
    return made_run


def write_curve(directory: Path, end: float, reached: float) -> Path:
    """Write a CSV file with a learning curve that would saturate at `end`."""
    steps = np.unique(np.geomspace(20, 1000, 24).round())
    losses = end + (reached - end) * (steps / steps[-1]) ** -0.6
    file = directory / "curve.csv"
    rows = [f"{step:.0f},{loss}" for step, loss in zip(steps, losses, strict=True)]
    file.write_text("\n".join(["step,eval_loss", *rows]))
    return file


def test_prints_the_losses_and_the_verdict(made_run: Path, tmp_path: Path) -> None:
    curve = write_curve(tmp_path, end=0.2, reached=0.3)
    figure = tmp_path / "curve.html"
    options = (made_run, "--width", 64, "--tokens-per-step", 1000)
    result = run("diagnose", curve, *options, "--figure", figure)
    assert result.exit_code == 0, result.output
    printed = " ".join(result.stdout.split())
    for words in (
        "0.3 nats/token after 1,000,000 tokens",
        "bound 0.1",
        "expected 0.3",
        "under-trained: about",
        "! the loss is",
    ):
        assert words in printed
    assert "under-trained" in figure.read_text()
    answer = json.loads(run("diagnose", curve, *options, "--json").stdout)
    assert (answer["verdict"], answer["width"], answer["bound"]) == ("under-trained", 64, 0.1)
    assert answer["end_interval"][0] <= 0.2 <= answer["end_interval"][1]
    assert answer["tokens_for_half"] > 0
    in_bits = json.loads(run("diagnose", curve, *options, "--json", "--unit", "bits").stdout)
    assert (in_bits["reached"], in_bits["unit"]) == (pytest.approx(0.3 * np.log(2)), "nats")


def test_judges_each_student_of_a_run_and_one_alone(students: Path) -> None:
    result = run("diagnose", students)
    assert result.exit_code == 0, result.output
    printed = "".join(result.stdout.split())  # a narrow terminal breaks words
    for words in ("firstcapacity-limited:", "secondunder-trained:", "Leftout:third,whichdiverged"):
        assert words in printed
    answers = json.loads(run("diagnose", students, "--json").stdout)
    assert [(answer["curve"], answer["verdict"]) for answer in answers] == [
        ("first", "capacity-limited"),
        ("second", "under-trained"),
    ]
    alone = json.loads(run("diagnose", students / "students" / "second", "--json").stdout)
    assert alone == answers[1]
    file = students / "students" / "second" / "student.json"
    assert json.loads(run("diagnose", file, students, "--json").stdout) == alone


@pytest.mark.slow
def test_measures_a_teacher_that_is_named(measured: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, teacher, text = measured
    curve = write_curve(tmp_path, end=0.2, reached=0.3)
    options = ("--width", 8, "--tokens-per-step", 10, "--teacher", teacher, "--text", text, "--json")
    answer = json.loads(run("diagnose", curve, *options).stdout)
    assert (answer["teacher"], answer["width"]) == (str(teacher), 8)
    assert answer["bound"] > 0


def test_bad_input_gives_one_sentence(students: Path, tmp_path: Path) -> None:
    made_run, curve = students, write_curve(tmp_path, end=0.2, reached=0.3)
    one = students / "students" / "first"
    steps = ("--tokens-per-step", 1000)
    for arguments, message in (
        ((curve, *steps), "name the run directory of tl-floor measure after the curve, or the teacher with --teacher"),
        ((curve, made_run), "counts steps ('step') and no tokens; set --tokens-per-step"),
        ((curve, made_run, *steps), "does not say how wide the student is; set --width"),
        ((curve, made_run, *steps, "--width", 300), "a student's width must be from 1 to its teacher's 256"),
        ((curve, made_run, *steps, "--width", 8), "the narrowest width of this head floor is 64"),
        ((curve, tmp_path / "none", *steps, "--width", 64), "there is no run at"),
        ((tmp_path / "none.csv", made_run), "there is no learning curve at"),
        ((curve, made_run, "--teacher", "tiny-prose"), "RUN and --teacher name the same thing"),
        ((curve, "--teacher", "tiny-prose", *steps), "does not say how wide the student is; set --width"),
        ((tmp_path, made_run), "holds neither a trainer_state.json nor students"),
        ((students, "--loss", "eval_loss"), "--loss has no effect on students of tl-floor distill"),
        ((students, "--figure", "a.svg"), "has 2 students; save the figure of one"),
        ((one, "--width", 16), "has width 64, not 16; leave out --width"),
    ):
        assert message in refused(run("diagnose", *arguments))
