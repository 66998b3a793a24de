"""Which module may import which, read from the source; and that importing stays quick."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tl_distill_floor"
ROOMS = ("theory", "sources", "measuring", "students", "present", "cli")
OURS = "tl_distill_floor"
# A room may import itself, the hall (modules of the package's root), and the rooms named here.
MAY_IMPORT = {
    "theory": set(),
    "sources": {"measuring"},
    "measuring": {"sources"},
    "students": {"sources", "measuring", "theory"},
    "present": {"sources"},
    "cli": {"theory", "sources", "measuring", "students", "present"},
}
LENSES = {"transformer_lens", "sae_lens", "transformers"}
SEES_LENSES = {"sources", "measuring", "students", "cli"}


def imports(source: str) -> set[str]:
    """Every module that a source imports, at any depth, those for type checkers included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def violations(room: str, source: str) -> set[str]:
    allowed = MAY_IMPORT[room] | {room}
    wrong = {
        name for name in imports(source)
        if name.startswith(f"{OURS}.") and name.split(".")[1] in ROOMS and name.split(".")[1] not in allowed
    }  # fmt: skip
    if room in ("measuring", "students"):  # what is measured does not know what is predicted
        wrong |= {name for name in imports(source) if name == f"{OURS}.theory.floor"}
    if room not in SEES_LENSES:
        wrong |= {name for name in imports(source) if name.split(".")[0] in LENSES}
    return wrong


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room: str) -> None:
    for file in (PACKAGE / room).glob("*.py"):
        assert not violations(room, file.read_text()), file


def test_the_guard_can_fail() -> None:
    assert violations("theory", "def f():\n    from tl_distill_floor.measuring.features import measure") != set()
    assert violations("theory", "import sae_lens.saes") != set()
    assert violations("measuring", "from tl_distill_floor.theory.floor import floor_from_stats") != set()
    assert violations("students", "from tl_distill_floor.theory.floor import floor_from_stats") != set()


@pytest.mark.parametrize(
    ("module", "may_import"),
    [
        ("checkpoint", {"errors", "files"}),
        ("codes", {"errors"}),
        ("contexts", {"errors"}),
        ("files", {"errors"}),
        ("records", {"codes", "contexts", "errors", "files"}),
    ],
)
def test_what_is_stored_imports_nothing_of_ours_but_errors(module: str, may_import: set[str]) -> None:
    ours = {name for name in imports((PACKAGE / f"{module}.py").read_text()) if name.startswith(OURS)}
    assert ours <= {f"{OURS}.{name}" for name in may_import}


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(out.stdout.split())


@pytest.mark.parametrize("statement", [f"import {OURS}", f"import {OURS}.cli.app", f"import {OURS}.theory.floor"])
def test_torch_is_loaded_late(statement: str) -> None:
    assert not loaded_by(statement) & {"torch", "transformers", "transformer_lens", "sae_lens", "datasets"}


def test_every_public_name_is_there() -> None:
    import tl_distill_floor

    for name in tl_distill_floor.__all__:
        assert getattr(tl_distill_floor, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tl_distill_floor.nonsense  # noqa: B018
