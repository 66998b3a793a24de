"""The declared dependencies, and TransformerLens 4, which SAELens does not allow yet."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.source_imports import imported_names

ROOT = Path(__file__).parents[1]
PACKAGE = "tl_distill_floor"
USED_WITHOUT_IMPORT = {"gguf": "transformers imports it to load a .gguf file"}
"""Dependencies that the package does not import, and why it needs them."""
USE_WITH_TRANSFORMER_LENS_4 = """
import sys
import pytest
import torch
import tests.helpers.transformer_lens_4
from tl_distill_floor import InputError, build_student, load_teacher, measure, predict_floor
from tl_distill_floor.cli.app import main

with pytest.raises(ImportError):
    from transformer_lens import HookedTransformer
with pytest.raises(ImportError):
    import transformer_lens.loading_from_pretrained
teacher = load_teacher("tiny-prose").model
ids = torch.randint(1, 4000, (8, 32), generator=torch.Generator().manual_seed(0))
assert measure(teacher, "tiny-prose-sae", ids).n_tokens == 8 * 31
assert predict_floor(teacher, "tiny-prose-sae", ids, widths=[8], steps=4).unit == "nats"
assert build_student(teacher, 64).config.hidden_size == 64
with pytest.raises(InputError, match="'fold_ln': True}, which needs TransformerLens below 4"):
    load_teacher("gpt2-small", model_kwargs={"fold_ln": True})
sys.argv = "tl-floor measure --cost energy --tokens 3000 --widths 8 --steps 4 --out".split() + sys.argv[1:]
main()
"""


def project() -> dict[str, Any]:
    """Return the table `[project]` of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def normalized(requirement: str) -> str:
    """Return the name of a requirement's distribution as package indexes compare it."""
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def imported_distributions() -> dict[str, set[str]]:
    """Return the third-party modules that the package imports, each with the distributions that may provide it."""
    sources = [file.read_text() for file in (ROOT / PACKAGE).rglob("*.py")]
    modules = {name.split(".")[0] for source in sources for name in imported_names(source)}
    installed = packages_distributions()
    return {
        module: {normalized(distribution) for distribution in installed[module]}
        for module in modules - sys.stdlib_module_names - {PACKAGE}
    }


def test_every_dependency_has_a_lower_bound() -> None:
    for requirements in (project()["dependencies"], *project()["optional-dependencies"].values()):
        assert [requirement for requirement in requirements if ">=" not in requirement] == []


def test_every_dependency_is_imported() -> None:
    declared = {normalized(requirement) for requirement in project()["dependencies"]}
    imported = set().union(*imported_distributions().values())
    assert declared - imported == set(USED_WITHOUT_IMPORT)


def test_every_imported_library_is_declared() -> None:
    declared = {normalized(requirement) for requirement in project()["dependencies"]}
    assert {module for module, names in imported_distributions().items() if not names & declared} == set()


@pytest.mark.slow
def test_everything_but_processed_teachers_works_with_transformer_lens_4(tmp_path: Path) -> None:
    command = [sys.executable, "-c", USE_WITH_TRANSFORMER_LENS_4, str(tmp_path / "run")]
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    assert "Feature floor (MSE)" in completed.stdout
