"""Make labelled text for seven concepts: question, French, code, sports, legal, medical and base64.

    python benchmarks/make_concepts.py CORPUS OUT --french DIRECTORY

CORPUS is a directory with `brown_tagged.jsonl.gz`, `train.jsonl.gz` and `heldout.jsonl.gz`. OUT is the file to write.
DIRECTORY holds translations as `LC_MESSAGES/*.mo` files under `fr/`, such as the package django; without it, there is
no label `french`. Each row has one label, yes or no, and null for the others:

- `question`: sentences of Austen and Melville that end with a question mark or with a full stop. The mark is removed,
  and so are quotation marks. Both classes have the same lengths.
- `french`: messages of programs in French, and the same messages in English.
- `code`: lines of modules of Python's standard library, and prose of the docstrings of the same modules.
- `sports`: newspaper reports on sports, and other newspaper reports.
- `legal`: statutes, court rulings and tax law, and other documents of the government or of science.
- `medical`: medical papers and reports, and other documents of science.
- `base64`: passages of prose encoded in base64; and such passages as they are, or in hexadecimal digits.

White space is joined to single spaces everywhere, so that indentation and line breaks do not tell code from prose.
"""

import ast
import base64
import gettext
import random
import re
import sysconfig
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from json_lines import read_json_lines, write_json_lines

CONCEPTS = ("question", "french", "code", "sports", "legal", "medical", "base64")
WORDS_PER_PASSAGE, ROWS_PER_CLASS, MODULES = 60, 1000, 120
CHARACTERS_PER_PASSAGE = 150
MIN_WORDS, MAX_WORDS = 5, 30
"""Lengths of the sentences with and without a question."""
SPORTS = {f"news-{number}" for number in (10, 11, 12, 13, 14, 37, 38)}
LEGAL = {f"government-{number}" for number in (272, 275, 280, 285, 286, 287)} | {"learned-336", "learned-337"}
MEDICAL = {f"learned-{number}" for number in (305, 306, 307, 308, 310)} | {"government-273"}
"""Documents of the Brown corpus, chosen by reading their beginnings; both classes of a label are of these genres."""
SENTENCE = re.compile(r"[^.?!]+[.?!]")


def row(concept: str, has_it: bool, text: str, document: str) -> dict[str, Any]:
    """Return one row, with null for the other concepts."""
    labels: dict[str, str | None] = dict.fromkeys(CONCEPTS)
    labels[concept] = "yes" if has_it else "no"
    return {"text": text, "document": f"{concept} {document}", **labels}


def questions(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return questions and statements of equal lengths in words, without their last mark."""
    by_length: dict[int, tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
    for document in documents:
        text = re.sub(r"[“”‘\"_]|(?<!\w)[’']|[’'](?!\w)", "", " ".join(document["text"].split()))
        text = re.sub(r"\b(Mrs?|Dr|St|Capt|Esq)\.", r"\1", text)
        for sentence in SENTENCE.findall(text):
            body = sentence[:-1].strip(" ;,:-—")
            if sentence[-1] in "?." and MIN_WORDS <= len(body.split()) <= MAX_WORDS:
                pair = by_length[len(body.split())]
                pair[sentence[-1] == "?"].append((body[0].upper() + body[1:], f"{document['source']} {document['id']}"))
    chosen: list[dict[str, Any]] = []
    for statements, asked in by_length.values():
        n = min(len(statements), len(asked))
        for sentences, has_it in ((statements, False), (asked, True)):
            chosen += [row("question", has_it, *pair) for pair in random.Random(0).sample(sentences, n)]
    return chosen


def translations(directory: Path) -> list[dict[str, Any]]:
    """Return messages of at least three words in French and in English; a catalog is a document."""
    rows = []
    for file in sorted(directory.rglob("fr/LC_MESSAGES/*.mo")):
        with file.open("rb") as stream:
            catalog: dict[Any, str] = gettext.GNUTranslations(stream)._catalog
        for number, (english, french) in enumerate(catalog.items()):
            if isinstance(english, str) and len(english.split()) >= 3 and english != french:
                document = f"{file.relative_to(directory)} {number // 20}"
                rows += [
                    row("french", has_it, " ".join(re.sub(r"%\(?\w*\)?[sd]?|\{\w*\}", "", text).split()), document)
                    for text, has_it in ((french, True), (english, False))
                ]
    return rows


def standard_library() -> list[dict[str, Any]]:
    """Return passages of code and of docstrings, of modules of the running Python's standard library."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    rows = []
    for file in random.Random(0).sample(files, min(MODULES, len(files))):
        with tokenize.open(file) as stream:
            source = stream.read()
        tree = ast.parse(source)
        owners = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
        ]
        prose = " ".join(ast.get_docstring(node) or "" for node in owners)
        prose = " ".join(line for line in prose.splitlines() if not re.search(r">>>|\.\.\.|[=(){}\[\]_]", line))
        for node in owners:
            node.body = node.body[1:] or [ast.Pass()]
        code = ast.unparse(tree)
        for text, has_it in ((code, True), (prose, False)):
            rows += [row("code", has_it, passage, file.stem) for passage in passages(text.split())][:20]
    return rows


def brown(documents: list[dict[str, Any]], concept: str, having: set[str], genres: set[str]) -> list[dict[str, Any]]:
    """Return passages of the documents that have a concept, and of all others of some genres."""
    return [
        row(concept, document["id"] in having, passage, document["id"])
        for document in documents
        if document["genre"] in genres
        for passage in passages([word for sentence in document["sentences"] for word, _ in sentence])
    ]


def encoded(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return passages of prose in base64, and others in hexadecimal digits or as they are."""
    rows = []
    for document in documents:
        text = " ".join(document["text"].split())
        for number, start in enumerate(range(0, min(len(text), 4000) - CHARACTERS_PER_PASSAGE, CHARACTERS_PER_PASSAGE)):
            passage = text[start : start + CHARACTERS_PER_PASSAGE]
            name = f"{document['source']} {document['id']}"
            if number % 4 in (0, 1):
                rows.append(row("base64", True, base64.b64encode(passage.encode()).decode(), name))
            else:
                rows.append(row("base64", False, passage if number % 4 == 2 else passage.encode().hex(), name))
    return rows


def passages(words: list[str]) -> Iterator[str]:
    """Yield passages of equal length in words."""
    for first in range(0, len(words) - WORDS_PER_PASSAGE + 1, WORDS_PER_PASSAGE):
        yield " ".join(words[first : first + WORDS_PER_PASSAGE])


def main(
    corpus: Annotated[Path, typer.Argument()],
    out: Annotated[Path, typer.Argument()],
    french: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Write at most `ROWS_PER_CLASS` rows of each class."""
    tagged = read_json_lines(corpus / "brown_tagged.jsonl.gz")
    heldout = read_json_lines(corpus / "heldout.jsonl.gz")
    prose = [
        each for each in read_json_lines(corpus / "train.jsonl.gz") + heldout if each["source"] in ("austen", "moby")
    ]
    rows = [
        *questions(prose),
        *(translations(french) if french else []),
        *standard_library(),
        *brown(tagged, "sports", SPORTS, {"news"}),
        *brown(tagged, "legal", LEGAL, {"government", "learned"}),
        *brown(tagged, "medical", MEDICAL, {"learned", "government"}),
        *encoded(heldout),
    ]
    chosen = []
    for concept in CONCEPTS:
        for label in ("yes", "no"):
            of_class = [each for each in rows if each[concept] == label]
            chosen += random.Random(0).sample(of_class, min(len(of_class), ROWS_PER_CLASS))
            print(f"{concept}, {label}: {min(len(of_class), ROWS_PER_CLASS):,} of {len(of_class):,} rows")
    write_json_lines(out, chosen)


if __name__ == "__main__":
    typer.run(main)
