"""Test the application: help, version, errors, progress, and the parsing of options."""

import math
import re
import shlex
from pathlib import Path

import pytest
import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tests.helpers.cli import refused, run
from tl_distill_floor import InputError, __version__
from tl_distill_floor.cli.app import app
from tl_distill_floor.cli.layers import parse_layers, sae_of_each_layer
from tl_distill_floor.cli.options import default_run_directory
from tl_distill_floor.cli.output import print_json, print_result
from tl_distill_floor.cli.processes import is_first_process, local_device
from tl_distill_floor.cli.progress import Bar, StagedProgress, progress_bar
from tl_distill_floor.display.tables import key_value_table
from tl_distill_floor.errors import options_of_command_line

COMMANDS = (
    "measure", "compare", "saes", "train-sae", "toy", "lost", "distill", "calibrate", "plan",
    "diagnose", "probe", "report",
)  # fmt: skip


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"tl-distill-floor {__version__}\n")


def test_help_lists_every_command() -> None:
    assert sorted(typer.main.get_group(app).commands) == sorted(COMMANDS)
    output = run("--help").stdout
    for name in (*COMMANDS, "--install-completion", "--version"):
        assert name in output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained_in_80_columns(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = run(command, "--help")
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    parameters = typer.main.get_group(app).commands[command].params
    assert [parameter.name for parameter in parameters if not parameter.help] == []


def test_a_run_is_named_after_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-model" / "logs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "my-model" / "logs")
    names = [default_run_directory(model).name for model in ("owner/name", "../tiny.gguf", "..", "./", "/")]
    assert names == ["name", "tiny", "my-model", "logs", "model"]
    assert default_run_directory("gpt2", 4) == Path("runs/gpt2-layer4")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("the text is\ntoo short"), "tl-floor: the text is too short"),
        (OSError("no space"), "tl-floor: no space; add --debug to see the traceback"),
        (RuntimeError("odd"), "tl-floor: unexpected RuntimeError: odd; add --debug to see the traceback"),
    ],
)
def test_an_error_is_one_sentence(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise error

    monkeypatch.setattr("tl_distill_floor.sources.sae_directory.find_saes", fail)
    assert refused(run("saes", "tiny-prose")) == message
    result = run("saes", "tiny-prose", "--debug")
    assert (result.exit_code, "Traceback" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("plan", "my run"), "--out"),
        (("report", "my run"), "--out"),
        (("diagnose", "my run", "my run"), "--out"),
        (("distill", "tiny-prose", "--widths", "8", "--match", "kept", "--out", "my run"), "--out"),
        (("measure", "tiny-prose", "--text", "my set"), "as"),
    ],
)
def test_commands_in_messages_can_be_typed(
    command: tuple[str, ...], option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path with a space in it is one word of the command."""
    from datasets import Dataset, DatasetDict

    monkeypatch.chdir(tmp_path)
    rows = Dataset.from_dict({"text": ["a"]})
    DatasetDict({"train": rows, "test": rows}).save_to_disk("my set")
    if command[0] == "diagnose":
        Path("my run").mkdir()
        Path("my run", "students").mkdir()
    words = shlex.split(refused(run(*command)))
    assert words[words.index(option) + 1] in ("my run", "my set:SPLIT")


@pytest.mark.parametrize(
    ("command", "interrupted"),
    [
        ("saes tiny-prose", "sources.sae_directory.find_saes"),
        ("measure --no-sae", "predicting.without_sae.predict_without_sae"),
    ],
)
def test_an_interrupted_command_without_checkpoints(
    command: str, interrupted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"tl_distill_floor.{interrupted}", interrupt)
    monkeypatch.chdir(tmp_path)
    result = run(*command.split())
    assert (result.exit_code, result.stderr) == (130, "tl-floor: interrupted; type the same command again\n")


@pytest.mark.parametrize("choice", [("measure", "--cost", "free"), ("probe", "runs/x", "--pool", "most")])
def test_rejects_an_unknown_choice(choice: tuple[str, ...]) -> None:
    result = run(*choice)
    assert result.exit_code == 2
    assert "is not one of" in " ".join(result.stderr.split())


def test_parses_layers(tmp_path: Path) -> None:
    assert parse_layers(None, "tiny-prose", None) == [None]
    assert parse_layers("8, 4,4", "tiny-prose", None) == [4, 8]
    assert parse_layers("all", "tiny-prose", None) == [1]
    for layer in (2, 11):
        (tmp_path / f"sae{layer}").touch()
    assert parse_layers("all", "tiny-prose", f"{tmp_path}/sae{{layer}}") == [2, 11]
    with pytest.raises(InputError, match="layers must be integers separated by commas"):
        parse_layers("two", "tiny-prose", None)
    with pytest.raises(InputError, match="no SAE is known for any layer of tiny-prose"):
        parse_layers("all", "tiny-prose", "one-sae")
    with pytest.raises(InputError, match=r"there is no model 'tiny-pros'; did you mean .*tiny-prose"):
        parse_layers("all", "tiny-pros", None)


def test_saes_names_an_unknown_model_or_layer() -> None:
    assert "there is no model 'gpt2-smal'; did you mean" in refused(run("saes", "gpt2-smal"))
    assert "tiny-prose has layers 0 to 3, got layer 7" in refused(run("saes", "tiny-prose", "--layer", 7))
    message = refused(run("saes", "tiny-prose", "--layer", 0))
    assert (
        "no SAE is known for tiny-prose at layer 0, only at layer 1; set --layer to one of these, train one with"
        in message
    )


def test_names_the_sae_of_each_layer() -> None:
    assert sae_of_each_layer("sae{layer}", [2, 11]) == ["sae2", "sae11"]
    assert sae_of_each_layer("sae", [None]) == ["sae"]
    assert sae_of_each_layer(None, [2, 11]) == [None, None]
    with options_of_command_line(), pytest.raises(InputError, match="--sae sae names one SAE for 2 layers"):
        sae_of_each_layer("sae", [2, 11])


def test_each_process_of_a_launcher_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (is_first_process(), local_device("cuda")) == (True, "cuda")
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (is_first_process(), local_device("cuda"), local_device("cpu")) == (False, "cuda:1", "cpu")


def test_stages_share_one_estimate_of_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("tl_distill_floor.cli.progress.time.monotonic", lambda: now[0])
    stages = StagedProgress({"measuring": 60.0, "simulating": 120.0}, quiet=True)
    assert stages.minutes_left("measuring", 0.0) is None
    now[0] += 30.0  # as fast as estimated
    assert stages.minutes_left("measuring", 0.5) == pytest.approx(2.5)
    with stages("tokens", "measuring") as progress:
        assert progress is None
    now[0] += 90.0  # twice as long as estimated
    assert stages.minutes_left("simulating", 1e-9) == pytest.approx(4.0)
    assert stages.minutes_left("simulating", 1.0) == 0.0
    # Of a resumed measurement, only what is done since then counts: 6 s for a tenth, so 120 s for the simulation.
    resumed = StagedProgress({"measuring": 60.0, "simulating": 120.0}, quiet=True)
    assert resumed.minutes_left("measuring", 0.9) is None
    now[0] += 6.0
    assert resumed.minutes_left("measuring", 1.0) == pytest.approx(2.0)


def test_a_stage_names_its_number_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tl_distill_floor.cli.progress.SECONDS_PER_LINE", 0.0)
    stages = StagedProgress({"measuring": 60.0, "simulating": 120.0}, quiet=False)
    for stage in ("measuring", "simulating"):
        with stages("tokens", stage) as progress:
            assert progress is not None
            progress(0, 100)
            progress(50, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("measuring (1 of 2): 50 of 100 tokens, ")
    assert lines[1].startswith("simulating (2 of 2): 50 of 100 tokens, ")
    assert all(line.endswith("min left in all") for line in lines)


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("tokens", "measuring", quiet=True) as progress:
        assert progress is None
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar("tokens", "measuring", quiet=False) as progress:
        assert isinstance(progress, Bar)
        progress(256, 1024)
        progress(512, 1024, "almost half")
    assert capsys.readouterr().out == ""


def test_json_holds_no_numbers_that_are_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    """Python's `json` writes NaN and Infinity, which other programs refuse."""
    print_json({"loss": math.nan, "widths": [64, math.inf], "interval": (-math.inf, 0.5), "name": "NaN"})
    assert capsys.readouterr().out == '{"loss": null, "widths": [64, null], "interval": [null, 0.5], "name": "NaN"}\n'


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """rich replaces names of emoji."""
    table = Table(":on:")
    table.add_row("owner/data:on:train")
    print_result(Group(table, "runs/:heart:"), ":key: [bold]")
    output = capsys.readouterr().out
    assert [name in output for name in (":on:", "owner/data:on:train", "runs/:heart:", ":key: [bold]")] == [True] * 4


def test_lines_do_not_end_with_spaces(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """rich fills up the lines of tables, and the last column of a row may be empty."""
    table = key_value_table([("F", "2,002"), ("SAE", "tiny-prose-sae"), ("empty", "")], "title")
    for terminal in ("", "1"):  # with colours, a space may be in front of an escape sequence
        monkeypatch.setenv("FORCE_COLOR", terminal)
        print_result(Group(table, Text(), "word " * 30), "Saved  ")
        lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).split("\n")
        assert lines[:5] == ["title", "F      2,002", "SAE    tiny-prose-sae", "empty", ""]
        assert lines[-2:] == ["Saved", ""]
        assert len(lines) == 9
        assert [line for line in lines if line != line.rstrip()] == []


def test_control_characters_of_names_do_not_reach_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    table.add_row(Text("\x1b[2Ja\x9b1m", "bold"))
    for terminal, row in (("", "�[2Ja�1m\n"), ("1", "\x1b[1m�[2Ja�1m\x1b[0m\n")):
        monkeypatch.setenv("FORCE_COLOR", terminal)
        print_result(Group(table, Text("two\nlines")), "x\x1b")
        output = capsys.readouterr().out
        assert row in output
        assert output.replace("\x1b[2m", "").replace("\x1b[0m", "").endswith("two\nlines\nx�\n")
    assert refused(run("lost", "\x1b[2J")).startswith("tl-floor: there is no run at �[2J;")
