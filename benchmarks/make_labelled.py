"""Make the embedded labelled text: passages of public-domain prose with their authors and a class for every word.

    python benchmarks/make_labelled.py CORPUS OUT

CORPUS is a directory with `heldout.jsonl.gz`, one `{"source", "id", "text"}` per line, on which no model was trained.
OUT is the file to write. `author` is the author of the passage: a president of the United States, Melville or Austen.
`word_class` is assigned by closed lists of English words and by the spelling alone, so that no published annotation is
copied; `next_word_class` is the class of the word that follows.
"""

import random
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from json_lines import read_json_lines, write_json_lines

AUTHORS = {"sotu": "president", "moby": "Melville", "austen": "Austen"}
WORDS_PER_PASSAGE, PASSAGES_PER_AUTHOR = 60, 250
WORD_LISTS = {
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
CLASS_BY_WORD = {word: name for name, words in WORD_LISTS.items() for word in words.split()}
CLASS_BY_SUFFIX = {"ly": "-ly", "ing": "-ing", "ed": "-ed"}
WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")


def word_class(word: str, starts_sentence: bool) -> str:
    """Return the class of a word, from the word lists or else from its spelling."""
    listed = CLASS_BY_WORD.get(word.lower())
    if listed:
        return listed
    if not any(character.isalnum() for character in word):
        return "punctuation"
    if any(character.isdigit() for character in word):
        return "number"
    if word[0].isupper() and not starts_sentence:
        return "name"
    for suffix, name in CLASS_BY_SUFFIX.items():
        if word.endswith(suffix) and len(word) > len(suffix) + 2:
            return name
    return "other"


def passages(text: str, source: str, document: str) -> list[dict[str, Any]]:
    """Cut a document into passages of equal length, and label each."""
    all_matches = list(WORD.finditer(text))
    rows: list[dict[str, Any]] = []
    for first in range(0, len(all_matches) - WORDS_PER_PASSAGE - 1, WORDS_PER_PASSAGE):
        matches = all_matches[first : first + WORDS_PER_PASSAGE + 1]
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
    """Write a sample of passages, as many of each author."""
    documents = read_json_lines(corpus / "heldout.jsonl.gz")
    chosen = []
    for source in AUTHORS:
        rows = [
            row
            for document in documents
            if document["source"] == source
            for row in passages(document["text"], source, f"{source} {document['id']}")
        ]
        chosen += random.Random(0).sample(rows, PASSAGES_PER_AUTHOR)
    write_json_lines(out, chosen)
    print(f"{len(chosen)} passages, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    typer.run(main)
