"""Every command refuses options that have no effect, before it loads anything."""

from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from tests.helpers.cli import refused, run
from tl_distill_floor.cli.unused_options import CommandWithContext, refuse_unused
from tl_distill_floor.errors import options_of_command_line

LEAVE_IT, LEAVE_THEM = "leave it out", "leave them out"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "measure --no-sae --layer 1 --sae a --sae-format b --cost energy --cost-tokens 9 --samples 2 --min-count 2"
            " --no-head --force --resume",
            "--layer, --sae, --sae-format, --cost, --cost-tokens, --samples, --min-count, --no-head, --force and"
            " --resume have no effect with --no-sae, which predicts from the head floor alone, without checkpoints;"
            f" {LEAVE_THEM}",
        ),
        (
            "measure --cost energy --cost-tokens 9 --samples 2",
            f"--cost-tokens has no effect with --cost energy, which is measured on all tokens; {LEAVE_IT}",
        ),
        (
            "measure --cost ablation --samples 2",
            f"--samples has no effect with --cost ablation, which samples no outputs; {LEAVE_IT}",
        ),
        (
            "lost RUN --sae a --sae-format b",
            "--sae and --sae-format have no effect without --promoted, which loads the SAE; add --promoted, or"
            f" {LEAVE_THEM}",
        ),
        ("lost RUN --feature 3 --top 5", f"--top has no effect with --feature, which shows one feature; {LEAVE_IT}"),
        (
            "distill --match activation --sae a --sae-format b",
            "--sae and --sae-format have no effect unless the students match the part of the activation that features"
            f" reconstruct; add --match kept, or {LEAVE_THEM}",
        ),
        (
            "distill --match-layer 1 --match-weight 3",
            "--match-layer and --match-weight have no effect without --match; add --match activation or --match kept,"
            f" or {LEAVE_THEM}",
        ),
        (
            "distill --cross-entropy 1 --temperature 2",
            f"--temperature has no effect with --cross-entropy 1, which leaves out the divergence; {LEAVE_IT}",
        ),
        (
            "plan RUN --max-width 8 --init svd",
            f"--start has no effect without --export, the directory of the weights; add --export DIR, or {LEAVE_IT}",
        ),
        (
            "plan RUN --max-width 8 --train",
            f"--train has no effect without --pilots, the students that it trains; add --pilots, or {LEAVE_IT}",
        ),
        (
            "plan RUN --pilots --tokens 9 --text a.txt",
            f"--tokens and --text have no effect unless pilots are trained; add --pilots --train, or {LEAVE_THEM}",
        ),
        (
            "diagnose curve.csv RUN --text a.txt --device cuda",
            "--text and --device have no effect without --teacher: the prediction of the run is used, and nothing is"
            f" measured; add --teacher MODEL, or {LEAVE_THEM}",
        ),
        (
            "probe RUN --selection mean-difference --controls 3",
            "--selection and --controls have no effect without --sparse; add --sparse K, such as --sparse 8, or"
            f" {LEAVE_THEM}",
        ),
        (
            "probe RUN --sparse 8 --text a.txt --feature-tokens 9",
            f"--text and --feature-tokens have no effect with --sparse, which decodes no features; {LEAVE_THEM}",
        ),
        (
            "probe RUN --text a.txt --feature-tokens 0",
            f"--text has no effect with --feature-tokens 0, which decodes no features; {LEAVE_IT}",
        ),
        (
            "report RUN RUN --compare --students RUN --width 8 --top 5 --promoted",
            "--students, --width, --top and --promoted have no effect with --compare, which shows neither students nor"
            f" lost features; {LEAVE_THEM}",
        ),
        # The default of --seeds is 5, and the paper's configurations have 20.
        (
            "toy --paper --features 20 --alpha 0.8 --widths 2 --slope 2 --teacher-width 9 --seeds 5 --steps 9",
            "--features, --alpha, --widths, --slope, --teacher-width, --seeds and --steps have no effect with --paper,"
            f" which has its own configurations; {LEAVE_THEM}",
        ),
        (
            "toy --out x.json",
            f"--out has no effect without --paper, whose results it holds; save what --json prints, or {LEAVE_IT}",
        ),
    ],
)
def test_options_without_effect_are_refused(
    command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(run(*command.split())) == f"tl-floor: {message}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        "lost RUN --feature 3 --top 20",
        "diagnose RUN/students/a.csv RUN --device cpu",
        "report RUN RUN --compare --top 20",
    ],
)
def test_a_default_that_is_given_is_accepted(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused(run(*command.split()))
    assert "no effect" not in message
    assert "RUN" in message  # what comes next: there is no such run


def test_names_the_option_that_was_given() -> None:
    """A flag that is given as off, and an option with two names; a parameter that does not exist is an error."""
    command = typer.Typer()

    @command.command(cls=CommandWithContext)
    def show(
        ctx: typer.Context,
        head: bool = True,
        start: Annotated[str, typer.Option("--start", "--init")] = "svd",
        wrong: bool = False,
    ) -> None:
        refuse_unused(ctx, ["head", "start", *(["heads"] if wrong else [])], "here")
        print(head, start)

    assert CliRunner().invoke(command, ["--head"]).stdout == "True svd\n"
    message = "--no-head and --start have no effect here; leave them out"
    with options_of_command_line():
        assert str(CliRunner().invoke(command, ["--no-head", "--init", "random"]).exception) == message
    assert isinstance(CliRunner().invoke(command, ["--wrong"]).exception, KeyError)
