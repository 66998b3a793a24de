"""Training of an SAE: its settings, the activations that it sees, and resuming from a checkpoint."""

import re
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.models import VOCABULARY, WIDTH
from tests.helpers.type_checks import without_type_checks
from tl_distill_floor import InputError, SaeTrainingConfig, load_sae, load_teacher
from tl_distill_floor.measuring.hooks import activation_reader, get_hook_point
from tl_distill_floor.measuring.token_stream import TokenStream, open_token_stream
from tl_distill_floor.sae_training import activations
from tl_distill_floor.sae_training.activations import shuffled_activations
from tl_distill_floor.sae_training.train_sae import train_sae

HOOK = "blocks.1.hook_resid_post"
STEPS = 5


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "TOKENS_PER_BLOCK", 2**13)


def trained(teacher: Any, text: Any, out: Path, **options: Any) -> dict[str, bytes]:
    """Train a small SAE, and return the content of its files."""
    defaults = {
        "layer": 1,
        "d_sae": 32,
        "k": 4,
        "n_tokens": 4096 * STEPS,
        "context_size": 32,
        "batch_size": 128,
        "checkpoint_seconds": 0.0,
    }
    train_sae(teacher, text, out=out, **(defaults | options))
    return {file.name: file.read_bytes() for file in out.iterdir()}


class StoppedError(Exception):
    """Stops a training from its progress callback."""


def stop_after(step: int) -> Any:
    """Return a progress callback that stops the training after a step."""

    def progress(done: int, _total: int, _message: str) -> None:
        if done >= 4096 * step:
            raise StoppedError

    return progress


@pytest.mark.parametrize(("architecture", "stops"), [("batchtopk", (1, 3, STEPS)), ("topk", (3,))])
def test_resumed_training_gives_the_same_files(
    architecture: str, stops: tuple[int, ...], teacher_dir: Path, prose_file: Path, tmp_path: Path
) -> None:
    options = {"architecture": architecture}
    uninterrupted = trained(teacher_dir, prose_file, tmp_path / "uninterrupted", **options)
    for step in stops:
        resume = step != stops[0]
        with pytest.raises(StoppedError):
            trained(teacher_dir, prose_file, tmp_path / "sae", resume=resume, progress=stop_after(step), **options)
        assert [path.name for path in tmp_path.iterdir() if "sae" in path.name] == ["sae.partial.safetensors"]
    assert trained(teacher_dir, prose_file, tmp_path / "sae", resume=True, **options) == uninterrupted
    assert not list(tmp_path.glob("*partial*"))


def test_rejects_the_checkpoint_of_another_training(teacher_dir: Path, prose_file: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        trained(teacher_dir, prose_file, tmp_path / "sae", progress=stop_after(2))
    with pytest.raises(InputError, match=r"sae\.partial\.safetensors holds an interrupted training; add resume=True"):
        trained(teacher_dir, prose_file, tmp_path / "sae")
    with pytest.raises(InputError, match=r"of a training with another k, lr;"):
        trained(teacher_dir, prose_file, tmp_path / "sae", k=5, lr=1e-4, resume=True)
    (tmp_path / "sae.partial.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"not a complete checkpoint .*; delete it to start again"):
        trained(teacher_dir, prose_file, tmp_path / "sae", resume=True)
    assert not (tmp_path / "sae").exists()


def test_result_depends_only_on_the_seed(teacher_dir: Path, prose_file: Path, tmp_path: Path) -> None:
    one = trained(teacher_dir, prose_file, tmp_path / "one", n_tokens=8192)
    torch.rand(7)
    assert trained(teacher_dir, prose_file, tmp_path / "again", n_tokens=8192) == one
    assert trained(teacher_dir, prose_file, tmp_path / "other", n_tokens=8192, seed=1) != one


def test_numbers_of_numpy_are_numbers(teacher_dir: Path, prose_file: Path, tmp_path: Path) -> None:
    """A sweep over `np.arange` or `np.logspace` has such numbers."""
    options = {"lr": 2**-10, "n_tokens": 8192}
    expected = trained(teacher_dir, prose_file, tmp_path / "expected", **options)
    with without_type_checks():
        of_numpy = {"layer": np.int64(1), "lr": np.float32(2**-10), "n_tokens": np.float64(8192), "k": np.int32(4)}
        assert trained(teacher_dir, prose_file, tmp_path / "sae", **of_numpy) == expected


def test_metadata_say_whether_sequences_begin_with_bos(
    bridge: Any, ids: torch.Tensor, prose_file: Path, tmp_path: Path
) -> None:
    """Text gets a beginning-of-sequence token, token ids have it or not."""
    without = ids.clone()
    without[3, 0] = 5
    for name, text, begins in (("text", prose_file, True), ("ids", ids, True), ("without", without, False)):
        trained(bridge, text, tmp_path / name, n_tokens=8192)
        assert load_sae(tmp_path / name).prepend_bos is begins


def test_saves_nothing_if_the_loss_is_not_finite(teacher_dir: Path, prose_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not finite at step \d; delete sae\.partial.* and set a smaller lr="):
        trained(teacher_dir, prose_file, tmp_path / "sae", lr=1e30)
    assert not (tmp_path / "sae").exists()


def test_deletes_the_checkpoint_of_a_finished_training(teacher_dir: Path, prose_file: Path, tmp_path: Path) -> None:
    last_checkpoint: list[bytes] = []
    file = tmp_path / "sae.partial.safetensors"

    def progress(_done: int, _total: int, _message: str) -> None:
        last_checkpoint[:] = [file.read_bytes()]

    finished = trained(teacher_dir, prose_file, tmp_path / "sae", progress=progress)
    file.write_bytes(last_checkpoint[0])
    assert trained(teacher_dir, prose_file, tmp_path / "sae", resume=True) == finished
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_other_files_in_the_directory_do_not_end_a_training(
    teacher_dir: Path, prose_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoppedError):
        trained(teacher_dir, prose_file, tmp_path / "sae", progress=stop_after(2))
    (tmp_path / "sae").mkdir()
    for _ in range(2):
        with pytest.raises(InputError, match="sae exists already"):
            trained(teacher_dir, prose_file, tmp_path / "sae", resume=True)
        (tmp_path / "sae" / "cfg.json").write_text("{}")
    shutil.rmtree(tmp_path / "sae")
    assert trained(teacher_dir, prose_file, tmp_path / "sae", resume=True)


def test_rejects_the_checkpoint_of_another_teacher_or_text(bridge: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    def train(rows: torch.Tensor, **options: Any) -> None:
        trained(bridge, rows, tmp_path / "sae", **options)

    with pytest.raises(StoppedError):
        train(ids, progress=stop_after(2))
    with pytest.raises(InputError, match="another text;"):
        train(ids.view(2 * len(ids), -1), resume=True)
    weight = next(bridge.parameters())
    with torch.no_grad():
        weight *= 2
    try:
        with pytest.raises(InputError, match="another teacher;"):
            train(ids, resume=True)
    finally:
        with torch.no_grad():
            weight /= 2
    train(ids, resume=True)


def test_rejects_activations_that_are_0_or_not_finite(bridge: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    for value, message in (
        (float("nan"), "holds NaN or Inf; run the teacher"),
        (0.0, "every activation at this layer is 0"),
    ):

        def constant(_module: Any, _inputs: Any, output: torch.Tensor, value: float = value) -> torch.Tensor:
            return torch.full_like(output, value)

        handle = get_hook_point(bridge, HOOK).register_forward_hook(constant)
        try:
            with pytest.raises(InputError, match=message):
                trained(bridge, ids, tmp_path / "sae")
        finally:
            handle.remove()


def test_rejects_ids_beyond_the_vocabulary(bridge: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    for wrong, message in (
        (2**32 + 5, "the teacher's vocabulary ends at"),
        (VOCABULARY, "the teacher's vocabulary ends at"),
        (-1, "token ids must be integers .* that are not negative, got -1"),
    ):
        rows = ids.clone()
        rows[0, 3] = wrong
        with pytest.raises(InputError, match=message):
            trained(bridge, rows, tmp_path / "sae")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "gated"}, "architecture must be one of batchtopk, topk, got 'gated'"),
        ({"dtype": "int4"}, "dtype must be one of fp32, bf16, got 'int4'"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"k": 33}, "k must be at most 32, the number of features, got 33; set k="),
        ({"d_sae": 0}, "d_sae must be at least 1, got 0"),
        ({"context_size": 1}, "context_size must be at least 2, got 1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"lr": 0.0}, "lr must be a positive number, got 0.0; set lr="),
        ({"lr": float("nan")}, "lr must be a positive number, got nan; set lr="),
        ({"lr": "1e-3"}, "lr must be a positive number, got '1e-3'; set lr="),
        ({"n_tokens": "1e6"}, "n_tokens must be an integer, got '1e6'"),
    ],
)
def test_rejects_bad_settings_before_anything_is_loaded(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(message)), without_type_checks():
        train_sae("nosuchmodel", layer=1, out=tmp_path / "sae", **({"d_sae": 32} | options))
    with pytest.raises(InputError, match=re.escape(message)), without_type_checks():
        SaeTrainingConfig(**({"d_sae": 32} | options))
    assert list(tmp_path.iterdir()) == []


def test_rejects_k_above_the_default_number_of_features(bridge: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    n_features = 8 * WIDTH
    with pytest.raises(
        InputError, match=f"k must be at most {n_features}, the number of features, got {n_features + 1}"
    ):
        trained(bridge, ids, tmp_path / "sae", d_sae=None, k=n_features + 1)


def test_few_tokens_are_raised_to_the_minimum(bridge: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    totals = set()
    trained(bridge, ids, tmp_path / "sae", n_tokens=1, progress=lambda _done, total, _message: totals.add(total))
    assert totals == {8192}
    with pytest.raises(InputError, match="n_tokens must be at least 8192, got 8191"):
        SaeTrainingConfig(n_tokens=8191)


@pytest.fixture
def stream(bridge: Any, ids: torch.Tensor) -> TokenStream:
    return open_token_stream(load_teacher(bridge), ids, ids.shape[1], 128)


def test_teacher_has_no_hooks_between_batches(bridge: Any, stream: TokenStream, ids: torch.Tensor) -> None:
    with torch.no_grad():
        before = bridge(ids[:1])
        batches = shuffled_activations(stream, HOOK, ids, 0)
        next(batches)
        assert torch.equal(bridge(ids[:1]), before)
    batches.close()


def test_batches_hold_each_counted_activation_of_a_block_once(
    bridge: Any, stream: TokenStream, ids: torch.Tensor
) -> None:
    size = 2**13 // ids.shape[1]
    block = ids[torch.arange(size) % len(ids)]
    counted = block != bridge.tokenizer.bos_token_id
    counted[:, 0] = False
    with activation_reader(bridge, [HOOK]) as read:
        expected = torch.cat([read(part)[0] for part in torch.split(block, 16)])[counted]
    n_batches = len(expected) // 4096
    batches = list(islice(shuffled_activations(stream, HOOK, ids, seed=3), n_batches + 1))
    assert {tuple(batch.shape) for batch in batches} == {(4096, expected.shape[1])}
    rows = torch.cat(batches[:n_batches])
    # Some tokens have equal activations, so equal rows are counted.
    distinct, n_expected = torch.unique(expected, dim=0, return_counts=True)
    _, n_rows = torch.unique(torch.cat([distinct, rows]), dim=0, return_counts=True)
    assert len(n_rows) == len(distinct), "a row is not an activation of the block"
    assert ((n_rows - 1) <= n_expected).all()
    assert not torch.equal(rows[:64], expected[:64]), "rows are not shuffled"


@pytest.mark.parametrize("start", [1, 2, 5])
def test_batches_can_start_at_any_number(stream: TokenStream, ids: torch.Tensor, start: int) -> None:
    from_first = list(islice(shuffled_activations(stream, HOOK, ids, 0), 8))
    later = list(islice(shuffled_activations(stream, HOOK, ids, 0, start), 8 - start))
    assert all(torch.equal(one, other) for one, other in zip(from_first[start:], later, strict=True))


def test_text_with_few_counted_tokens_gives_full_batches(bridge: Any, stream: TokenStream, ids: torch.Tensor) -> None:
    rows = torch.full_like(ids, bridge.tokenizer.bos_token_id)
    rows[:, 5] = ids[:, 5]
    batches = list(islice(shuffled_activations(stream, HOOK, rows, 0), 3))
    assert [len(batch) for batch in batches] == [4096] * 3


def test_rejects_a_text_of_special_tokens(bridge: Any, stream: TokenStream) -> None:
    rows = torch.full((4, 16), bridge.tokenizer.bos_token_id)
    with pytest.raises(InputError, match="holds only special tokens"):
        next(shuffled_activations(stream, HOOK, rows, 0))
