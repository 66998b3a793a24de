"""An SAE is trained where none exists: on which activations, and from a checkpoint on to the last bit."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tl_distill_floor import InputError
from tl_distill_floor.measuring.hooks import reader
from tl_distill_floor.sources import shuffled
from tl_distill_floor.sources.shuffled import shuffled_activations
from tl_distill_floor.sources.train_sae import train_sae

HOOK = "blocks.1.hook_resid_post"
STEPS = 5


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffled, "MIXED_TOKENS", 2**13)


def trained(teacher_dir: Path, prose_file: Path, out: Path, **options: Any) -> dict[str, bytes]:
    given = {"layer": 1, "d_sae": 32, "k": 4, "n_tokens": 4096 * STEPS, "context_size": 32, "checkpoint_seconds": 0.0}
    train_sae(teacher_dir, prose_file, out=out, **(given | options))
    return {file.name: file.read_bytes() for file in out.iterdir()}


class StoppedError(Exception):
    pass


def stopped_after(step: int) -> Any:
    def progress(done: int, _total: int, _words: str) -> None:
        if done >= 4096 * step:
            raise StoppedError

    return progress


@pytest.mark.parametrize("architecture", ["batchtopk", "topk"])
def test_an_interrupted_training_goes_on_to_the_last_bit(
    architecture: str, teacher_dir: Path, prose_file: Path, tmp_path: Path
) -> None:
    given = {"architecture": architecture}
    whole = trained(teacher_dir, prose_file, tmp_path / "whole", **given)
    for step in (1, 3, STEPS):
        with pytest.raises(StoppedError):
            trained(teacher_dir, prose_file, tmp_path / "sae", resume=step > 1, progress=stopped_after(step), **given)
        assert [path.name for path in tmp_path.iterdir() if "sae" in path.name] == ["sae.partial.safetensors"]
    assert trained(teacher_dir, prose_file, tmp_path / "sae", resume=True, **given) == whole
    assert not list(tmp_path.glob("*partial*"))


def test_the_checkpoint_of_another_training_is_refused(teacher_dir: Path, prose_file: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        trained(teacher_dir, prose_file, tmp_path / "sae", progress=stopped_after(2))
    with pytest.raises(InputError, match=r"sae\.partial\.safetensors holds an interrupted training; add --resume"):
        trained(teacher_dir, prose_file, tmp_path / "sae")
    with pytest.raises(InputError, match=r"of a training with another k, lr;"):
        trained(teacher_dir, prose_file, tmp_path / "sae", k=5, lr=1e-4, resume=True)
    (tmp_path / "sae.partial.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"no complete checkpoint .*; delete it to start again"):
        trained(teacher_dir, prose_file, tmp_path / "sae", resume=True)
    assert not (tmp_path / "sae").exists()


def test_the_seed_alone_decides(teacher_dir: Path, prose_file: Path, tmp_path: Path) -> None:
    one = trained(teacher_dir, prose_file, tmp_path / "one", n_tokens=8192)
    torch.rand(7)
    assert trained(teacher_dir, prose_file, tmp_path / "again", n_tokens=8192) == one
    assert trained(teacher_dir, prose_file, tmp_path / "other", n_tokens=8192, seed=1) != one


def test_a_loss_that_is_no_number_saves_nothing(teacher_dir: Path, prose_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no number after step \d; take a smaller --lr"):
        trained(teacher_dir, prose_file, tmp_path / "sae", lr=1e30)
    assert not (tmp_path / "sae").exists()


def test_a_training_that_was_only_not_cleaned_up_after_is_done(
    teacher_dir: Path, prose_file: Path, tmp_path: Path
) -> None:
    whole = trained(teacher_dir, prose_file, tmp_path / "sae", n_tokens=8192)
    (tmp_path / "sae.partial.safetensors").write_bytes(b"its last checkpoint")
    assert trained(teacher_dir, prose_file, tmp_path / "sae", n_tokens=8192, resume=True) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_every_activation_of_a_block_once_but_those_of_special_tokens(bridge: Any, ids: torch.Tensor) -> None:
    rows, special = ids.int(), bridge.tokenizer.bos_token_id
    size = 2**13 // rows.shape[1]
    block = rows[torch.arange(size) % len(rows)]
    with reader(bridge, [HOOK]) as read:
        expected = torch.cat([read(part.long())[0] for part in torch.split(block, 16)])[block != special]
    n_batches = len(expected) // 4096
    batches = list(islice(shuffled_activations(bridge, HOOK, rows, 16, seed=3), n_batches + 1))
    assert {tuple(batch.shape) for batch in batches} == {(4096, expected.shape[1])}
    found = torch.cat(batches[:n_batches])
    # Tokens of one text have equal activations, so rows are counted.
    kinds, counted = torch.unique(expected, dim=0, return_counts=True)
    _, left = torch.unique(torch.cat([kinds, found]), dim=0, return_counts=True)
    assert len(left) == len(kinds), "something that is no activation of the block"
    assert ((left - 1) <= counted).all()
    assert not torch.equal(found[:64], expected[:64]), "it is not shuffled"


@pytest.mark.parametrize("start", [1, 2, 5])
def test_batches_begin_anywhere(bridge: Any, ids: torch.Tensor, start: int) -> None:
    whole = list(islice(shuffled_activations(bridge, HOOK, ids.int(), 16, seed=0), 8))
    later = list(islice(shuffled_activations(bridge, HOOK, ids.int(), 16, 0, start), 8 - start))
    assert all(torch.equal(one, other) for one, other in zip(whole[start:], later, strict=True))


def test_a_text_of_special_tokens_alone_is_refused(bridge: Any) -> None:
    rows = torch.full((4, 16), bridge.tokenizer.bos_token_id, dtype=torch.int32)
    with pytest.raises(InputError, match="special tokens alone"):
        next(shuffled_activations(bridge, HOOK, rows, 16, seed=0))
