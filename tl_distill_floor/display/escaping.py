"""TODO: one line."""

import unicodedata

MARKS = {"\n": "⏎", "\r": "␍", "\t": "⇥", "\u2028": "⏎", "\u2029": "⏎"}


def shown(text: str) -> str:
    """With signs for line breaks and tabs, and a replacement for whatever else could move the cursor."""
    return "".join(MARKS.get(c, "�" if unicodedata.category(c).startswith("C") else c) for c in text)
