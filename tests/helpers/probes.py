"""Labelled rows, and synthetic probe results."""

from typing import Any

from tests.helpers.models import HOOK, PROSE
from tl_distill_floor import ProbeResult
from tl_distill_floor.annotations import ProbedActivation


def labelled_rows() -> list[dict[str, Any]]:
    """Return twelve documents with a label "half" per text and a label "length" per word; short words have no label."""
    words = PROSE.split()
    rows = []
    for number in range(12):
        part = words[5 * number : 5 * number + 9]
        length = ["long" if len(word) > 4 else "short" if len(word) > 2 else None for word in part]
        rows.append({"words": part, "length": length, "half": number % 2, "document": f"d{number}"})
    return rows


def probe_result(kind: ProbedActivation, width: int | None, accuracy: float) -> ProbeResult:
    """Return the result of one split for the label "genre" with two classes."""
    return ProbeResult(
        task="genre",
        level="text",
        pool="mean",
        subject=f"{kind} {width}",
        kind=kind,
        width=width,
        hook_name=HOOK,
        classes=("a", "b"),
        n_items=90,
        n_documents=9,
        accuracy=(accuracy,),
        auroc=(0.8,),
        majority=(0.5,),
        penalty=(0.1,),
    )
