"""Make the embedded labelled text: passages of public-domain prose, with an author each and a class for every word.

    python benchmarks/make_labelled.py CORPUS OUT

CORPUS holds `heldout.jsonl.gz`, one `{"source", "id", "text"}` a line, of which nothing was trained on; OUT is the
file. `author` is who wrote the passage (an American president, Melville, Austen). `word_class` comes from closed
lists of English words and from the spelling alone, so that nobody's annotation is copied; `next_word_class` is that of
the word that follows.
"""

import gzip
import json
import random
import re
from pathlib import Path
from typing import Annotated

import typer

AUTHORS = {"sotu": "president", "moby": "Melville", "austen": "Austen"}
WORDS, PASSAGES = 60, 250
LISTS = {
    "negation": "no not never nor neither none nothing nobody nowhere cannot",
    "pronoun": "i you he she it we they me him her us them myself himself herself itself ourselves themselves",
    "determiner": "the a an this that these those every each either some any all both",
    "possessive": "my your his its our their whose",
    "preposition": "of in to for with on by at from into upon under over between among through against without within"
    " during after before about toward towards",
    "conjunction": "and or but if because although though while unless until since than",
    "auxiliary": "is are was were be been being am has have had having do does did will would shall should may might"
    " can could must",
    "question word": "who whom which what when where why how",
    "number": "one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred"
    " thousand million billion",
}
CLASS_OF = {word: name for name, words in LISTS.items() for word in words.split()}
WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")


def word_class(word: str, starts_sentence: bool) -> str:
    known = CLASS_OF.get(word.lower())
    if known:
        return known
    if not any(c.isalnum() for c in word):
        return "punctuation"
    if any(c.isdigit() for c in word):
        return "number"
    if word[0].isupper() and not starts_sentence:
        return "name"
    for suffix, name in (("ly", "-ly"), ("ing", "-ing"), ("ed", "-ed")):
        if word.endswith(suffix) and len(word) > len(suffix) + 2:
            return name
    return "other"


def passages(text: str, source: str, document: str) -> list[dict[str, object]]:
    found = list(WORD.finditer(text))
    rows: list[dict[str, object]] = []
    for first in range(0, len(found) - WORDS - 1, WORDS):
        matches = found[first : first + WORDS + 1]
        words = [match.group() for match in matches]
        starts = [i == 0 or words[i - 1] in ".!?\"“”'‘’;:" for i in range(len(words))]
        classes = [word_class(word, start) for word, start in zip(words, starts, strict=True)]
        rows.append({
            "text": text[matches[0].start() : matches[-1].start()].rstrip(),
            "words": words[:-1],
            "document": document,
            "author": AUTHORS[source],
            "word_class": classes[:-1],
            "next_word_class": classes[1:],
        })  # fmt: skip
    return rows


def main(corpus: Annotated[Path, typer.Argument()], out: Annotated[Path, typer.Argument()]) -> None:
    with gzip.open(corpus / "heldout.jsonl.gz", "rt", encoding="utf-8") as lines:
        documents = [json.loads(line) for line in lines]
    chosen = []
    for source in AUTHORS:
        rows = [
            r for d in documents if d["source"] == source for r in passages(d["text"], source, f"{source} {d['id']}")
        ]
        chosen += random.Random(0).sample(rows, PASSAGES)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
    out.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{len(chosen)} passages, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    typer.run(main)
