"""The examples run as they stand, and say what they are there to say."""

import ast
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
SAYS = {
    "predict_floor": ["narrowest student"],
    "saelens_workflow": ["features", "nats per token of what this SAE explains"],
    "distil_and_calibrate": ["width16", "follows them best", "train width"],
    "probe": ["by guessing", "word_class:", "at width 64"],
}
QUICK = ("predict_floor",)


def test_every_example_is_run() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(SAYS)
    assert [path.stem for path in FOLDER.glob("*.ipynb")] == ["look_at_a_floor"]


@pytest.mark.filterwarnings("ignore::UserWarning")  # SAELens's, of a text that is shorter than the training
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SAYS]
)
def test_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    out = capsys.readouterr().out
    for words in SAYS[name]:
        assert words in out


@pytest.mark.slow
def test_notebook() -> None:
    """Cell after cell; what stands in the last line is shown, as a notebook does."""
    cells = json.loads((FOLDER / "look_at_a_floor.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    shown = [value for cell in cells if cell["cell_type"] == "code" for value in _run("".join(cell["source"]), names)]
    assert len(shown) == 4
    for value, words in zip(shown, ("Loss floor", "plotly", "plotly", "author"), strict=True):
        assert words in value._repr_html_()


def _run(source: str, names: dict[str, Any]) -> list[Any]:
    *statements, last = ast.parse(source).body
    exec(compile(ast.Module(statements, []), "cell", "exec"), names)
    assert isinstance(last, ast.Expr)
    return [eval(compile(ast.Expression(last.value), "cell", "eval"), names)]
