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
}


def test_every_example_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(EXPECTED_OUTPUT)
    assert [path.stem for path in FOLDER.glob("*.ipynb")] == ["look_at_a_floor"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # SAELens warns when a text is shorter than the training
@pytest.mark.parametrize("name", EXPECTED_OUTPUT)
def test_example_prints_the_expected_words(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    out = capsys.readouterr().out
    for words in EXPECTED_OUTPUT[name]:
        assert words in out


@pytest.mark.slow
def test_notebook_cells_display_their_results() -> None:
    """Run the cells in order. A notebook displays the value of a cell's last line."""
    cells = json.loads((FOLDER / "look_at_a_floor.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    displayed = [run_cell("".join(cell["source"]), names) for cell in cells if cell["cell_type"] == "code"]
    assert len(displayed) == 4
    for value, words in zip(displayed, ("Feature floor", "plotly", "plotly", "author"), strict=True):
        assert words in value._repr_html_()


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run the code of a cell, and return the value of its last line."""
    *statements, last = ast.parse(source).body
    exec(compile(ast.Module(statements, []), "cell", "exec"), names)
    assert isinstance(last, ast.Expr)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)
