"""Numbers of bytes as text: GB and MB are powers of 1000, GiB and MiB are powers of 1024."""

import re
from decimal import Decimal

from tl_distill_floor.errors import InputError

UNITS: dict[str, int] = {
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
}
"""Bytes of each unit, by its name in lower case."""
SHOWN_UNITS = (("kB", 10**3), ("MB", 10**6), ("GB", 10**9), ("TB", 10**12))
"""Units in which numbers of bytes are shown."""


def parse_bytes(text: str) -> int:
    """Parse a number of bytes.

    Args:
        text: a number and a unit: B, kB, MB, GB or TB (powers of 1000), KiB, MiB, GiB or TiB (powers of 1024).

    Raises:
        InputError: the text is not a number above 0 with such a unit.

    Example:
        >>> parse_bytes("1.5GB"), parse_bytes("2 MiB")
        (1500000000, 2097152)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b)\s*", text, re.IGNORECASE)
    number = round(Decimal(match[1]) * UNITS.get(match[2].lower(), 0)) if match else 0
    if number < 1:
        raise InputError(
            f"a memory size is a number above 0 with a unit, got {text!r}; try 2GB (2 · 10^9 bytes) or 2GiB (2 · 2^30"
            " bytes)"
        )
    return number


def format_bytes(number: int) -> str:
    """Return a number of bytes with a unit that is a power of 1000.

    Args:
        number: bytes.

    Example:
        >>> format_bytes(1_500_000_000), format_bytes(12)
        ('1.50 GB', '12 B')
    """
    if number < SHOWN_UNITS[0][1]:
        return f"{number} B"
    # The first unit in which the rounded number is below 1,000.
    unit, value = next(
        ((unit, number / size) for unit, size in SHOWN_UNITS if number / size < 999.5),
        (SHOWN_UNITS[-1][0], number / SHOWN_UNITS[-1][1]),
    )
    return f"{value:.0f} {unit}" if value >= 99.995 else f"{value:.2f} {unit}"
