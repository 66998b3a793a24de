"""The examples in the docstrings of the package run and print what they show."""

import doctest
import pkgutil
from importlib import import_module

import pytest

import tl_distill_floor

MIN_EXAMPLES = 60
"""Examples that are run; the ones that load a large file or train a model are skipped."""
MODULES = sorted(module.name for module in pkgutil.walk_packages(tl_distill_floor.__path__, "tl_distill_floor."))


@pytest.mark.parametrize("name", [tl_distill_floor.__name__, *MODULES])
def test_examples_in_docstrings(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0, capsys.readouterr().out


def test_examples_are_collected_and_run() -> None:
    finder = doctest.DocTestFinder()
    examples = [
        example for name in MODULES for docstring in finder.find(import_module(name)) for example in docstring.examples
    ]
    assert len([example for example in examples if not example.options.get(doctest.SKIP)]) >= MIN_EXAMPLES
