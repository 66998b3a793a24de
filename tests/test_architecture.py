"""The order of the subpackages, read from the imports in the source; and that importing the package stays fast."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tl_distill_floor

PACKAGE = Path(tl_distill_floor.__file__).parent
OURS = "tl_distill_floor"
ORDER = (
    "theory", "storage", "sources", "results", "measuring", "predicting", "sae_training", "distilling", "probing",
    "display", "cli",
)  # fmt: skip
"""Each subpackage may import itself, the ones before it, and the root modules below."""
ROOT = {"errors", "annotations"}
THEORY_MAY_IMPORT = {f"{OURS}.errors", f"{OURS}.theory"}
FORBIDDEN_LIBRARIES = {
    "theory": {"torch", "transformers", "transformer_lens", "sae_lens", "plotly", "rich"},
    "storage": {"transformers", "transformer_lens", "sae_lens", "plotly", "rich"},
    "results": {"torch", "transformers", "transformer_lens", "sae_lens", "rich"},
    "display": {"torch", "transformers", "transformer_lens", "sae_lens"},
}
"""Libraries that a subpackage does without."""


def imported_names(source: str) -> set[str]:
    """Return the full name of everything that a source imports, inside functions and for type checkers too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def violations(subpackage: str, source: str) -> set[str]:
    """Return the imports of a source that its subpackage may not make."""
    names = imported_names(source)
    allowed = {*ORDER[: ORDER.index(subpackage) + 1], *ROOT, "__version__"}
    ours = {name for name in names if name.split(".")[0] == OURS}
    wrong = {name for name in ours if len(name.split(".")) < 2 or name.split(".")[1] not in allowed}
    if subpackage == "theory":
        wrong |= {name for name in ours if not any(name.startswith(f"{prefix}.") for prefix in THEORY_MAY_IMPORT)}
    return wrong | {name for name in names if name.split(".")[0] in FORBIDDEN_LIBRARIES.get(subpackage, set())}


def cycle(sources: dict[str, str]) -> list[str]:
    """Return the modules of an import cycle; an empty list if there is none."""
    graph = {}
    for module, source in sources.items():
        names = imported_names(source)
        graph[module] = {name for name in (*names, *(n.rpartition(".")[0] for n in names)) if name in sources} - {
            module
        }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_there_are_no_other_modules() -> None:
    subpackages = {path.parent.name for path in PACKAGE.glob("*/*.py")} - {"assets"}
    assert subpackages == set(ORDER)
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", *ROOT}


@pytest.mark.parametrize("subpackage", ORDER)
def test_each_subpackage_imports_only_what_it_may(subpackage: str) -> None:
    for file in (PACKAGE / subpackage).glob("*.py"):
        assert not violations(subpackage, file.read_text()), file


@pytest.mark.parametrize("subpackage", ORDER)
def test_each_subpackage_says_what_it_holds(subpackage: str) -> None:
    docstring = ast.get_docstring(ast.parse((PACKAGE / subpackage / "__init__.py").read_text())) or ""
    modules = {file.stem for file in (PACKAGE / subpackage).glob("*.py")} - {"__init__"}
    assert {module for module in modules if f"`{module}`" not in docstring} == set()


def test_no_modules_import_each_other() -> None:
    sources = {
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts): file.read_text()
        for file in PACKAGE.rglob("*.py")
        if file.name != "__init__.py"
    }
    assert cycle(sources) == []


def test_the_guards_can_fail() -> None:
    assert violations("theory", "def f():\n    from tl_distill_floor.measuring.measurement import measure")
    assert violations("theory", "from tl_distill_floor.storage.atomic import write_atomically")
    assert violations("theory", "import torch.nn")
    assert violations("results", "import torch")
    assert violations("results", "if TYPE_CHECKING:\n    from tl_distill_floor.display.html import to_html")
    assert violations("measuring", "from tl_distill_floor.predicting import floors")
    assert violations("distilling", "from tl_distill_floor import probe")
    assert not violations("cli", "from tl_distill_floor.display.html import to_html")
    assert not violations("theory", "from tl_distill_floor.errors import InputError")
    assert cycle({"a.b": "import a.c", "a.c": "def f():\n    from a.b import x"})
    assert not cycle({"a.b": "import a.c", "a.c": ""})


def modules_loaded_by(statement: str) -> set[str]:
    """Return the modules that a new Python process has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(out.stdout.split())


@pytest.mark.parametrize(
    "statement", [f"import {OURS}", f"import {OURS}.cli.app", f"from {OURS} import floor_from_stats, FloorPrediction"]
)
def test_heavy_libraries_are_loaded_late(statement: str) -> None:
    assert not modules_loaded_by(statement) & {
        "torch",
        "plotly",
        "transformers",
        "transformer_lens",
        "sae_lens",
        "datasets",
    }


def test_every_public_name_is_documented() -> None:
    assert len(tl_distill_floor.__all__) > 30
    for name in tl_distill_floor.__all__:
        assert getattr(tl_distill_floor, name).__doc__, name
    with pytest.raises(AttributeError, match="nonsense"):
        tl_distill_floor.nonsense  # noqa: B018
