"""Run the command line in this process."""

from typing import Any

from typer.testing import CliRunner, Result

from tl_distill_floor.cli.app import app


def run(*args: Any) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args])


def refused(result: Result) -> str:
    """The sentence of a command that ended as bad input does: status 2, one line, no traceback, nothing on stdout."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]
