"""The subpackages import each other in one order only, and importing the package loads no heavy library."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import jaxtyping
import pytest
import torch

import tl_distill_floor
from tests.helpers.source_imports import imported_names
from tl_distill_floor.measuring.hooks import check_finite, resid_post

PACKAGE = "tl_distill_floor"
DIRECTORY = Path(tl_distill_floor.__file__).parent
IMPORT_ORDER = (
    "theory", "storage", "sources", "results", "measuring", "predicting", "sae_training", "distilling", "probing",
    "display", "cli",
)  # fmt: skip
"""Each subpackage may import itself, the ones before it, and the root modules."""
PARTS_OF_DISTILLING = {
    "students": {"students"},
    "training": {"students", "training"},
    "hf_trainer": {"students", "training", "hf_trainer"},
    "planning": {"students", "training", "planning"},
}
"""What each part of `distilling` may import of it."""
ROOT_MODULES = {"errors", "annotations"}
IMPORTS_OF_THEORY = {f"{PACKAGE}.errors", f"{PACKAGE}.theory"}
"""All that `theory` may import of this package."""
FORBIDDEN_LIBRARIES = {
    "theory": {"torch", "transformers", "transformer_lens", "sae_lens", "plotly", "rich"},
    "storage": {"transformers", "transformer_lens", "sae_lens", "plotly", "rich"},
    "results": {"torch", "transformers", "transformer_lens", "sae_lens", "rich"},
    "display": {"torch", "transformers", "transformer_lens", "sae_lens"},
}
"""Libraries that a subpackage may not import."""
HEAVY_LIBRARIES = {"torch", "plotly", "transformers", "transformer_lens", "sae_lens", "datasets"}
MIN_PUBLIC_NAMES = 30


def forbidden_imports(subpackage: str, source: str) -> set[str]:
    """Return the imports of a source that its subpackage may not make."""
    names = imported_names(source)
    allowed = {*IMPORT_ORDER[: IMPORT_ORDER.index(subpackage) + 1], *ROOT_MODULES, "__version__"}
    of_package = {name for name in names if name.split(".")[0] == PACKAGE}
    forbidden = {name for name in of_package if len(name.split(".")) < 2 or name.split(".")[1] not in allowed}
    if subpackage == "theory":
        forbidden |= {name for name in of_package if not any(name.startswith(f"{p}.") for p in IMPORTS_OF_THEORY)}
    return forbidden | {name for name in names if name.split(".")[0] in FORBIDDEN_LIBRARIES.get(subpackage, set())}


def forbidden_parts(part: str, source: str) -> set[str]:
    """Return the imports of a source in a part of `distilling` from parts that it may not import."""
    inside = {name for name in imported_names(source) if name.startswith(f"{PACKAGE}.distilling.")}
    return {name for name in inside if name.split(".")[2] not in PARTS_OF_DISTILLING[part]}


def find_cycle(sources: dict[str, str]) -> list[str]:
    """Return the modules of an import cycle; an empty list if there is none."""
    graph = {}
    for module, source in sources.items():
        names = imported_names(source)
        names |= {name.rpartition(".")[0] for name in names}
        graph[module] = {name for name in names if name in sources} - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def modules_loaded_by(statement: str) -> set[str]:
    """Return the modules that a new Python process has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(completed.stdout.split())


def test_subpackages_and_root_modules_are_the_listed_ones() -> None:
    subpackages = {path.relative_to(DIRECTORY).parts[0] for path in DIRECTORY.glob("*/**/*.py")} - {"assets"}
    assert subpackages == set(IMPORT_ORDER)
    assert {path.stem for path in DIRECTORY.glob("*.py")} == {"__init__", "__main__", *ROOT_MODULES}


@pytest.mark.parametrize("subpackage", IMPORT_ORDER)
def test_subpackage_imports_only_what_it_may(subpackage: str) -> None:
    for file in (DIRECTORY / subpackage).rglob("*.py"):
        assert not forbidden_imports(subpackage, file.read_text()), file


def test_parts_of_distilling_import_only_what_they_may() -> None:
    directory = DIRECTORY / "distilling"
    assert {path.stem for path in directory.glob("*") if path.name != "__pycache__"} == {
        "__init__",
        *PARTS_OF_DISTILLING,
    }
    for part in PARTS_OF_DISTILLING:
        for file in (directory / part).glob("*.py"):
            assert not forbidden_parts(part, file.read_text()), file
    assert forbidden_parts("students", f"from {PACKAGE}.distilling.training.losses import Objective")


@pytest.mark.parametrize("package", [path.parent for path in sorted(DIRECTORY.glob("*/**/__init__.py"))])
def test_subpackage_docstring_names_every_module(package: Path) -> None:
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    modules = {file.stem for file in package.glob("*.py")} - {"__init__"}
    modules |= {file.parent.name for file in package.glob("*/__init__.py")}
    assert {module for module in modules if f"`{module}`" not in docstring} == set()


def test_no_modules_import_each_other() -> None:
    sources = {
        ".".join(file.relative_to(DIRECTORY.parent).with_suffix("").parts): file.read_text()
        for file in DIRECTORY.rglob("*.py")
        if file.name != "__init__.py"
    }
    assert find_cycle(sources) == []


@pytest.mark.parametrize(
    ("subpackage", "source"),
    [
        ("theory", "def f():\n    from tl_distill_floor.measuring.measurement import measure"),
        ("theory", "from tl_distill_floor.storage.atomic import write_atomically"),
        ("theory", "import torch.nn"),
        ("results", "import torch"),
        ("results", "if TYPE_CHECKING:\n    from tl_distill_floor.display.html import to_html"),
        ("measuring", "from tl_distill_floor.predicting import floors"),
        ("distilling", "from tl_distill_floor import probe"),
    ],
)
def test_forbidden_imports_are_detected(subpackage: str, source: str) -> None:
    assert forbidden_imports(subpackage, source)


def test_allowed_imports_are_not_reported() -> None:
    assert not forbidden_imports("cli", "from tl_distill_floor.display.html import to_html")
    assert not forbidden_imports("theory", "from tl_distill_floor.errors import InputError")


def test_import_cycles_are_detected() -> None:
    assert find_cycle({"a.b": "import a.c", "a.c": "def f():\n    from a.b import x"})
    assert not find_cycle({"a.b": "import a.c", "a.c": ""})


@pytest.mark.parametrize(
    "statement",
    [f"import {PACKAGE}", f"import {PACKAGE}.cli.app", f"from {PACKAGE} import floor_from_stats, FloorPrediction"],
)
def test_heavy_libraries_are_loaded_late(statement: str) -> None:
    assert not modules_loaded_by(statement) & HEAVY_LIBRARIES


def test_every_public_name_has_a_docstring() -> None:
    assert len(tl_distill_floor.__all__) > MIN_PUBLIC_NAMES
    for name in tl_distill_floor.__all__:
        assert getattr(tl_distill_floor, name).__doc__, name


def test_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        tl_distill_floor.nonsense  # noqa: B018


def test_types_are_checked_in_the_tests() -> None:
    """The types of arguments are checked, with and without shapes of arrays in the annotations."""
    with pytest.raises(jaxtyping.TypeCheckError, match="int"):
        resid_post("1")
    with pytest.raises(jaxtyping.TypeCheckError, match="activation"):
        check_finite(torch.ones(2, dtype=torch.int64), resid_post(1))


def test_held_out_text_has_one_spelling() -> None:
    """That of `distill(heldout=...)`. Only the field of `Simulation` has another one, which files hold."""
    names = {name for file in DIRECTORY.rglob("*.py") for name in re.findall(r"\w*held_out\w*", file.read_text(), re.I)}
    assert names == {"held_out_sequences"}
    files = [file for file in DIRECTORY.rglob("*.py") if "held_out_sequences" in file.read_text()]
    assert {file.stem for file in files} == {"simulation", "checks"}
