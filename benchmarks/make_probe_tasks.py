"""Make labelled text for probes from the tagged Brown corpus and from scored sentences.

    python benchmarks/make_probe_tasks.py CORPUS OUT

CORPUS is a directory with `brown_tagged.jsonl.gz` and `sentiment.jsonl.gz`. OUT is the directory to write:
`brown.jsonl.gz` (coarse label: `genre`; fine labels: `part_of_speech`, `proper_noun`, `number`, `tense`, `negation`,
`next_part_of_speech`) and `sentences.jsonl.gz` (coarse labels: `sentiment`, `domain`). The passages of the Brown corpus
have 60 words each; 50 sentences in a row count as one document.
"""

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from json_lines import read_json_lines, write_json_lines

WORDS_PER_PASSAGE, SENTENCES_PER_DOCUMENT = 60, 50
MIN_SCORE = 1.0
"""A sentence counts as good or bad if the absolute value of its score is larger than this."""
TAGS = {
    "noun": "nn nns nr nrs", "proper noun": "np nps", "pronoun": "pp ppl ppls ppo pps ppss pn wps wpo",
    "verb": "vb vbd vbg vbn vbz", "auxiliary": "be bed bedz beg bem ben ber bez do dod doz hv hvd hvg hvn hvz md",
    "adjective": "jj jjr jjs jjt", "adverb": "rb rbr rbt rn rp wrb ql qlp", "determiner": "at dt dti dts dtx ap abl abn"
    " abx wdt pp$", "preposition": "in to", "conjunction": "cc cs", "number": "cd od", "negation": "*",
    "punctuation": ". , : ( ) -- `` \'\'",
}  # fmt: skip
PART_BY_TAG = {tag: part for part, tags in TAGS.items() for tag in tags.split()}
NUMBER_BY_TAG = {"nn": "singular", "nns": "plural"}
TENSE_BY_TAG = {"vbd": "past", "vbz": "present", "dod": "past", "doz": "present", "hvd": "past", "hvz": "present",
                "bedz": "past", "bez": "present"}  # fmt: skip
PROPER_NOUN_BY_PART = {"noun": "common", "proper noun": "proper"}


def base_tag(tag: str) -> str:
    """Return a tag without its marks for headlines, titles, foreign words and the possessive."""
    tag = re.sub(r"-(hl|tl|nc)", "", tag)
    tag = tag.removeprefix("fw-")
    return tag if tag in PART_BY_TAG else tag.split("+")[0].rstrip("$*") or tag


def brown_passages(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Cut a document of the Brown corpus into passages of equal length, and label each."""
    pairs = [pair for sentence in document["sentences"] for pair in sentence]
    tags = [base_tag(tag) for _, tag in pairs]
    parts = [PART_BY_TAG.get(tag) for tag in tags]
    negated = ["negated" if tag.endswith("*") else None for _, tag in pairs]
    rows = []
    for first in range(0, len(pairs) - WORDS_PER_PASSAGE, WORDS_PER_PASSAGE):
        positions = range(first, first + WORDS_PER_PASSAGE)
        rows.append({
            "words": [pairs[i][0] for i in positions], "document": document["id"], "genre": document["genre"],
            "part_of_speech": [parts[i] for i in positions],
            "proper_noun": [PROPER_NOUN_BY_PART.get(parts[i] or "") for i in positions],
            "number": [NUMBER_BY_TAG.get(tags[i]) for i in positions],
            "tense": [TENSE_BY_TAG.get(tags[i]) for i in positions],
            # The word after "not" or "n't", compared with all other words of the same parts of speech.
            "negation": [
                ("negated" if negated[i - 1] else "not negated") if i and parts[i] in ("verb", "adverb") else None
                for i in positions
            ],
            "next_part_of_speech": [parts[i + 1] for i in positions],
        })  # fmt: skip
    return rows


def labelled_sentences(path: Path) -> list[dict[str, Any]]:
    """Read the scored sentences, and label those that are clearly good or bad."""
    return [
        {
            "text": row["text"], "domain": row["domain"],
            "document": f"{row['domain']} {number // SENTENCES_PER_DOCUMENT}",
            "sentiment": "good" if row["score"] > MIN_SCORE else "bad" if row["score"] < -MIN_SCORE else None,
        }
        for number, row in enumerate(read_json_lines(path)) if row["text"].strip()
    ]  # fmt: skip


def main(corpus: Annotated[Path, typer.Argument()], out: Annotated[Path, typer.Argument()]) -> None:
    """Write both files."""
    out.mkdir(parents=True, exist_ok=True)
    documents = read_json_lines(corpus / "brown_tagged.jsonl.gz")
    rows_by_name = {
        "brown.jsonl.gz": [row for document in documents for row in brown_passages(document)],
        "sentences.jsonl.gz": labelled_sentences(corpus / "sentiment.jsonl.gz"),
    }
    for name, rows in rows_by_name.items():
        write_json_lines(out / name, rows)
        print(f"{out / name}: {len(rows):,} rows")


if __name__ == "__main__":
    typer.run(main)
