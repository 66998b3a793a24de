"""Escape control characters in names and text, which could move the cursor or change the colours of a terminal."""

import unicodedata

VISIBLE_SIGNS = {"\n": "⏎", "\r": "␍", "\t": "⇥", "\u2028": "⏎", "\u2029": "⏎"}
"""Sign that is shown for each line break and tab."""


def escape_control(text: str) -> str:
    """Replace line breaks and tabs by visible signs, and every other control character by "�".

    Args:
        text: any text, such as the name of a model or a token.

    Returns:
        The text without characters of the Unicode categories C*.

    Example:
        >>> escape_control("a\\tb\\x1b")
        'a⇥b�'
    """
    return "".join(VISIBLE_SIGNS.get(c, "�" if unicodedata.category(c).startswith("C") else c) for c in text)
