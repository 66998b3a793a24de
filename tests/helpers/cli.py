"""Run the command line in this process."""

from pathlib import Path

from typer.testing import CliRunner, Result

from tl_distill_floor.cli.app import app


def run(*args: str | Path | float) -> Result:
    """Run `tl-floor` with some arguments, and return its exit status and output."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


def refused(result: Result) -> str:
    """Return the error message of a command, after checking that it failed as bad input must.

    That is: exit status 2, one line on stderr, no traceback, and nothing on stdout.
    """
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]
