"""Train one teacher of the atlas from scratch: its tokenizer and its weights.

    python benchmarks/atlas/train_teacher.py tiny-prose CORPUS OUT

CORPUS is a directory with `train.jsonl.gz` and `heldout.jsonl.gz`, one `{"source", "text"}` per line. OUT is the
directory to write: the tokenizer, the weights in bfloat16, `training.json`, and the text of the recipe's sources in
`train.jsonl.gz` and `heldout.jsonl.gz`. Every sequence begins with `<|endoftext|>`; the documents are concatenated,
with `<|endoftext|>` after each. An interrupted training continues where it was.
"""

import gzip
import json
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from recipes import RECIPES, Recipe
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

WARM_UP_STEPS, SHARE_OF_DECAY = 100, 0.6
STEPS_BETWEEN_EVALUATIONS = 250
END_OF_TEXT = "<|endoftext|>"
SPLITS = ("train", "heldout")
LOGITS_PER_BATCH = 2**27
"""Logits of held-out tokens that are in memory at the same time."""


def read_texts(path: Path, sources: tuple[str, ...]) -> list[str]:
    """Return the documents of a corpus file that are of the given sources."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [row["text"] for row in rows if row["source"] in sources]


def train_tokenizer(texts: list[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=recipe.vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=recipe.context_size,
    )


def pack(tokenizer: PreTrainedTokenizerFast, texts: list[str], context_size: int) -> Tensor:
    """Return token ids [sequence, context_size]; every sequence begins with the end-of-text token."""
    flat = [t for ids in tokenizer(texts, verbose=False)["input_ids"] for t in [*ids, tokenizer.eos_token_id]]
    rows = torch.tensor(flat[: len(flat) // (context_size - 1) * (context_size - 1)]).view(-1, context_size - 1)
    return torch.cat([torch.full((len(rows), 1), tokenizer.bos_token_id), rows], dim=1)


def next_token_loss(model: PreTrainedModel, batch: Tensor) -> Tensor:
    """Return the cross-entropy of the next token, in nats per token."""
    with torch.autocast(batch.device.type, torch.bfloat16):
        logits = model(batch).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())


@torch.no_grad()
def heldout_loss(model: PreTrainedModel, rows: Tensor) -> float:
    """Return the mean next-token loss over all sequences, in nats per token."""
    size = max(1, min(64, LOGITS_PER_BATCH // (rows.shape[1] * model.config.vocab_size)))
    losses = [next_token_loss(model, batch.to(model.device)).item() * len(batch) for batch in rows.split(size)]
    return sum(losses) / len(rows)


def make_optimizers(model: PreTrainedModel, lr: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks, and AdamW for embeddings, biases and norms.

    GPT-2 stores its matrices transposed; Muon's update does not depend on that.
    """
    layers = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    blocks = getattr(layers, "layers", None) or layers.h
    matrices = [p for p in blocks.parameters() if p.ndim == 2]
    in_blocks = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in in_blocks]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


class Training:
    """A training that can be interrupted: model, optimizers, learning curve and the file of its checkpoint."""

    def __init__(self, recipe: Recipe, train: Tensor, heldout: Tensor, file: Path, device: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.recipe, self.train, self.heldout, self.file, self.device = recipe, train, heldout, file, device
        self.n_steps = max(1, int(recipe.epochs * len(train) / recipe.batch_size))
        self.model = AutoModelForCausalLM.from_config(recipe.config()).float().to(device)
        self.optimizers = make_optimizers(self.model, recipe.lr)
        n_orders = int(self.n_steps * recipe.batch_size / len(train)) + 1
        self.order = torch.cat([torch.randperm(len(train)) for _ in range(n_orders)])
        self.step, self.seconds = 0, 0.0
        self.curve: list[dict[str, float]] = []
        if file.exists():
            self._load()

    def run(self) -> None:
        """Train to the last step, with a checkpoint at every evaluation."""
        start = time.time() - self.seconds
        while self.step < self.n_steps:
            loss = self._train_step()
            if self.step % STEPS_BETWEEN_EVALUATIONS == 0 or self.step == self.n_steps:
                self.seconds = time.time() - start
                row = {
                    "step": self.step,
                    "tokens": self.step * self.recipe.batch_size * self.recipe.context_size,
                    "train_loss": round(loss, 4),
                    "heldout_loss": round(heldout_loss(self.model, self.heldout), 4),
                    "seconds": round(self.seconds),
                }
                self.curve.append(row)
                print(row, flush=True)
                self._save()

    def _train_step(self) -> float:
        """Take one step and return its loss. Linear warm-up, constant, linear decay."""
        size, n_steps = self.recipe.batch_size, self.n_steps
        factor = min((self.step + 1) / WARM_UP_STEPS, 1.0, (n_steps - self.step) / (SHARE_OF_DECAY * n_steps))
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = self.recipe.lr * factor
        rows = self.order[self.step * size : (self.step + 1) * size]
        loss = next_token_loss(self.model, self.train[rows].to(self.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return loss.item()

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
        }
        torch.save(state, self.file.with_suffix(".new"))
        self.file.with_suffix(".new").replace(self.file)

    def _load(self) -> None:
        state = torch.load(self.file, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds, self.curve = state["step"], state["seconds"], state["curve"]


def save_texts(recipe: Recipe, corpus: Path, out: Path) -> dict[str, Path]:
    """Write the documents of a recipe's sources; return the path of each split."""
    files = {split: out / f"{split}.jsonl.gz" for split in SPLITS}
    for split, path in files.items():
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with gzip.open(path, "wt", encoding="utf-8") as file:
                documents = read_texts(corpus / f"{split}.jsonl.gz", recipe.sources)
                file.writelines(json.dumps({"text": text}) + "\n" for text in documents)
    return files


def train_teacher(recipe: Recipe, corpus: Path, out: Path, device: str = "cpu", seed: int = 0) -> None:
    """Train the tokenizer and the model, and save both in `out` together with their text."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {split: read_texts(corpus / f"{split}.jsonl.gz", recipe.sources) for split in SPLITS}
    tokenizer = train_tokenizer(texts["train"], recipe)
    rows = {split: pack(tokenizer, texts[split], recipe.context_size) for split in texts}
    training = Training(recipe, rows["train"], rows["heldout"], out / "checkpoint.pt", device, seed)
    print(f"{rows['train'].numel():,} training tokens, {rows['heldout'].numel():,} held out", flush=True)
    print(f"{training.n_steps:,} steps, {training.model.num_parameters():,} parameters", flush=True)
    training.run()
    save_texts(recipe, corpus, out)
    training.model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    report = {
        "parameters": training.model.num_parameters(),
        "train_tokens": rows["train"].numel(),
        "heldout_tokens": rows["heldout"].numel(),
        "unit": "nats per token",
        "curve": training.curve,
    }
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    training.file.unlink()


def main(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(RECIPES)}.")],
    corpus: Path,
    out: Path,
    device: str = "cpu",
    seed: int = 0,
) -> None:
    """Train one teacher of the atlas, or continue its training."""
    train_teacher(RECIPES[name], corpus, out, device, seed)


if __name__ == "__main__":
    typer.run(main)
