"""Train `tiny-prose`, the embedded teacher: GPT-NeoX (Pythia's family), 4 layers, d_model 256, BPE of 4,096.

    python benchmarks/make_tiny_prose.py CORPUS OUT

CORPUS holds `train.jsonl.gz` and `heldout.jsonl.gz`, one `{"source", "text"}` a line. Only sources in the public
domain are read. OUT receives the tokenizer, the weights in bfloat16 and `training.json`; the held-out documents go
beside it, as `heldout.jsonl.gz`.
Every sequence is `<|endoftext|>` and 255 tokens; documents are packed with `<|endoftext|>` between them.
"""

import gzip
import json
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

PUBLIC_DOMAIN = ("sotu", "moby", "austen")
VOCABULARY, CONTEXT, BATCH = 4096, 256, 16
END = "<|endoftext|>"


def documents(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row["text"] for row in rows if row["source"] in PUBLIC_DOMAIN]


def write_documents(path: Path, texts: list[str]) -> None:
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    path.write_bytes(gzip.compress(lines.encode(), mtime=0))


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, unk_token=END, model_max_length=CONTEXT
    )


def pack(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """[sequences, CONTEXT] token ids, each row led by the end-of-text token."""
    flat = [t for ids in tokenizer(texts, verbose=False)["input_ids"] for t in [*ids, tokenizer.eos_token_id]]
    rows = torch.tensor(flat[: len(flat) // (CONTEXT - 1) * (CONTEXT - 1)]).view(-1, CONTEXT - 1)
    return torch.cat([torch.full((len(rows), 1), tokenizer.bos_token_id), rows], dim=1)


def new_model() -> GPTNeoXForCausalLM:
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    )
    return GPTNeoXForCausalLM(config)


def loss_of(model: GPTNeoXForCausalLM, batch: Tensor) -> Tensor:
    """Cross-entropy of the next token, nats per token."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(batch).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())


@torch.no_grad()
def heldout_loss(model: GPTNeoXForCausalLM, rows: Tensor) -> float:
    losses = [loss_of(model, batch).item() * len(batch) for batch in rows.split(64)]
    return sum(losses) / len(rows)


def optimizers(model: GPTNeoXForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings, biases and norms."""
    matrices = [p for n, p in model.gpt_neox.layers.named_parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def main(
    corpus: Path,
    out: Path,
    epochs: Annotated[float, typer.Option(help="Passes over the training text.")] = 4.0,
    lr: float = 3e-3,
    max_steps: int | None = None,
    seed: int = 0,
) -> None:
    torch.manual_seed(seed)
    texts, unseen = documents(corpus / "train.jsonl.gz"), documents(corpus / "heldout.jsonl.gz")
    tokenizer = train_tokenizer(texts)
    train, heldout = pack(tokenizer, texts), pack(tokenizer, unseen)
    steps = max_steps or int(epochs * len(train) / BATCH)
    print(f"{train.numel():,} training tokens, {heldout.numel():,} held out, {steps:,} steps", flush=True)
    model = new_model()
    opts = optimizers(model, lr)
    order = torch.cat([torch.randperm(len(train)) for _ in range(int(steps * BATCH / len(train)) + 1)])
    curve, start = [], time.time()
    for step in range(steps):
        share = lr * min((step + 1) / 100, 1.0, (steps - step) / (0.6 * steps))  # warm-up, constant, linear decay
        for opt in opts:
            opt.param_groups[0]["lr"] = share
        loss = loss_of(model, train[order[step * BATCH : (step + 1) * BATCH]])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        if step % 250 == 249 or step == steps - 1:
            row = {
                "step": step + 1,
                "tokens": (step + 1) * BATCH * CONTEXT,
                "train_loss": round(loss.item(), 4),
                "heldout_loss": round(heldout_loss(model, heldout), 4),
                "seconds": round(time.time() - start),
            }
            curve.append(row)
            print(row, flush=True)
            (out.parent / f"{out.name}.curve.json").write_text(json.dumps(curve))
    write_documents(out.parent / "heldout.jsonl.gz", unseen)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    report = {
        "parameters": model.num_parameters(),
        "train_tokens": train.numel(),
        "heldout_tokens": heldout.numel(),
        "unit": "nats per token",
        "curve": curve,
    }
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
