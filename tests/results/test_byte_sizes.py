"""Tests of numbers of bytes as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl_distill_floor.errors import InputError
from tl_distill_floor.results.byte_sizes import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2GB", 2_000_000_000), ("2GiB", 2_147_483_648), ("1.5 MB", 1_500_000), ("512KiB", 524_288), ("7B", 7),
        (" 3tb ", 3 * 10**12), ("0.5kb", 500), ("1" + "0" * 400 + "B", 10**400),
    ],
)  # fmt: skip
def test_units_are_exact(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["2", "GB", "", "0GB", "-1GB", "2 GBit", "1,5GB", "nanGB", "2iB", "1e3MB", "0.1B"])
def test_rejects_what_is_no_memory_size(text: str) -> None:
    with pytest.raises(InputError, match=r"a memory size is a number above 0 with a unit, got .*; try 2GB"):
        parse_bytes(text)


def test_shows_three_digits() -> None:
    shown = [
        format_bytes(number)
        for number in (0, 999, 1000, 12_345, 327_680, 2_261_440, 999_500_000, 14 * 10**9, 2 * 10**12)
    ]
    assert shown == ["0 B", "999 B", "1.00 kB", "12.35 kB", "328 kB", "2.26 MB", "1.00 GB", "14.00 GB", "2.00 TB"]


@given(st.integers(min_value=1, max_value=10**14))
def test_shown_sizes_can_be_typed(number: int) -> None:
    assert parse_bytes(format_bytes(number)) == pytest.approx(number, rel=5.1e-3)
