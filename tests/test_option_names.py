"""Messages name the options of the command line in a command, and the parameters of the library in Python."""

import ast
import dataclasses
import inspect
import pickle
import re
from pathlib import Path

import pytest
import typer

import tl_distill_floor
from tests.helpers.cli import refused, run
from tl_distill_floor import InputError, predict_floor
from tl_distill_floor.cli.app import app
from tl_distill_floor.display.tables import warning_lines
from tl_distill_floor.errors import PARAMETERS, name_options, options_of_command_line

DIRECTORY = Path(tl_distill_floor.__file__).parent
OTHER_PROGRAMS = {"--fsdp_version", "--nproc-per-node", "--use_fsdp"}
"""Options of accelerate and torchrun."""
WITHOUT_PARAMETER = {"--pilots", "--promoted", "--train"}
"""Options that Python has as functions: `choose_pilots`, `add_promoted_tokens` and `train_pilots`."""
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*(?: COLUMN)?")
COMMANDS = typer.main.get_command(app).commands


def messages(source: str) -> list[str]:
    """Return the strings of a module without its docstrings; values in f-strings are written as {}."""
    tree = ast.parse(source)
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings | parts:
            texts.append(node.value)
    return texts


def options_of(command: str) -> set[str]:
    """Return the options of a command, such as --layer."""
    return {option for parameter in COMMANDS[command].params for option in parameter.opts + parameter.secondary_opts}


def unknown_options(message: str) -> set[str]:
    """Return the options in a message that nobody can type: in a command, in another command, or in Python."""
    unknown = set()
    for command, options in re.findall(r"tl-floor ([a-z-]+)((?:(?!; |, |\)| \().)*)", message):
        unknown |= set(OPTION.findall(options)) - options_of(command)
    every_option = set.union(*map(options_of, COMMANDS)) | OTHER_PROGRAMS
    unknown |= {option for option in OPTION.findall(message) if option.split()[0] not in every_option}
    in_python = re.sub(r"tl-floor (?:(?!; |, |\)| \().)*", "", message)
    return unknown | (set(OPTION.findall(in_python)) - set(PARAMETERS) - OTHER_PROGRAMS - WITHOUT_PARAMETER)


def test_every_option_in_a_message_can_be_typed() -> None:
    files = [file for file in DIRECTORY.rglob("*.py") if file.parent.name != "cli" and file.name != "errors.py"]
    texts = {text: file for file in files for text in messages(file.read_text()) if OPTION.search(text)}
    assert len(texts) > 100
    for text, file in texts.items():
        assert not unknown_options(text), (file, text)
    assert {option for text in texts for option in OPTION.findall(text)} >= set(PARAMETERS)  # none is left over


@pytest.mark.parametrize(
    "message", ["set --layers", "add --json", "measure with tl-floor measure --lr", "leave out --no-sae"]
)
def test_an_option_that_cannot_be_typed_is_noticed(message: str) -> None:
    assert unknown_options(message)


def test_every_parameter_is_one_of_the_library() -> None:
    public = [getattr(tl_distill_floor, name) for name in tl_distill_floor.__all__ if name != "InputError"]
    functions = [item for item in public if inspect.isfunction(item)]
    configs = [item for item in public if dataclasses.is_dataclass(item) and item.__name__.endswith("Config")]
    parameters = {name for item in [*functions, *configs] for name in inspect.signature(item).parameters}
    for names in PARAMETERS.values():
        without_value = re.sub(r"=(True|False|COLUMN)$", "", names)
        assert set(re.sub(r"^load_sae's |= or ", " ", without_value).split()) <= parameters, names


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("set --context-size lower, or give more --tokens", "set context_size= lower, or give more n_tokens="),
        ("not layer 5; set --layer 3, or another --sae", "not layer 5; set layer=3, or another sae="),
        ("use --dtype fp32, or --cost energy", 'use dtype="fp32", or cost="energy"'),
        ("try --lr 0.001, --min-speedup 1.5 or --lr 1e-05", "try lr=0.001, min_speedup=1.5 or lr=1e-05"),
        ("try --widths 64,128,256", "try widths=[64, 128, 256]"),
        ("add --force, or leave out --no-head", "add force=True, or leave out head=False"),
        ("name one with --tokens COLUMN: a, b", "name one with tokens=COLUMN: a, b"),
        ("name it with --label", "name it with label= or labels="),
        ("use --start random", 'use start="random"'),
        ("""with --sae-format '{"k": 3, "a": 1}'""", """with load_sae's sae_format='{"k": 3, "a": 1}'"""),
        ("run tl-floor lost RUN --width 3, or set --width", "run tl-floor lost RUN --width 3, or set width="),
        ("accelerate with --fsdp_version 2; a--layer 3", "accelerate with --fsdp_version 2; a--layer 3"),
    ],
)
def test_options_become_parameters_in_python_and_stay_in_a_command(message: str, expected: str) -> None:
    error = InputError(message)
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == name_options(message) == expected
    with options_of_command_line():
        assert str(error) == name_options(message) == message


def test_the_same_mistake_names_the_option_or_the_parameter(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has layers 0 to 3, got layer 9; set layer=$"):
        predict_floor("tiny-prose", layer=9)
    message = refused(run("measure", "tiny-prose", "--layer", 9, "--out", tmp_path / "run"))
    assert message == "tl-floor: tiny-prose has layers 0 to 3, got layer 9; set --layer"


def test_warnings_of_a_run_are_shown_with_the_names_that_the_reader_types() -> None:
    stored = ["the head floor was not computed: 9 GB are free; name fewer widths with --widths"]

    def shown() -> list[str]:
        return [str(line) for line in warning_lines(stored).renderables]

    assert shown() == ["! the head floor was not computed: 9 GB are free; name fewer widths with widths="]
    with options_of_command_line():
        assert shown() == [f"! {stored[0]}"]
