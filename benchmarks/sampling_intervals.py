"""Measure how often the 95 % sampling intervals of one text hold what other texts give.

    python benchmarks/sampling_intervals.py CORPUS/train.jsonl.gz --out benchmarks/sampling_intervals.json

The documents of a corpus are shuffled and divided into texts. Features and floors of the embedded teacher are measured
on each of them. An interval holds if the mean of the other texts is inside. The spread is the standard deviation over
the texts, divided by the standard error that the intervals state: 1 if they are right.
"""

import gzip
import json
import random
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from tl_distill_floor import load_teacher, predict_floor

CHARACTERS_PER_TOKEN = 4.6
"""Of a text, so that it has a few more tokens than are read."""
Z_95 = 1.96
WIDTHS = (16, 32, 64, 96, 128, 192, 256)
VALUES, FLOORS = ("n_features", "alpha", "critical_width"), ("theorem", "independent", "simulated")


def texts_of(corpus: Path, sources: list[str], n_tokens: int) -> list[list[str]]:
    """Return the documents of each text: whole documents of a corpus, in random order."""
    with gzip.open(corpus, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    documents = [row["text"] for row in rows if row["source"] in sources]
    random.Random(0).shuffle(documents)
    texts: list[list[str]] = [[]]
    for document in documents:
        if sum(map(len, texts[-1])) > CHARACTERS_PER_TOKEN * n_tokens:
            texts.append([])
        texts[-1].append(document)
    return texts[:-1]


def measured(text: list[str], n_tokens: int) -> dict[str, list[list[float]]]:
    """Return value, lower and upper end of everything that has an interval; floors have one row for each width."""
    floor = predict_floor(
        load_teacher("tiny-prose"),
        None,
        text,
        widths=WIDTHS,
        n_tokens=n_tokens,
        n_cost_tokens=n_tokens // 4,
        n_codes=n_tokens,
        head=False,
    )
    assert floor.simulated is not None
    rows = {name: [[getattr(floor, name), *getattr(floor, f"{name}_interval")]] for name in VALUES}
    intervals = (floor.theorem_interval, floor.independent_interval, floor.sampling_interval)
    for name, values, interval in zip(
        FLOORS, (floor.theorem, floor.independent, floor.simulated), intervals, strict=True
    ):
        rows[name] = np.column_stack([values, interval]).tolist()
    return {name: np.asarray(row, dtype=float).tolist() for name, row in rows.items()}


def print_table(results: list[dict[str, list[list[float]]]]) -> None:
    """Print the spread over the texts and how often the intervals hold the mean of the other texts."""
    print(f"{len(results)} texts")
    print("| | spread of the texts, relative to the stated error | intervals that hold the mean of the other texts |")
    print("| --- | --- | --- |")
    for name in (*VALUES, *FLOORS):
        value, low, high = np.moveaxis(np.array([result[name] for result in results]), -1, 0)
        others = (value.sum(0) - value) / (len(results) - 1)
        stated = np.sqrt((((high - low) / 2 / Z_95) ** 2).mean(0))
        spread = [f"{ratio:.2f}" for ratio in value.std(0, ddof=1)[stated > 0] / stated[stated > 0]]
        held = ((low <= others) & (others <= high)).mean(0)[stated > 0]
        print(f"| {name} | {', '.join(spread)} | {', '.join(f'{share:.0%}' for share in held)} |")


def main(
    corpus: Path,
    out: Annotated[Path, typer.Option(help="File of the results; texts that it has are not measured again.")],
    texts: int = 10,
    tokens: int = 100_000,
    source: Annotated[list[str] | None, typer.Option(help="Sources of the corpus; the teacher's if none.")] = None,
) -> None:
    """Measure the texts and print the table."""
    results = json.loads(out.read_text(encoding="utf-8")) if out.exists() else []
    for text in texts_of(corpus, source or ["sotu", "moby", "austen"], tokens)[len(results) : texts]:
        results.append(measured(text, tokens))
        out.write_text(json.dumps(results) + "\n", encoding="utf-8")
    print_table(results)


if __name__ == "__main__":
    typer.run(main)
