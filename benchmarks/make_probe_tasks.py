"""Make labelled text for probes from the Brown corpus's tags and from scored sentences.

    python benchmarks/make_probe_tasks.py CORPUS OUT

CORPUS holds `brown_tagged.jsonl.gz` and `sentiment.jsonl.gz`; OUT receives `brown.jsonl.gz` (coarse: `genre`; fine:
`part_of_speech`, `proper_noun`, `number`, `tense`, `negation`, `next_part_of_speech`) and `sentences.jsonl.gz` (coarse:
`sentiment`, `domain`). Passages of Brown are some 60 words; sentences that stand near one another are one document.
"""

import gzip
import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

WORDS, SENTENCES_A_DOCUMENT, CLEARLY = 60, 50, 1.0
PARTS = {
    "noun": "nn nns nr nrs", "proper noun": "np nps", "pronoun": "pp ppl ppls ppo pps ppss pn wps wpo",
    "verb": "vb vbd vbg vbn vbz", "auxiliary": "be bed bedz beg bem ben ber bez do dod doz hv hvd hvg hvn hvz md",
    "adjective": "jj jjr jjs jjt", "adverb": "rb rbr rbt rn rp wrb ql qlp", "determiner": "at dt dti dts dtx ap abl abn"
    " abx wdt pp$", "preposition": "in to", "conjunction": "cc cs", "number": "cd od", "negation": "*",
    "punctuation": ". , : ( ) -- `` \'\'",
}  # fmt: skip
PART_OF = {tag: part for part, tags in PARTS.items() for tag in tags.split()}
NUMBER = {"nn": "singular", "nns": "plural"}
TENSE = {"vbd": "past", "vbz": "present", "dod": "past", "doz": "present", "hvd": "past", "hvz": "present",
         "bedz": "past", "bez": "present"}  # fmt: skip


def base(tag: str) -> str:
    """Without what marks headlines, titles, foreign words, and the possessive."""
    tag = re.sub(r"-(hl|tl|nc)", "", tag)
    tag = tag.removeprefix("fw-")
    return tag if tag in PART_OF else tag.split("+")[0].rstrip("$*") or tag


def rows_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    pairs = [pair for sentence in document["sentences"] for pair in sentence]
    tags = [base(tag) for _, tag in pairs]
    parts = [PART_OF.get(tag) for tag in tags]
    negated = ["negated" if tag.endswith("*") else None for _, tag in pairs]
    rows = []
    for first in range(0, len(pairs) - WORDS, WORDS):
        here = range(first, first + WORDS)
        rows.append({
            "words": [pairs[i][0] for i in here], "document": document["id"], "genre": document["genre"],
            "part_of_speech": [parts[i] for i in here],
            "proper_noun": [{"noun": "common", "proper noun": "proper"}.get(parts[i] or "") for i in here],
            "number": [NUMBER.get(tags[i]) for i in here],
            "tense": [TENSE.get(tags[i]) for i in here],
            # The word after "not" or "n't", against every other word of the same part of speech.
            "negation": [
                ("negated" if negated[i - 1] else "not negated") if i and parts[i] in ("verb", "adverb") else None
                for i in here
            ],
            "next_part_of_speech": [parts[i + 1] for i in here],
        })  # fmt: skip
    return rows


def sentences(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    return [
        {
            "text": row["text"], "domain": row["domain"],
            "document": f"{row['domain']} {number // SENTENCES_A_DOCUMENT}",
            "sentiment": "good" if row["score"] > CLEARLY else "bad" if row["score"] < -CLEARLY else None,
        }
        for number, row in enumerate(found) if row["text"].strip()
    ]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{path}: {len(rows):,} rows")


def main(corpus: Annotated[Path, typer.Argument()], out: Annotated[Path, typer.Argument()]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with gzip.open(corpus / "brown_tagged.jsonl.gz", "rt", encoding="utf-8") as lines:
        write(out / "brown.jsonl.gz", [row for line in lines for row in rows_of(json.loads(line))])
    write(out / "sentences.jsonl.gz", sentences(corpus / "sentiment.jsonl.gz"))


if __name__ == "__main__":
    typer.run(main)
