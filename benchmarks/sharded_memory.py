"""Measure the memory of a process that distils a teacher alone, and of each of two processes that share its weights.

    python benchmarks/sharded_memory.py
    python benchmarks/sharded_memory.py --steps 8 --json sharded_memory.json

A Llama of 100 million random weights is distilled into a student of half its width, in fp32 on the CPU. For each
process, the script prints the resident memory after a tiny Llama was distilled in the same way, which is that of the
libraries, and the peak from the end of the first step to the end of the last. Linux only.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

N_PROCESSES = 2
WIDTH, LAYERS, HEADS, VOCABULARY, CONTEXT, BATCH = 768, 12, 12, 10_000, 64, 4


def main() -> None:
    """Run one process alone and then several, and print the memory of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="training steps (default: 6)")
    parser.add_argument("--json", type=Path, help="file to write the result to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_teacher(Path(folder) / "tiny", width=48)
        n_parameters = save_teacher(Path(folder) / "large", width=WIDTH)
        alone = run(Path(folder), options.steps, 1)
        shared = run(Path(folder), options.steps, N_PROCESSES)
    result = {"n_parameters": n_parameters, "alone": alone[0], "sharded": shared}
    result["ratio"] = max(row["above_libraries"] for row in shared) / alone[0]["above_libraries"]
    result["ratio_of_all"] = max(row["peak"] for row in shared) / alone[0]["peak"]
    print(f"teacher: {n_parameters:,} parameters, {n_parameters * 4 / 2**20:,.0f} MiB")
    print("process       libraries   peak  above libraries")
    for name, row in [("alone", alone[0]), *((f"{i + 1} of {N_PROCESSES}", row) for i, row in enumerate(shared))]:
        print(f"{name:12s} {row['libraries']:6.0f} MiB {row['peak']:6.0f}  {row['above_libraries']:6.0f} MiB")
    ratios = f"{result['ratio']:.3f} above libraries, {result['ratio_of_all']:.3f} of all"
    print(f"largest of {N_PROCESSES} / alone: {ratios}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def save_teacher(directory: Path, width: int) -> int:
    """Save a random Llama, and return its number of parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=width, intermediate_size=width * 8 // 3, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
        )
    )  # fmt: skip
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return model.num_parameters()


def save_tokenizer(directory: Path) -> None:
    """Save a tokenizer of one token per byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({"<end>": 0} | {letter: i + 1 for i, letter in enumerate(letters)}, []))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<end>", eos_token="<end>").save_pretrained(directory)


def run(directory: Path, steps: int, n_processes: int) -> list[dict[str, float]]:
    """Train in n processes, and return the memory of each in MiB."""
    command = [sys.executable, __file__] if n_processes == 1 else [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n_processes), __file__
    ]  # fmt: skip
    environment = os.environ | {"MEMORY_OF": f"{directory} {steps}", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
    return [json.loads((directory / f"memory{rank}of{n_processes}.json").read_text()) for rank in range(n_processes)]


def train(directory: Path, steps: int) -> None:
    """Train in this process, and write its memory into a file."""
    import torch

    from tl_distill_floor.distilling.training.config import DistillConfig, StudentSpec
    from tl_distill_floor.distilling.training.distill import distill_students

    rank, n_processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    ids = torch.randint(1, VOCABULARY, (BATCH * 4, CONTEXT), generator=torch.Generator().manual_seed(0))
    config = DistillConfig(
        n_tokens=steps * BATCH * CONTEXT, batch_size=BATCH, n_evaluations=2, n_heldout_tokens=CONTEXT * BATCH
    )

    def reset_after_first(n_tokens: int, _total: int, _message: str) -> None:
        if n_tokens == BATCH * CONTEXT:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak

    distill_students(str(directory / "tiny"), [StudentSpec(24)], ids, config=config, shard=n_processes > 1)
    libraries = resident("VmRSS")
    distill_students(
        str(directory / "large"), [StudentSpec(WIDTH // 2)], ids, config=config, shard=n_processes > 1,
        progress=reset_after_first,
    )  # fmt: skip
    peak = resident("VmHWM")
    row = {"libraries": libraries, "peak": peak, "above_libraries": peak - libraries}
    (directory / f"memory{rank}of{n_processes}.json").write_text(json.dumps(row))


def resident(field: str) -> float:
    """Return a field of this process's status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


if __name__ == "__main__":
    if "MEMORY_OF" in os.environ:
        folder, n_steps = os.environ["MEMORY_OF"].rsplit(" ", 1)
        train(Path(folder), int(n_steps))
    else:
        main()
