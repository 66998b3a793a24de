"""LabelledText rows and probe results for tests."""

from typing import Any

from tests.helpers.models import HOOK, PROSE
from tl_distill_floor import ProbeResult


def rows() -> list[dict[str, Any]]:
    """Twelve documents: a label for each text, and one for every word, some of them none."""
    words = PROSE.split()
    found = []
    for number in range(12):
        part = words[5 * number : 5 * number + 9]
        label = ["long" if len(w) > 4 else "short" if len(w) > 2 else None for w in part]
        found.append({"words": part, "length": label, "half": number % 2, "document": f"d{number}"})
    return found


def result(kind: str, width: int | None, accuracy: float) -> ProbeResult:
    name = f"{kind} {width}"
    return ProbeResult("genre", "text", "mean", name, kind, width, HOOK, ("a", "b"), 90, 9, (accuracy,), (0.8,), (0.5,),
                       (0.1,))  # fmt: skip
