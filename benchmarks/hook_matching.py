"""Test whether matching the kept part of an activation helps distillation: same student, same tokens, three seeds.

    python benchmarks/hook_matching.py RUN --text TEXT [--heldout TEXT] [--start random] --out hook_matching.json

RUN is a run directory of `tl-floor measure tiny-prose`. Students of one width are trained in four ways: with the KL
alone; with the KL while the full activation is matched; while its kept part is matched; and while its kept part is
matched on 70 % of the tokens, where the learning rate decays earlier. The question is whether the last ones reach the
loss that the KL alone reaches with all tokens.
"""

import argparse
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from tl_distill_floor.cli.libraries import quiet_libraries
from tl_distill_floor.cli.memory import tune_allocator
from tl_distill_floor.distilling.training.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.training.distill import distill_students
from tl_distill_floor.distilling.training.matching import Match, kept_reconstruction
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.student import StudentResult
from tl_distill_floor.sources.saes import load_sae
from tl_distill_floor.storage.atomic import write_atomically

SHARE_OF_TOKENS = 0.7


def main() -> None:
    """Train the students and write their learning curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--text", required=True)
    parser.add_argument("--heldout")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--start", default="random")
    parser.add_argument("--weight", type=float, default=20.0)
    parser.add_argument("--tokens", type=int, default=300_000)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    tune_allocator()
    with quiet_libraries():
        results = compare_matching(options)
    write_atomically(options.out, json.dumps(results, indent=1).encode())


def compare_matching(options: argparse.Namespace) -> dict[str, Any]:
    """Train the students of all four ways, print their final losses, and return their learning curves."""
    floor = FloorPrediction.load(options.run)
    sae = load_sae(None, model_name=floor.stats.model_name).sae
    match = Match(floor.stats.hook_name, 1, options.weight)
    kept = kept_reconstruction(floor, sae, options.width)
    seeds = range(options.seeds)
    plain = [StudentSpec(options.width, start=options.start, seed=seed, name=f"plain-{seed}") for seed in seeds]
    full = [dataclasses.replace(spec, match=match, name=f"activation-{spec.seed}") for spec in plain]
    kept_only = [dataclasses.replace(spec, match=match, target=kept, name=f"kept-{spec.seed}") for spec in plain]
    config = DistillConfig(
        n_tokens=options.tokens,
        lr=options.lr,
        batch_size=8,
        dtype="bf16",
        n_evaluations=8,
        early_stop=False,
        n_heldout_tokens=16_384,
    )

    def train(specs: list[StudentSpec], n_tokens: int) -> list[StudentResult]:
        config_of_length = dataclasses.replace(config, n_tokens=n_tokens)
        return distill_students("tiny-prose", specs, options.text, heldout=options.heldout, config=config_of_length)

    results = train([*plain, *full, *kept_only], options.tokens)
    students_by_way = {
        "plain": results[: len(plain)],
        "activation": results[len(plain) : -len(kept_only)],
        "kept": results[-len(kept_only) :],
        f"kept, {SHARE_OF_TOKENS:.0%} of the tokens": train(kept_only, round(SHARE_OF_TOKENS * options.tokens)),
    }
    for name, students in students_by_way.items():
        losses = [student.loss for student in students]
        print(f"{name}: {statistics.mean(losses):.4f} nats/token ({', '.join(f'{loss:.4f}' for loss in losses)})")
    curves = {
        name: [{"tokens": student.tokens, "loss": student.losses} for student in students]
        for name, students in students_by_way.items()
    }
    left_out = ("out", "run", "text", "heldout")
    settings = {name: str(value) for name, value in vars(options).items() if name not in left_out}
    return {"unit": "nats per token, KL(teacher ‖ student)", "settings": settings, "curves": curves}


if __name__ == "__main__":
    main()
