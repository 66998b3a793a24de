"""Damaged files of every kind that the package reads: each is either read or rejected with an InputError."""

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
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from datasets import Array2D, Dataset, DatasetDict, Features, Sequence, Value
from sae_lens.saes.sae import SAEMetadata
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.helpers.probes import labelled_rows
from tl_distill_floor import Calibration, FeatureStats, FloorPrediction, HeadFloor, Probes, StudentResult
from tl_distill_floor.display.report_sections import report_html
from tl_distill_floor.display.run_parts import load_run_parts
from tl_distill_floor.distilling.training.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.training.sweep import Sweep
from tl_distill_floor.distilling.training.text_split import read_text_split
from tl_distill_floor.errors import InputError
from tl_distill_floor.predicting.lost_features import lost_features
from tl_distill_floor.results.simulation import Simulation
from tl_distill_floor.results.tail_loss import TailLoss
from tl_distill_floor.sae_training.config import SaeTrainingConfig
from tl_distill_floor.sae_training.sae_trainer import SaeTraining
from tl_distill_floor.sae_training.train_sae import initial_sae
from tl_distill_floor.sources.documents import open_documents
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
MAX_SECONDS = 20.0
N_FILES = int(os.environ.get("FUZZ_FILES", "100"))
"""Damaged files of each kind in the slow test; a tenth of it for readers that make a full report."""
N_QUICK_FILES, N_QUICK_REPORTS = 8, 2


class Reader(NamedTuple):
    """A file in a directory, and a function that reads it."""

    name: str
    file: str
    """Path of the file in the directory."""
    read: Callable[[Path], Any]
    """Called with the directory."""


def make_report(directory: Path) -> Any:
    """Load all parts of a run and make the HTML report."""
    return report_html(load_run_parts(directory, top=3))


def read_cached_activations(directory: Path) -> Any:
    """Read all rows of cached activations."""
    text = load_text(directory / "cache", None)
    assert text.cached is not None
    return list(text.cached.read("blocks.1.hook_resid_post"))


def read_head_floor(run: Path) -> Any:
    """Load a head floor, and use it."""
    head = HeadFloor.load(run)
    return head.width_for(0.5 * head.floor[0]), head._repr_html_(), head.plot()


@cache
def make_sweep() -> Sweep:
    """Return a training of a student, into which a checkpoint can be loaded."""
    config = DistillConfig(n_tokens=10_000, n_heldout_tokens=32)
    teacher, ids = load_teacher("tiny-prose"), torch.arange(32 * 20).view(20, 32) % 4000
    split = read_text_split(teacher, ids[1:], ids[:1], config)
    return Sweep(teacher, [StudentSpec(64)], split, config, Accelerator(cpu=True))


@cache
def make_sae_training() -> SaeTraining:
    """Return a training of an SAE, into which a checkpoint can be loaded."""
    config = SaeTrainingConfig(d_sae=16, k=2, n_tokens=8192)
    training = SaeTraining(initial_sae(config, 8, SAEMetadata()), config, {"k": 2}, device="cpu")
    training._trainer.activation_scaler.scaling_factor = 1.0
    return training


def documents_of(file: Path) -> list[str]:
    """Return the documents of a text file."""
    return list(open_documents(file).read())


def update_digest(file: Path) -> Path:
    """Write the digest of the damaged content into a checkpoint, as an attacker would; return the file."""
    with contextlib.suppress(Exception):
        with safe_open(file, framework="pt") as opened:
            header = json.loads(opened.metadata()[HEADER])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        header["digest"] = _digest(header["scalars"], tensors)
        save_file(tensors, file, metadata={HEADER: json.dumps(header)})
    return file


def load_student_checkpoint(directory: Path) -> None:
    """Load the checkpoint of a student's training."""
    make_sweep().load(update_digest(directory / "training.safetensors"))


def load_sae_checkpoint(directory: Path) -> None:
    """Load the checkpoint of an SAE's training."""
    make_sae_training().load(update_digest(directory / "sae.safetensors"))


READERS = (
    Reader("statistics", "stats.safetensors", FeatureStats.load),
    Reader("simulation", "simulated.safetensors", Simulation.load),
    Reader("tail loss", "tail.safetensors", TailLoss.load),
    Reader("head floor", "head.json", read_head_floor),
    Reader("prediction", "floor.json", FloorPrediction.load),
    Reader("lost features", "stats.safetensors", lambda run: lost_features(FloorPrediction.load(run), 8, 3)),
    Reader("promoted tokens", "promoted.json", FloorPrediction.load),
    Reader("calibration", "calibration.json", Calibration.load),
    Reader("student", "students/width8/student.json", lambda run: StudentResult.load(run / "students/width8")),
    Reader("probes", "probes.json", Probes.load),
    Reader("report", "floor.json", make_report),
    Reader("report of students", "students/width8/student.json", make_report),
    Reader("report of probes", "probes.json", make_report),
    Reader("report of a calibration", "calibration.json", make_report),
    Reader("text", "text.jsonl", lambda directory: documents_of(directory / "text.jsonl")),
    Reader("compressed text", "text.jsonl.gz", lambda directory: documents_of(directory / "text.jsonl.gz")),
    Reader("labels", "rows.jsonl", lambda directory: load_labels(directory / "rows.jsonl", ["length", "half"])),
    Reader("table of labels", "rows.parquet", lambda directory: load_labels(directory / "rows.parquet", ["half"])),
    *(
        Reader(f"table {file}", file, lambda directory, file=file: documents_of(directory / file))
        for file in ("table.parquet", "table.csv", "table.csv.gz", "table.json", "stream.arrow", "file.arrow")
    ),
    *(
        Reader(f"saved text, {file}", f"saved/{file}", lambda directory: documents_of(directory / "saved"))
        for file in ("state.json", "dataset_info.json", "data-00000-of-00001.arrow")
    ),
    Reader("saved splits", "splits/dataset_dict.json", lambda directory: documents_of(directory / "splits")),
    Reader("SAE weights", "sae/sae_weights.safetensors", lambda directory: load_sae(directory / "sae")),
    Reader("SAE configuration", "sae/cfg.json", lambda directory: load_sae(directory / "sae")),
    Reader("SAE state dict", "loose.safetensors", lambda directory: load_sae(directory / "loose.safetensors")),
    Reader("SAE torch file", "loose.pt", lambda directory: load_sae(directory / "loose.pt")),
    Reader("SAE settings", "loose.json", lambda directory: load_sae(directory / "loose.pt")),
    Reader("SAE archive", "scope/params.npz", lambda directory: load_sae(directory / "scope")),
    Reader("SAE archive's settings", "scope/config.yaml", lambda directory: load_sae(directory / "scope")),
    Reader("SAE of a dictionary", "dictionary/config.json", lambda directory: load_sae(directory / "dictionary")),
    Reader("SAE of sparsify", "layers.1/cfg.json", lambda directory: load_sae(directory / "layers.1")),
    Reader("SAE of Llama Scope", "scope2/hyperparams.json", lambda directory: load_sae(directory / "scope2")),
    Reader("model configuration", "teacher/config.json", lambda directory: load_teacher(directory / "teacher")),
    Reader("model weights", "teacher/model.safetensors", lambda directory: load_teacher(directory / "teacher")),
    Reader("tokenizer", "teacher/tokenizer.json", lambda directory: load_teacher(directory / "teacher")),
    Reader("training", "training.safetensors", load_student_checkpoint),
    Reader("SAE's training", "sae.safetensors", load_sae_checkpoint),
    Reader("activations", "cache/state.json", read_cached_activations),
    Reader("activations' shapes", "cache/dataset_info.json", read_cached_activations),
    Reader("activations' values", "cache/data-00000-of-00001.arrow", read_cached_activations),
)  # fmt: skip


def write_sae_files(directory: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write SAEs of several formats with the configuration files that are read with them."""
    d_in, d_sae = weights["W_enc"].shape
    settings = {"activation": "relu", "apply_b_dec_to_input": False, "hook_name": "blocks.1.hook_resid_post"}
    (directory / "loose.json").write_text(json.dumps(settings))
    for folder in ("scope", "dictionary", "layers.1", "scope2/checkpoints"):
        (directory / folder).mkdir(parents=True)
    arrays = {name: tensor.numpy() for name, tensor in weights.items()} | {"threshold": np.ones(d_sae, np.float32)}
    np.savez(directory / "scope" / "params.npz", **arrays)
    (directory / "scope" / "config.yaml").write_text("model: tiny-prose\nlayers: {a: [1, 2], b: 3}\n")
    linear = {"encoder.weight": weights["W_enc"].T.contiguous(), "encoder.bias": weights["b_enc"]}
    decoder = {"decoder.weight": weights["W_dec"].T.contiguous()}
    torch.save(linear | decoder | {"bias": weights["b_dec"]}, directory / "dictionary" / "ae.pt")
    trainer = {"dict_class": "AutoEncoder", "layer": 1, "submodule_name": "resid_post_layer_1", "lm_name": "gpt2"}
    content = {"trainer": trainer, "buffer": {"io": "out", "ctx_len": 128}}
    (directory / "dictionary" / "config.json").write_text(json.dumps(content))
    save_file(linear | {name: weights[name] for name in ("W_dec", "b_dec")}, directory / "layers.1" / "sae.safetensors")
    sparsify = {"activation": "topk", "k": 4, "num_latents": d_sae, "d_in": d_in, "signed": False}
    (directory / "layers.1" / "cfg.json").write_text(json.dumps(sparsify))
    save_file(
        linear | decoder | {"decoder.bias": weights["b_dec"]}, directory / "scope2" / "checkpoints" / "f.safetensors"
    )
    hyperparams = {
        "hook_point_in": "blocks.1.hook_resid_post", "d_model": d_in, "act_fn": "jumprelu", "jump_relu_threshold": 0.5,
        "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": 4.0, "out": 4.0},
        "sparsity_include_decoder_norm": True, "top_k": 50,
    }  # fmt: skip
    (directory / "scope2" / "hyperparams.json").write_text(json.dumps(hyperparams))


def write_tables(directory: Path, texts: list[str]) -> None:
    """Write texts as tables of every kind and as saved datasets, and labelled rows as a table."""
    frame = pd.DataFrame({"text": texts, "id": range(len(texts))})
    frame.to_csv(directory / "table.csv", index=False)
    frame.to_csv(directory / "table.csv.gz", index=False)
    (directory / "table.json").write_text(frame.to_json(orient="records"))
    table = pa.Table.from_pandas(frame)
    for name, opener in (("stream", pa.ipc.new_stream), ("file", pa.ipc.new_file)):
        with opener(str(directory / f"{name}.arrow"), table.schema) as writer:
            writer.write_table(table)
    pq.write_table(table, directory / "table.parquet")
    rows = [{"text": " ".join(row["words"]), "half": str(row["half"])} for row in labelled_rows()]
    pq.write_table(pa.Table.from_pylist(rows), directory / "rows.parquet")
    Dataset.from_pandas(frame).save_to_disk(directory / "saved")
    DatasetDict({"train": Dataset.from_pandas(frame)}).save_to_disk(directory / "splits")


@pytest.fixture(scope="module")
def intact(distilled: Path, sae_dir: Path, teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with an intact file of every kind."""
    from tests.helpers.cli import run

    directory = tmp_path_factory.mktemp("intact") / "run"
    shutil.copytree(distilled, directory, ignore=shutil.ignore_patterns("model.safetensors", "tokenizer*"))
    shutil.copytree(sae_dir, directory / "sae")
    shutil.copytree(teacher_dir, directory / "teacher")
    weights = load_file(directory / "sae" / "sae_weights.safetensors")
    save_file(weights, directory / "loose.safetensors")
    torch.save(weights, directory / "loose.pt")
    write_sae_files(directory, weights)
    make_sweep().save(directory / "training.safetensors")
    make_sae_training().save(directory / "sae.safetensors")
    hook, acts = "blocks.1.hook_resid_post", np.ones((4, 8, 24), dtype=np.float32)
    shapes = Features({hook: Array2D((8, 24), "float32"), "token_ids": Sequence(Value("int32"), 8)})
    ids = np.ones((4, 8), dtype=np.int32)
    Dataset.from_dict({hook: acts, "token_ids": ids}, features=shapes).save_to_disk(directory / "cache")
    assert run("calibrate", directory).exit_code == 0
    lines = "".join(json.dumps(row) + "\n" for row in labelled_rows())
    (directory / "rows.jsonl").write_text(lines)
    text = "".join(json.dumps({"text": f"Call me {i}. é日"}) + "\n" for i in range(30))
    (directory / "text.jsonl").write_text(text)
    (directory / "text.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    write_tables(directory, [f"Call me {i}. é日" for i in range(30)])
    return directory


def damaged_copies(data: bytes, seed: int) -> Iterator[bytes]:
    """Yield damaged copies without end: bytes changed, removed or repeated, or a value of JSON replaced."""
    chance = random.Random(seed)
    while True:
        kind = chance.randrange(6)
        if kind == 0:
            changed = bytearray(data)
            for _ in range(chance.choice((1, 1, 2, 8, 64))):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            yield bytes(changed)
        elif kind == 1:
            yield data[: chance.randrange(len(data))]
        elif kind == 2:
            start, n_bytes = chance.randrange(len(data)), chance.choice((1, 7, 100, 5000))
            yield data[:start] + data[start + n_bytes :]
        elif kind == 3:
            start, n_bytes = chance.randrange(len(data)), chance.choice((1, 7, 100, 5000))
            yield data[: start + n_bytes] + data[start:]
        else:
            yield damage_json(data, chance)


def damage_json(data: bytes, chance: random.Random) -> bytes:
    """Replace or remove one value in the JSON of a file, or of a safetensors file's header."""
    if data[:1] in (b"{", b"["):
        lines = data.split(b"\n") if data.count(b'\n{"') else [data]
        number = chance.randrange(len(lines))
        if lines[number].strip():
            lines[number] = json.dumps(replace_value(json.loads(lines[number]), chance)).encode()
        return b"\n".join(lines)
    size = int.from_bytes(data[:8], "little")
    if size > len(data):
        return data[::-1]
    header = json.loads(data[8 : 8 + size])
    metadata = header.get("__metadata__", {})
    if HEADER in metadata and chance.random() < 0.5:  # the package's own header is JSON within JSON
        metadata[HEADER] = json.dumps(replace_value(json.loads(metadata[HEADER]), chance))
    else:
        header = replace_value(header, chance)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def replace_value(value: Any, chance: random.Random) -> Any:
    """Replace one value in nested lists and dictionaries by a hostile one, or remove it."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name = chance.choice(list(value))
        if chance.random() < 0.15:
            return {key: other for key, other in value.items() if key != name}
        return value | {name: replace_value(value[name], chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        index = chance.randrange(len(value))
        return [*value[:index], replace_value(value[index], chance), *value[index + 1 :]]
    return chance.choice(HOSTILE)


def read_damaged_files(intact: Path, probes: Probes, tmp_path: Path, reader: Reader, n_files: int, seed: int) -> int:
    """Read damaged files, and return how many of them were rejected with an InputError."""
    directory = tmp_path / "run"
    shutil.copytree(intact, directory)
    digest = FloorPrediction.load(directory).stats.digest()
    dataclasses.replace(probes, stats=digest).save(directory)
    file = directory / reader.file
    data, n_rejected = file.read_bytes(), 0
    for number, damaged in enumerate(islice(damaged_copies(data, seed), n_files)):
        file.write_bytes(damaged)
        started = time.monotonic()
        try:
            reader.read(directory)
        except InputError:
            n_rejected += 1
        except Exception as error:
            saved = tmp_path / "damaged"
            saved.write_bytes(damaged)
            raise AssertionError(
                f"{reader.name}: damaged file {number} of seed {seed} raised {error!r}; saved as {saved}"
            ) from error
        seconds = time.monotonic() - started
        assert seconds < MAX_SECONDS, f"{reader.name}: damaged file {number} of seed {seed} took {seconds:.0f} s"
    return n_rejected


@pytest.mark.filterwarnings("ignore")  # libraries warn about damaged files
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_some_damaged_files_are_read_or_rejected(intact: Path, probes: Probes, tmp_path: Path, reader: Reader) -> None:
    n_files = N_QUICK_REPORTS if "report" in reader.name else N_QUICK_FILES
    n_rejected = read_damaged_files(intact, probes, tmp_path, reader, n_files, seed=0)
    assert n_rejected > 0 or "report" in reader.name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_many_damaged_files_are_read_or_rejected(intact: Path, probes: Probes, tmp_path: Path, reader: Reader) -> None:
    n_files = N_FILES // 10 if "report" in reader.name else N_FILES
    n_rejected = read_damaged_files(intact, probes, tmp_path, reader, n_files, seed=1)
    assert n_rejected > 0 or "report" in reader.name
