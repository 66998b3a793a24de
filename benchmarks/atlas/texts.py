"""The text of a recipe, as its students, SAEs and predictions read it."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from generate_text import generate_sequences
from recipes import Recipe
from torch import Tensor
from train_teacher import SPLITS, pack, save_texts

from tl_distill_floor.measuring.token_stream import open_token_stream
from tl_distill_floor.sources.teacher import Teacher
from tl_distill_floor.sources.teachers import load_teacher

Text: TypeAlias = str | Tensor
"""A file of documents, or token ids [sequence, position]."""
TOKENS_FILE = "tokens.npz"


def load_texts(recipe: Recipe, corpus: Path, teacher: str, out: Path) -> dict[str, Text]:
    """Return the training and the held-out text of a recipe, which are written to `out` if they are not there.

    Args:
        recipe: the recipe.
        corpus: see `save_texts`; not read if the text is in `out`.
        teacher: name or directory of the teacher, whose tokenizer is used.
        out: directory of the teacher's files.

    Returns:
        Files of documents, by split; token ids [sequence, position] if the recipe shuffles them.
    """
    file = out / TOKENS_FILE
    if not recipe.is_shuffled:
        return {split: str(path) for split, path in save_texts(recipe, corpus, out).items()}
    if not file.exists():
        tokens = _shuffled_tokens(recipe, load_teacher(teacher), save_texts(recipe, corpus, out))
        np.savez_compressed(file, train=tokens["train"], heldout=tokens["heldout"])
    with np.load(file) as stored:
        return {split: torch.from_numpy(stored[split].astype(np.int64)) for split in SPLITS}


def _shuffled_tokens(recipe: Recipe, teacher: Teacher, files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    """Return the token ids of both splits, [sequence, position], with the sequences in random order."""
    tokens = {}
    for split, file in files.items():
        stream = open_token_stream(teacher, str(file), recipe.context_size, batch_size=16)
        n_most = file.stat().st_size * 100  # more tokens than a compressed file can hold
        sequences = stream.read_sequences(n_most).numpy()
        order = np.random.default_rng(0).permutation(len(sequences))
        tokens[split] = sequences[order].astype(np.uint16 if recipe.vocab_size <= 2**16 else np.uint32)
        print(f"{split}: {sequences.size:,} tokens", flush=True)
    return tokens


def student_text(recipe: Recipe, teacher: Teacher, text: Text, out: Path) -> Text:
    """Return what the students are trained on: the recipe's text, followed by text that the teacher generates.

    Without generated text, this is `text` itself; else token ids [sequence, position].

    Args:
        recipe: the recipe.
        teacher: the teacher.
        text: the recipe's training text.
        out: working directory, where the generated text is kept.
    """
    if not recipe.generated_tokens:
        return text
    file, tokenizer, model = out / "generated.pt", teacher.model.tokenizer, teacher.model.original_model
    if not file.exists():
        ids = generate_sequences(model, tokenizer.bos_token_id, recipe.generated_tokens, recipe.context_size)
        torch.save(ids.to(torch.int32), file)
        print(f"generated {ids.numel():,} tokens", flush=True)
    generated = torch.load(file, weights_only=True).long()
    written = pack(tokenizer, _read_documents(text), recipe.context_size) if isinstance(text, str) else text
    sequences = torch.cat([written, generated])
    ends = sequences == tokenizer.eos_token_id
    # Two of these tokens at the beginning or at the end would be read as padding.
    return sequences[~(ends[:, 1] | ends[:, -2:].all(dim=1))]


def _read_documents(file: str) -> list[str]:
    """Return the documents of a file that `save_texts` wrote."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]
