"""Labelled rows, and synthetic probe results."""

import dataclasses
from typing import Any

from tests.helpers.models import HOOK, PROSE
from tl_distill_floor import ProbeResult
from tl_distill_floor.annotations import ProbedActivation
from tl_distill_floor.results.sparse_probes import (
    Concept,
    ConceptAtWidth,
    ConceptFeature,
    ConceptInStudent,
    ConceptScores,
    ScoresAtK,
    SparseProbes,
)


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


def concept_scores(*auroc: float) -> ConceptScores:
    """Return scores of probes that all have an F1 of 0.6, a precision of 0.5 and a recall of 0.75."""
    n = len(auroc)
    return ConceptScores(auroc, auroc, (0.6,) * n, (0.5,) * n, (0.75,) * n)


def sparse_probes() -> SparseProbes:
    """Return k-sparse probes of two concepts: width 8 loses one of the first's features, and all keep the second's."""
    features = (
        ConceptFeature(12, 1.0, 2, rises=True, survives_from=9, peak=" snow"),
        ConceptFeature(71, 2.5, 2, rises=False, survives_from=4, peak=" [b]sun"),
        ConceptFeature(40, 3.0, 1, rises=True, survives_from=None, peak=None),
    )
    at = tuple(
        ScoresAtK(k, concept_scores(auroc, auroc + 0.02), concept_scores(0.5, 0.6), concept_scores(0.4, 0.7))
        for k, auroc in ((1, 0.7), (2, 0.85), (3, 0.86))
    )
    cold = Concept(
        name="weather: cold",
        level="text",
        n_items=90,
        n_documents=30,
        share=0.4,
        at=at,
        dense=concept_scores(0.95, 0.97),
        features=features,
        widths=(
            ConceptAtWidth(
                8,
                (12,),
                concept_scores(0.6, 0.62),
                concept_scores(0.9, 0.9),
                concept_scores(0.8, 0.8),
                (ConceptInStudent("width8", concept_scores(0.81, 0.83)),),
            ),
            ConceptAtWidth(16, (), at[1].selected, concept_scores(0.92, 0.92), None, ()),
        ),
    )
    kept = dataclasses.replace(cold, name="kept", widths=cold.widths[1:])
    return SparseProbes("made", HOOK, "sae", "rows", "digest", 60, (cold, kept), {"k": 3}, ("careful",))
