"""Measure how well simple properties of a text tell each concept that `make_concepts.py` labels.

    python benchmarks/concept_shortcuts.py CONCEPTS

A probe with a score no higher than one of these may read that property and nothing else.
"""

import re
from pathlib import Path
from typing import Annotated

import typer
from json_lines import read_json_lines
from make_concepts import CONCEPTS
from sklearn.metrics import roc_auc_score

QUESTION_WORDS = (
    "what who whom whose which when where why how do does did is are was were am have has had can could will would"
    " shall should may might must"
)
SHORTCUTS = {
    "characters": len,
    "spaces": lambda text: text.count(" ") / len(text),
    "digits": lambda text: len(re.findall(r"\d", text)) / len(text),
    "capitals": lambda text: len(re.findall(r"[A-Z]", text)) / len(text),
    "not ASCII": lambda text: len(re.findall(r"[^\x00-\x7f]", text)) / len(text),
    "brackets": lambda text: len(re.findall(r"[()\[\]{}=_]", text)) / len(text),
    "first word": lambda text: text.split()[0].lower() in QUESTION_WORDS.split(),
}
"""Numbers that are computed from a text: shares of its characters, its length, and whether it begins as a question."""


def main(file: Annotated[Path, typer.Argument()]) -> None:
    """Print the AUROC of each property, in the direction that is above 0.5."""
    rows = read_json_lines(file)
    print(f"{'':10}" + "".join(f"{name:>12}" for name in SHORTCUTS))
    for concept in CONCEPTS:
        labelled = [row for row in rows if row[concept] is not None]
        if not labelled:
            continue
        truth = [row[concept] == "yes" for row in labelled]
        aurocs = [roc_auc_score(truth, [measure(row["text"]) for row in labelled]) for measure in SHORTCUTS.values()]
        print(f"{concept:10}" + "".join(f"{max(auroc, 1 - auroc):12.2f}" for auroc in aurocs))


if __name__ == "__main__":
    typer.run(main)
