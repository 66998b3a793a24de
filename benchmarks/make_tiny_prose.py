"""Train `tiny-prose`, the embedded teacher: GPT-NeoX (as Pythia), 4 layers, d_model 256, BPE of 4,096 tokens.

    python benchmarks/make_tiny_prose.py CORPUS OUT

CORPUS is a directory with `train.jsonl.gz` and `heldout.jsonl.gz`, one `{"source", "text"}` per line. Only sources in
the public domain are read. OUT is the directory to write: the tokenizer, the weights in bfloat16, and `training.json`.
The held-out documents are written to `heldout.jsonl.gz` in the parent directory of OUT. Every sequence is
`<|endoftext|>` and 255 tokens; the documents are concatenated, with `<|endoftext|>` after each.
"""

import json
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from json_lines import read_json_lines, write_json_lines
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

PUBLIC_DOMAIN = ("sotu", "moby", "austen")
VOCABULARY, CONTEXT, BATCH_SIZE = 4096, 256, 16
WARM_UP_STEPS, SHARE_OF_DECAY = 100, 0.6
STEPS_BETWEEN_EVALUATIONS = 250
END_OF_TEXT = "<|endoftext|>"


def public_domain_texts(path: Path) -> list[str]:
    """Return the documents of a corpus file that are in the public domain."""
    return [row["text"] for row in read_json_lines(path) if row["source"] in PUBLIC_DOMAIN]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=CONTEXT,
    )


def pack(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Return token ids [sequence, CONTEXT]; every sequence begins with the end-of-text token."""
    flat = [t for ids in tokenizer(texts, verbose=False)["input_ids"] for t in [*ids, tokenizer.eos_token_id]]
    rows = torch.tensor(flat[: len(flat) // (CONTEXT - 1) * (CONTEXT - 1)]).view(-1, CONTEXT - 1)
    return torch.cat([torch.full((len(rows), 1), tokenizer.bos_token_id), rows], dim=1)


def build_model() -> GPTNeoXForCausalLM:
    """Build the model with random weights."""
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


def next_token_loss(model: GPTNeoXForCausalLM, batch: Tensor) -> Tensor:
    """Return the cross-entropy of the next token, in nats per token."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(batch).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())


@torch.no_grad()
def heldout_loss(model: GPTNeoXForCausalLM, rows: Tensor) -> float:
    """Return the mean next-token loss over all sequences, in nats per token."""
    losses = [next_token_loss(model, batch).item() * len(batch) for batch in rows.split(64)]
    return sum(losses) / len(rows)


def make_optimizers(model: GPTNeoXForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks, and AdamW for embeddings, biases and norms."""
    matrices = [p for n, p in model.gpt_neox.layers.named_parameters() if p.ndim == 2]
    in_blocks = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in in_blocks]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def main(
    corpus: Path,
    out: Path,
    epochs: Annotated[float, typer.Option(help="Passes over the training text.")] = 4.0,
    lr: float = 3e-3,
    max_steps: int | None = None,
    seed: int = 0,
) -> None:
    """Train the tokenizer and the model, and save both."""
    torch.manual_seed(seed)
    texts = public_domain_texts(corpus / "train.jsonl.gz")
    heldout_texts = public_domain_texts(corpus / "heldout.jsonl.gz")
    tokenizer = train_tokenizer(texts)
    train, heldout = pack(tokenizer, texts), pack(tokenizer, heldout_texts)
    steps = max_steps or int(epochs * len(train) / BATCH_SIZE)
    print(f"{train.numel():,} training tokens, {heldout.numel():,} held out, {steps:,} steps", flush=True)
    model = build_model()
    optimizers = make_optimizers(model, lr)
    order = torch.cat([torch.randperm(len(train)) for _ in range(int(steps * BATCH_SIZE / len(train)) + 1)])
    curve, start = [], time.time()
    for step in range(steps):
        # Linear warm-up, constant, linear decay.
        step_lr = lr * min((step + 1) / WARM_UP_STEPS, 1.0, (steps - step) / (SHARE_OF_DECAY * steps))
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = step_lr
        loss = next_token_loss(model, train[order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % STEPS_BETWEEN_EVALUATIONS == STEPS_BETWEEN_EVALUATIONS - 1 or step == steps - 1:
            row = {
                "step": step + 1,
                "tokens": (step + 1) * BATCH_SIZE * CONTEXT,
                "train_loss": round(loss.item(), 4),
                "heldout_loss": round(heldout_loss(model, heldout), 4),
                "seconds": round(time.time() - start),
            }
            curve.append(row)
            print(row, flush=True)
            (out.parent / f"{out.name}.curve.json").write_text(json.dumps(curve))
    write_json_lines(out.parent / "heldout.jsonl.gz", [{"text": text} for text in heldout_texts])
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
