"""Damaged files of every kind that the package reads: each is read, or refused in one sentence, and nothing else."""

import contextlib
import dataclasses
import gzip
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Array2D, Dataset, Features, Sequence, Value
from sae_lens.saes.sae import SAEMetadata
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.helpers.probes import rows
from tl_distill_floor import Calibration, FeatureStats, FloorPrediction, Probes, StudentResult
from tl_distill_floor.display.report import report_html
from tl_distill_floor.display.run_parts import run_parts
from tl_distill_floor.distilling.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.texts import texts_of
from tl_distill_floor.distilling.trainer import Sweep
from tl_distill_floor.errors import InputError
from tl_distill_floor.predicting.lost_features import lost_features
from tl_distill_floor.results.simulation import Simulation
from tl_distill_floor.results.tail_loss import TailLoss
from tl_distill_floor.sae_training.train_sae import _begun
from tl_distill_floor.sae_training.trainer import SaeTraining
from tl_distill_floor.sources.documents import read_documents
from tl_distill_floor.sources.labels import load_labels
from tl_distill_floor.sources.saes import load_sae
from tl_distill_floor.sources.teachers import load_teacher
from tl_distill_floor.sources.text import load_text
from tl_distill_floor.storage.checkpoints import _digest
from tl_distill_floor.storage.versioned import HEADER

HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 2**70, 1e308, float("nan"), float("inf"), "", "\x1b[31m", "<script>", "../../etc/passwd", [], {},
    [[]], [None], {"a": 1}, [1] * 40,
)  # fmt: skip
MOST_SECONDS = 20.0
MANY = int(os.environ.get("FUZZ_FILES", "100"))
"""Damaged files of each kind, a tenth of that where a whole page is made of them."""


class Reader(NamedTuple):
    """What reads a file, and the directory that a good one lies in."""

    name: str
    file: str
    read: Callable[[Path], Any]


def shown_run(directory: Path) -> Any:
    """A whole run, and everything that is shown of it."""
    return report_html(run_parts(directory, top=3))


def cached_activations(directory: Path) -> Any:
    text = load_text(directory / "cache", None)
    assert text.read_cached is not None
    return list(text.read_cached("blocks.1.hook_resid_post"))


@cache
def a_sweep() -> Sweep:
    """A training that a checkpoint can be read into."""
    training = DistillConfig(n_tokens=10_000, n_heldout_tokens=32)
    teacher, ids = load_teacher("tiny-prose"), torch.arange(32 * 20).view(20, 32) % 4000
    texts = texts_of(teacher, ids[1:], ids[:1], training)
    return Sweep(teacher, [StudentSpec(64)], texts, training, Accelerator(cpu=True))


@cache
def an_sae_training() -> SaeTraining:
    """The same of an SAE."""
    sae = _begun("batchtopk", 0, d_in=8, d_sae=16, k=2, metadata=SAEMetadata())
    training = SaeTraining(sae, {"k": 2}, n_tokens=8192, lr=1e-3, device="cpu", autocast=False)
    training._trainer.activation_scaler.scaling_factor = 1.0
    return training


def signed(file: Path) -> Path:
    """With the digest that its content has now, as one who means harm would give it."""
    with contextlib.suppress(Exception):
        with safe_open(file, framework="pt") as opened:
            header = json.loads(opened.metadata()[HEADER])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        header["digest"] = _digest(header["scalars"], tensors)
        save_file(tensors, file, metadata={HEADER: json.dumps(header)})
    return file


READERS = (
    Reader("statistics", "stats.safetensors", FeatureStats.load),
    Reader("simulation", "simulated.safetensors", Simulation.load),
    Reader("tail loss", "tail.safetensors", TailLoss.load),
    Reader("prediction", "floor.json", FloorPrediction.load),
    Reader("lost features", "stats.safetensors", lambda run: lost_features(FloorPrediction.load(run), 8, 3)),
    Reader("calibration", "calibration.json", Calibration.load),
    Reader("student", "students/width8/student.json", lambda run: StudentResult.load(run / "students/width8")),
    Reader("probes", "probes.json", Probes.load),
    Reader("report", "floor.json", shown_run),
    Reader("report of students", "students/width8/student.json", shown_run),
    Reader("report of probes", "probes.json", shown_run),
    Reader("report of a calibration", "calibration.json", shown_run),
    Reader("text", "text.jsonl", lambda directory: list(read_documents(directory / "text.jsonl"))),
    Reader("compressed text", "text.jsonl.gz", lambda directory: list(read_documents(directory / "text.jsonl.gz"))),
    Reader("labels", "rows.jsonl", lambda directory: load_labels(directory / "rows.jsonl", ["length", "half"])),
    Reader("SAE weights", "sae/sae_weights.safetensors", lambda directory: load_sae(directory / "sae")),
    Reader("SAE configuration", "sae/cfg.json", lambda directory: load_sae(directory / "sae")),
    Reader("SAE state dict", "loose.safetensors", lambda directory: load_sae(directory / "loose.safetensors")),
    Reader("SAE torch file", "loose.pt", lambda directory: load_sae(directory / "loose.pt")),
    Reader("model configuration", "teacher/config.json", lambda directory: load_teacher(directory / "teacher")),
    Reader("model weights", "teacher/model.safetensors", lambda directory: load_teacher(directory / "teacher")),
    Reader("tokenizer", "teacher/tokenizer.json", lambda directory: load_teacher(directory / "teacher")),
    Reader("training", "training.safetensors", lambda run: a_sweep().load(signed(run / "training.safetensors"))),
    Reader("SAE's training", "sae.safetensors", lambda run: an_sae_training().load(signed(run / "sae.safetensors"))),
    Reader("activations", "cache/state.json", cached_activations),
    Reader("activations' shapes", "cache/dataset_info.json", cached_activations),
    Reader("activations' numbers", "cache/data-00000-of-00001.arrow", cached_activations),
)  # fmt: skip


@pytest.fixture(scope="module")
def good(distilled: Path, sae_dir: Path, teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a good file of every kind."""
    from tests.helpers.cli import run

    directory = tmp_path_factory.mktemp("good") / "run"
    shutil.copytree(distilled, directory, ignore=shutil.ignore_patterns("model.safetensors", "tokenizer*"))
    shutil.copytree(sae_dir, directory / "sae")
    shutil.copytree(teacher_dir, directory / "teacher")
    weights = load_file(directory / "sae" / "sae_weights.safetensors")
    save_file(weights, directory / "loose.safetensors")
    torch.save(weights, directory / "loose.pt")
    a_sweep().save(directory / "training.safetensors")
    an_sae_training().save(directory / "sae.safetensors")
    hook, acts = "blocks.1.hook_resid_post", np.ones((4, 8, 24), dtype=np.float32)
    shapes = Features({hook: Array2D((8, 24), "float32"), "token_ids": Sequence(Value("int32"), 8)})
    ids = np.ones((4, 8), dtype=np.int32)
    Dataset.from_dict({hook: acts, "token_ids": ids}, features=shapes).save_to_disk(directory / "cache")
    assert run("calibrate", directory).exit_code == 0
    lines = "".join(json.dumps(row) + "\n" for row in rows())
    (directory / "rows.jsonl").write_text(lines)
    text = "".join(json.dumps({"text": f"Call me {i}. é日"}) + "\n" for i in range(30))
    (directory / "text.jsonl").write_text(text)
    (directory / "text.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return directory


def mutants(data: bytes, seed: int) -> Iterator[bytes]:
    """Damaged copies without end: bytes changed, cut, repeated; numbers of a header; values of JSON replaced."""
    draw = random.Random(seed)
    while True:
        kind = draw.randrange(6)
        if kind == 0:
            changed = bytearray(data)
            for _ in range(draw.choice((1, 1, 2, 8, 64))):
                changed[draw.randrange(len(changed))] = draw.randrange(256)
            yield bytes(changed)
        elif kind == 1:
            yield data[: draw.randrange(len(data))]
        elif kind == 2:
            at, n = draw.randrange(len(data)), draw.choice((1, 7, 100, 5000))
            yield data[:at] + data[at + n :]
        elif kind == 3:
            at, n = draw.randrange(len(data)), draw.choice((1, 7, 100, 5000))
            yield data[: at + n] + data[at:]
        else:
            yield json_mutant(data, draw)


def json_mutant(data: bytes, draw: random.Random) -> bytes:
    """The JSON of a file, or of a safetensors file's header, with one value replaced or left out."""
    if data[:1] in (b"{", b"["):
        lines = data.split(b"\n") if data.count(b'\n{"') else [data]
        place = draw.randrange(len(lines))
        if lines[place].strip():
            lines[place] = json.dumps(replaced(json.loads(lines[place]), draw)).encode()
        return b"\n".join(lines)
    size = int.from_bytes(data[:8], "little")
    if size > len(data):
        return data[::-1]
    header = json.loads(data[8 : 8 + size])
    own = header.get("__metadata__", {})
    if HEADER in own and draw.random() < 0.5:  # our own header, JSON within JSON
        own[HEADER] = json.dumps(replaced(json.loads(own[HEADER]), draw))
    else:
        header = replaced(header, draw)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def replaced(value: Any, draw: random.Random) -> Any:
    """One value of a tree replaced by something hostile, or left out."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        name = draw.choice(list(value))
        if draw.random() < 0.15:
            return {key: found for key, found in value.items() if key != name}
        return value | {name: replaced(value[name], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        return [*value[:place], replaced(value[place], draw), *value[place + 1 :]]
    return draw.choice(HOSTILE)


def attack(good: Path, probes: Probes, tmp_path: Path, reader: Reader, n: int, seed: int) -> int:
    """Read n damaged files; how many of them were refused."""
    directory = tmp_path / "run"
    shutil.copytree(good, directory)
    digest = FloorPrediction.load(directory).stats.digest()
    dataclasses.replace(probes, stats=digest).save(directory)
    file = directory / reader.file
    data, refused = file.read_bytes(), 0
    for number, mutant in enumerate(islice(mutants(data, seed), n)):
        file.write_bytes(mutant)
        started = time.monotonic()
        try:
            reader.read(directory)
        except InputError:
            refused += 1
        except Exception as error:
            kept = tmp_path / "mutant"
            kept.write_bytes(mutant)
            raise AssertionError(
                f"{reader.name}: mutant {number} of seed {seed} raised {error!r}; kept in {kept}"
            ) from error
        assert time.monotonic() - started < MOST_SECONDS, f"{reader.name}: mutant {number} of seed {seed} took long"
    return refused


@pytest.mark.filterwarnings("ignore")  # libraries warn of what they read, which is damaged
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_some_damaged_files(good: Path, probes: Probes, tmp_path: Path, reader: Reader) -> None:
    assert attack(good, probes, tmp_path, reader, 8, seed=0) > 0 or "report" in reader.name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_many_damaged_files(good: Path, probes: Probes, tmp_path: Path, reader: Reader) -> None:
    attack(good, probes, tmp_path, reader, MANY // 10 if "report" in reader.name else MANY, seed=1)
