"""How near measuring comes to its limit: the bare forward pass to the layer plus `sae.encode`, on the same batches.

    python benchmarks/measuring_speed.py [--only CASE] [--cost fisher] [--json]

With `--cost fisher` the limit is the whole forward pass, one backward pass to the layer, and `sae.encode`.

Each case runs bare, ours and SAELens's `run_evals` (sparsity, variance and feature densities) in turn, `--rounds`
times, and reports the median ratio of the rounds. Peak memory is the high-water mark of a process of its own that
loads the same objects and then does the one kind of work; the ratio of the marks contains what is loaded.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Annotated, Any, NamedTuple

import torch
import typer

from tl_distill_floor import load_sae, load_teacher, measure
from tl_distill_floor.cli.measuring import quiet_libraries
from tl_distill_floor.measuring.hooks import differentiator, hook_point

Case = StrEnum("Case", ["tiny-prose", "smollm2", "pythia-410m-shape"])
Work = StrEnum("Work", ["bare", "ours", "run_evals"])
CONTEXT, BATCH = 256, 8


class Subject(NamedTuple):
    model: Any
    sae: Any
    hook_name: str
    ids: torch.Tensor
    cost: str


def subject(case: str, n_tokens: int, dtype: str, smollm2_sae: str | None, cost: str) -> Subject:
    if case == "tiny-prose":
        source = load_sae(None, model_name="tiny-prose")
        model, sae, hook = load_teacher("tiny-prose", dtype=dtype).model, source.sae, source.hook_name
    elif case == "smollm2":
        model, hook = load_teacher("smollm2-135m", dtype=dtype).model, "blocks.12.hook_resid_post"
        sae = load_sae(smollm2_sae).sae if smollm2_sae else random_sae(576, 4608, hook)
    else:
        model, hook = random_pythia(dtype), "blocks.12.hook_resid_post"
        sae = random_sae(1024, 32_768, hook, l0=200)
    ids = torch.randint(1000, 4000, (n_tokens // CONTEXT, CONTEXT), generator=torch.Generator().manual_seed(0))
    return Subject(model, sae, hook, ids, cost)


def random_pythia(dtype: str) -> Any:
    """Random weights at the shape of Pythia-410M."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=50_304,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model = GPTNeoXForCausalLM(config).to(kind)
    tokenizer = load_teacher("tiny-prose").model.tokenizer
    return TransformerBridge.boot_transformers("random", hf_model=model, tokenizer=tokenizer, dtype=kind)


def random_sae(d_in: int, d_sae: int, hook: str, l0: int = 40) -> Any:
    """A random TopK-like SAE: the threshold lets about `l0` features a token through."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(hook_name=hook, context_size=CONTEXT, prepend_bos=False)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=d_sae, normalize_activations="none", metadata=metadata))
    torch.manual_seed(0)
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(d_in, d_sae) / d_in**0.5)
        sae.W_dec.copy_(sae.W_enc.T)
        quantile = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - l0 / d_sae))
        sae.threshold.fill_(float(quantile))
    return sae


def bare(s: Subject) -> None:
    """Nothing but the forward pass, ended at the hook point, and the encoder; see above for fisher."""
    if s.cost == "fisher":
        with differentiator(s.model, [s.hook_name]) as run:
            for batch in s.ids.split(BATCH):
                logits, acts = run(batch)
                torch.autograd.grad(logits, acts, torch.ones_like(logits))
                with torch.no_grad():
                    s.sae.encode(acts[0].detach())
        return

    class StopError(Exception):
        pass

    caught: list[torch.Tensor] = []

    def stop(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        caught.append(output)
        raise StopError

    handle = hook_point(s.model, s.hook_name).register_forward_hook(stop)
    try:
        with torch.no_grad():
            for batch in s.ids.split(BATCH):
                try:
                    s.model(batch)
                except StopError:
                    s.sae.encode(caught.pop())
    finally:
        handle.remove()


def ours(s: Subject) -> None:
    measure(s.model, s.sae, s.ids, cost=s.cost, hook_name=s.hook_name, batch_size=BATCH, n_tokens=s.ids.numel())


def run_evals(s: Subject) -> None:
    from datasets import Dataset
    from sae_lens import ActivationsStore
    from sae_lens.evals import EvalConfig
    from sae_lens.evals import run_evals as evaluate
    from sae_lens.training.activation_scaler import ActivationScaler

    rows = Dataset.from_dict({"input_ids": s.ids.numpy()}).with_format("numpy")
    store = ActivationsStore.from_sae(s.model, s.sae, rows, streaming=False, context_size=CONTEXT, total_tokens=1)
    config = EvalConfig(
        batch_size_prompts=BATCH,
        n_eval_sparsity_variance_batches=len(s.ids) // BATCH,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
    )
    evaluate(s.sae, store, s.model, ActivationScaler(), config)


WORK: dict[str, Callable[[Subject], None]] = {"bare": bare, "ours": ours, "run_evals": run_evals}


def seconds(work: str, s: Subject) -> float:
    start = time.perf_counter()
    WORK[work](s)
    return time.perf_counter() - start


def peaks(case: str, options: list[str]) -> Iterator[tuple[str, float]]:
    """(work, MB) of a process that does that work once."""
    for work in WORK:
        command = [sys.executable, __file__, "--only", case, "--peak-of", work, *options]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        yield work, float(out.split()[-1])


def main(
    only: Annotated[Case | None, typer.Option(help="One case; all of them when left out.")] = None,
    tokens: int = 16_384,
    rounds: int = 3,
    dtype: str = "fp32",
    cost: str = "energy",
    smollm2_sae: Annotated[str | None, typer.Option(help="SAE of SmolLM2; random weights when left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
    peak_of: Annotated[Work | None, typer.Option(hidden=True)] = None,
) -> None:
    options = ["--tokens", str(tokens), "--dtype", dtype, "--cost", cost] + (
        ["--smollm2-sae", smollm2_sae] if smollm2_sae else []
    )
    for case in [only] if only else list(Case):
        with quiet_libraries():
            s = subject(case, tokens, dtype, smollm2_sae, cost)
            if peak_of:
                WORK[peak_of](s)
                print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
                return
            bare(s._replace(ids=s.ids[:BATCH]))
            times = [{work: seconds(work, s) for work in WORK} for _ in range(rounds)]
        memory = dict(peaks(case, options))
        row: dict[str, Any] = {
            "case": case,
            "dtype": dtype,
            "cost": cost,
            "tokens": s.ids.numel(),
            "bare_tokens_per_s": round(s.ids.numel() / statistics.median(t["bare"] for t in times)),
            "ours_tokens_per_s": round(s.ids.numel() / statistics.median(t["ours"] for t in times)),
            "ours_to_bare": round(statistics.median(t["bare"] / t["ours"] for t in times), 3),
            "ours_to_run_evals": round(statistics.median(t["run_evals"] / t["ours"] for t in times), 2),
            "bare_peak_mb": round(memory["bare"]),
            "ours_peak_mb": round(memory["ours"]),
            "peak_ratio": round(memory["ours"] / memory["bare"], 3),
        }
        text = json.dumps(row) if as_json else "  ".join(f"{name} {value}" for name, value in row.items())
        print(text, flush=True)


if __name__ == "__main__":
    typer.run(main)
