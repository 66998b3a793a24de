"""The examples run unchanged, and print what they promise."""

import ast
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
EXPECTED_OUTPUT = {
    "predict_floor": ["narrowest student"],
    "saelens_workflow": ["features", "nats per token of what this SAE explains"],
    "distil_and_calibrate": ["width16", "follows them best", "train width"],
    "probe": ["by guessing", "word_class:", "at width 64"],
    "hf_trainer": ["10,240 tokens: KL(teacher ‖ student) = ", "saved a GPTNeoXForCausalLM with 724,352 parameters"],
}


def test_every_example_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {*EXPECTED_OUTPUT, "trl_gkd"}
    assert [path.stem for path in FOLDER.glob("*.ipynb")] == ["from_name_to_decision"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # SAELens warns when a text is shorter than the training
@pytest.mark.parametrize("name", EXPECTED_OUTPUT)
def test_example_prints_the_expected_words(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    out = capsys.readouterr().out
    for words in EXPECTED_OUTPUT[name]:
        assert words in out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::Warning")  # TRL uses deprecated arguments of transformers
def test_example_of_trl_trains_the_exported_student(capsys: pytest.CaptureFixture[str]) -> None:
    """The test is skipped without TRL, which is no dependency."""
    pytest.importorskip("trl")
    runpy.run_path(str(FOLDER / "trl_gkd.py"), run_name="__main__")
    assert "step 6: " in capsys.readouterr().out


@pytest.mark.slow
def test_notebook_cells_display_their_results() -> None:
    """Run the cells in order. A notebook displays the value of a cell's last line."""
    cells = json.loads((FOLDER / "from_name_to_decision.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    displayed = [run_cell("".join(cell["source"]), names) for cell in cells if cell["cell_type"] == "code"]
    expected = (
        "head floor",
        "Feature floor",
        "plotly",
        "plotly",
        "Train a student of width",
        "plotly",
        "verdict",
        "plotly",
    )
    for value, words in zip([value for value in displayed if value is not None], expected, strict=True):
        assert words in value._repr_html_()


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run the code of a cell, and return the value of its last line; None if that is no expression."""
    *statements, last = ast.parse(source).body
    is_value = isinstance(last, ast.Expr)
    exec(compile(ast.Module(statements if is_value else [*statements, last], []), "cell", "exec"), names)
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)
