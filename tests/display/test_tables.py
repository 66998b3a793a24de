"""Tables on narrow consoles, and formatted numbers."""

import io

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tl_distill_floor.cli.output import print_result
from tl_distill_floor.display.tables import format_share, plain_table, shrink_widths


def table_of_losses() -> Table:
    """Return a table with a name, a loss and an interval."""
    table = plain_table("Losses")
    table.add_column("name")
    for heading in ("one per dimension", "95 %"):
        table.add_column(heading, justify="right")
    table.add_row(Text("blocks.1.hook_resid_post"), "0.04763", "0.0536–6.28")
    table.add_row(Text("null, log size"), "12.5", "2.44 (-5.6…10)")
    return table


def lines(width: int, table: Table) -> list[str]:
    """Return the lines that a console of a width shows of a table."""
    console = Console(width=width, file=io.StringIO())
    console.print(table, crop=False)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [10, 30, 50, 60, 200])
def test_no_word_or_number_is_cut(width: int) -> None:
    words = " ".join(lines(width, table_of_losses())).split()
    assert {"blocks.1.hook_resid_post", "log", "size", "dimension", "0.04763", "0.0536–6.28", "(-5.6…10)"} <= set(words)


def test_headings_and_names_are_broken_before_numbers() -> None:
    # 24 + 9 + 14 characters and two gaps of 2
    assert lines(51, table_of_losses()) == [
        "Losses",
        "                            one per",
        "name                      dimension            95 %",
        "blocks.1.hook_resid_post    0.04763     0.0536–6.28",
        "null, log size                 12.5  2.44 (-5.6…10)",
    ]
    assert max(map(len, lines(50, table_of_losses()))) == 50  # the interval is broken at its space


def test_long_lines_reach_the_output_of_a_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    print_result(table_of_losses())
    printed = capsys.readouterr().out
    assert "0.0536–6.28" in printed
    assert "(-5.6…10)" in printed


def test_widest_column_is_shrunk_first() -> None:
    assert shrink_widths([20, 8, 5], least=[6, 8, 2], total=33) == [20, 8, 5]
    assert shrink_widths([20, 8, 5], least=[6, 8, 2], total=21) == [8, 8, 5]
    assert shrink_widths([20, 8, 5], least=[6, 8, 2], total=10) == [6, 8, 2]


def test_only_names_of_columns_that_may_be_folded_are_broken_within_words() -> None:
    table = plain_table()
    table.add_column("hook point", overflow="fold")
    table.add_column("d*", justify="right")
    table.add_row("blocks.1.hook_resid_post", "104.3 (103.5 to 105.0)")
    assert lines(36, table) == [
        "hook point                        d*",
        "blocks.1.hook_re     104.3 (103.5 to",
        "sid_post                      105.0)",
    ]


def test_a_small_share_is_not_rounded_to_0() -> None:
    assert [format_share(share) for share in (0.0, 0.12345, 3e-6, 1.0)] == ["0%", "12.3%", "0.0003%", "100%"]


def test_a_title_is_broken_where_the_console_ends_not_its_table() -> None:
    table = plain_table("Losses of students of three teachers")
    table.add_column("width")
    table.add_row("16")
    assert lines(40, table) == ["Losses of students of three teachers", "width", "16"]
    assert lines(20, table) == ["Losses of students", "of three teachers", "width", "16"]


def test_a_command_is_not_broken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    print_result("one two three four five", "Next: tl-floor lost runs/a-model-with-a-name")
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert printed == ["one two three four", "five", "Next: tl-floor lost runs/a-model-with-a-name"]
