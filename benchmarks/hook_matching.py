"""Hook matching on the kept part against plain KL: the same student, the same tokens, three seeds.

    python benchmarks/hook_matching.py RUN --text TEXT [--heldout TEXT] [--start random] --out hook_matching.json

RUN is where `tl-floor measure tiny-prose` saved its prediction. Students of one width are trained by the plain KL, with
the whole activation matched beside it, and with its kept part; then, with the kept part, on 70 % of the tokens, whose
learning rate falls earlier: whether these reach what the plain KL reaches with all is the question.
"""

import argparse
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from tl_distill_floor.cli.measuring import quiet_libraries
from tl_distill_floor.distilling.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.distill import distill_students, kept_part
from tl_distill_floor.distilling.matching import Match
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.student import StudentResult
from tl_distill_floor.sources.saes import load_sae
from tl_distill_floor.storage.atomic import write_atomically

SHARE = 0.7


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    options.add_argument("--text", required=True)
    options.add_argument("--heldout")
    options.add_argument("--width", type=int, default=64)
    options.add_argument("--start", default="random")
    options.add_argument("--weight", type=float, default=20.0)
    options.add_argument("--tokens", type=int, default=300_000)
    options.add_argument("--lr", type=float, default=1e-2)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--threads", type=int)
    options.add_argument("--out", type=Path, required=True)
    given = options.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    with quiet_libraries():
        found = compared(given)
    write_atomically(given.out, json.dumps(found, indent=1).encode())


def compared(given: Any) -> dict[str, Any]:
    floor = FloorPrediction.load(given.run)
    sae = load_sae(None, model_name=floor.stats.model_name).sae
    match = Match(floor.stats.hook_name, 1, given.weight)
    kept = kept_part(floor, sae, given.width)
    plain = [StudentSpec(given.width, start=given.start, seed=s, name=f"plain-{s}") for s in range(given.seeds)]
    whole = [dataclasses.replace(spec, match=match, name=f"activation-{spec.seed}") for spec in plain]
    parts = [dataclasses.replace(spec, match=match, target=kept, name=f"kept-{spec.seed}") for spec in plain]
    training = DistillConfig(
        n_tokens=given.tokens,
        lr=given.lr,
        batch_size=8,
        dtype="bf16",
        n_evaluations=8,
        early_stop=False,
        n_heldout_tokens=16_384,
    )

    def trained(specs: list[StudentSpec], tokens: int) -> list[StudentResult]:
        shorter = dataclasses.replace(training, tokens=tokens)
        return distill_students("tiny-prose", specs, given.text, heldout=given.heldout, config=shorter)

    results = trained([*plain, *whole, *parts], given.tokens)
    short = trained(parts, round(SHARE * given.tokens))
    named = {"plain": results[: len(plain)], "activation": results[len(plain) : -len(parts)]}
    named |= {"kept": results[-len(parts) :], f"kept, {SHARE:.0%} of the tokens": short}
    for name, students in named.items():
        losses = [student.loss for student in students]
        print(f"{name}: {statistics.mean(losses):.4f} nats/token ({', '.join(f'{loss:.4f}' for loss in losses)})")
    curves = {name: [{"tokens": s.tokens, "loss": s.losses} for s in students] for name, students in named.items()}
    settings = {
        name: str(value) for name, value in vars(given).items() if name not in ("out", "run", "text", "heldout")
    }
    return {"unit": "nats per token, KL(teacher ‖ student)", "settings": settings, "curves": curves}


if __name__ == "__main__":
    main()
