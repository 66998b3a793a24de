"""Make a corpus of program code: the modules of Python's standard library.

    python benchmarks/atlas/code_corpus.py CORPUS

CORPUS is the directory to write: `train.jsonl.gz` and `heldout.jsonl.gz`, one `{"source", "text"}` per line, as
`train_teacher.py` reads them. Every 20th module is held out. The text depends on the version of Python; the atlas used
that of CPython 3.11.7.
"""

import gzip
import json
import sysconfig
from pathlib import Path

import typer

SKIPPED = {"test", "tests", "idle_test", "site-packages", "encodings", "pydoc_data", "__pycache__"}
"""Directories without typical code: tests, installed packages, character tables and documentation."""
MIN_CHARACTERS, MODULES_PER_HELDOUT_MODULE = 500, 20


def read_modules(directory: Path) -> list[str]:
    """Return the text of every module, in the order of their paths."""
    files = [file.relative_to(directory) for file in directory.rglob("*.py")]
    kept = sorted(file for file in files if not SKIPPED & set(file.parts))
    texts = [(directory / file).read_text(encoding="utf-8", errors="replace") for file in kept]
    return [text for text in texts if len(text) >= MIN_CHARACTERS]


def main(corpus: Path) -> None:
    """Write the corpus."""
    modules = read_modules(Path(sysconfig.get_paths()["stdlib"]))
    heldout = modules[::MODULES_PER_HELDOUT_MODULE]
    train = [text for i, text in enumerate(modules) if i % MODULES_PER_HELDOUT_MODULE]
    corpus.mkdir(parents=True, exist_ok=True)
    for name, texts in (("train", train), ("heldout", heldout)):
        with gzip.open(corpus / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"source": "python", "text": text}) + "\n" for text in texts)
        print(f"{name}: {len(texts)} modules, {sum(map(len, texts)):,} characters")


if __name__ == "__main__":
    typer.run(main)
