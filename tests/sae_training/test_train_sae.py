"""An SAE is trained where none exists: on which activations, and from a checkpoint on to the last bit."""

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.models import VOCABULARY
from tl_distill_floor import InputError, load_teacher
from tl_distill_floor.measuring.hooks import hook_point, reader
from tl_distill_floor.measuring.token_stream import TokenStream, open_token_stream
from tl_distill_floor.sae_training import activations as shuffled
from tl_distill_floor.sae_training.activations import shuffled_activations
from tl_distill_floor.sae_training.train_sae import train_sae

HOOK = "blocks.1.hook_resid_post"
STEPS = 5


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffled, "MIXED_TOKENS", 2**13)


def trained(teacher: Any, text: Any, out: Path, **options: Any) -> dict[str, bytes]:
    given = {"layer": 1, "d_sae": 32, "k": 4, "n_tokens": 4096 * STEPS, "context_size": 32, "checkpoint_seconds": 0.0}
    train_sae(teacher, text, out=out, **(given | options))
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
    with pytest.raises(InputError, match=r"not a complete checkpoint .*; delete it to start again"):
        trained(teacher_dir, prose_file, tmp_path / "sae", resume=True)
    assert not (tmp_path / "sae").exists()


def test_the_seed_alone_decides(teacher_dir: Path, prose_file: Path, tmp_path: Path) -> None:
    one = trained(teacher_dir, prose_file, tmp_path / "one", n_tokens=8192)
    torch.rand(7)
    assert trained(teacher_dir, prose_file, tmp_path / "again", n_tokens=8192) == one
    assert trained(teacher_dir, prose_file, tmp_path / "other", n_tokens=8192, seed=1) != one


def test_a_loss_that_is_no_number_saves_nothing(teacher_dir: Path, prose_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no number at step \d; delete sae\.partial.* and take a smaller --lr"):
        trained(teacher_dir, prose_file, tmp_path / "sae", lr=1e30)
    assert not (tmp_path / "sae").exists()


def test_a_training_that_was_only_not_cleaned_up_after_is_done(
    teacher_dir: Path, prose_file: Path, tmp_path: Path
) -> None:
    last: list[bytes] = []
    file = tmp_path / "sae.partial.safetensors"

    def progress(_done: int, _total: int, _words: str) -> None:
        last[:] = [file.read_bytes()]

    whole = trained(teacher_dir, prose_file, tmp_path / "sae", progress=progress)
    file.write_bytes(last[0])
    assert trained(teacher_dir, prose_file, tmp_path / "sae", resume=True) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_what_lies_in_the_place_does_not_end_a_training(teacher_dir: Path, prose_file: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        trained(teacher_dir, prose_file, tmp_path / "sae", progress=stopped_after(2))
    (tmp_path / "sae").mkdir()
    for _ in range(2):
        with pytest.raises(InputError, match="sae exists already"):
            trained(teacher_dir, prose_file, tmp_path / "sae", resume=True)
        (tmp_path / "sae" / "cfg.json").write_text("{}")
    shutil.rmtree(tmp_path / "sae")
    assert trained(teacher_dir, prose_file, tmp_path / "sae", resume=True)


def test_another_teacher_or_cut_of_the_text_is_another_training(bridge: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    def going_on(rows: torch.Tensor, **options: Any) -> None:
        trained(bridge, rows, tmp_path / "sae", **options)

    with pytest.raises(StoppedError):
        going_on(ids, progress=stopped_after(2))
    with pytest.raises(InputError, match="another text;"):
        going_on(ids.view(2 * len(ids), -1), resume=True)
    weight = next(bridge.parameters())
    with torch.no_grad():
        weight *= 2
    try:
        with pytest.raises(InputError, match="another teacher;"):
            going_on(ids, resume=True)
    finally:
        with torch.no_grad():
            weight /= 2
    going_on(ids, resume=True)


def test_activations_that_nothing_scales_are_refused(bridge: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    for number, says in ((float("nan"), "holds NaN or Inf; run the teacher"), (0.0, "every activation is 0")):

        def constant(_module: Any, _inputs: Any, output: torch.Tensor, number: float = number) -> torch.Tensor:
            return torch.full_like(output, number)

        handle = hook_point(bridge, HOOK).register_forward_hook(constant)
        try:
            with pytest.raises(InputError, match=says):
                trained(bridge, ids, tmp_path / "sae")
        finally:
            handle.remove()


def test_ids_beyond_the_vocabulary_are_one_sentence(bridge: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    for wrong in (2**32 + 5, -1, VOCABULARY):
        rows = ids.clone()
        rows[0, 3] = wrong
        with pytest.raises(InputError, match="the teacher's vocabulary ends at"):
            trained(bridge, rows, tmp_path / "sae")


@pytest.fixture
def stream(bridge: Any, ids: torch.Tensor) -> TokenStream:
    return open_token_stream(load_teacher(bridge), ids, ids.shape[1], 16)


def test_the_teacher_is_as_it_was_between_batches(bridge: Any, stream: TokenStream, ids: torch.Tensor) -> None:
    with torch.no_grad():
        before = bridge(ids[:1])
        batches = shuffled_activations(stream, HOOK, ids, 0)
        next(batches)
        assert torch.equal(bridge(ids[:1]), before)
    batches.close()


def test_every_activation_of_a_block_once_but_those_that_do_not_count(
    bridge: Any, stream: TokenStream, ids: torch.Tensor
) -> None:
    size = 2**13 // ids.shape[1]
    block = ids[torch.arange(size) % len(ids)]
    counts = block != bridge.tokenizer.bos_token_id
    counts[:, 0] = False
    with reader(bridge, [HOOK]) as read:
        expected = torch.cat([read(part)[0] for part in torch.split(block, 16)])[counts]
    n_batches = len(expected) // 4096
    batches = list(islice(shuffled_activations(stream, HOOK, ids, seed=3), n_batches + 1))
    assert {tuple(batch.shape) for batch in batches} == {(4096, expected.shape[1])}
    found = torch.cat(batches[:n_batches])
    # Tokens of one text have equal activations, so rows are counted.
    kinds, counted = torch.unique(expected, dim=0, return_counts=True)
    _, left = torch.unique(torch.cat([kinds, found]), dim=0, return_counts=True)
    assert len(left) == len(kinds), "something that is no activation of the block"
    assert ((left - 1) <= counted).all()
    assert not torch.equal(found[:64], expected[:64]), "it is not shuffled"


@pytest.mark.parametrize("start", [1, 2, 5])
def test_batches_begin_anywhere(stream: TokenStream, ids: torch.Tensor, start: int) -> None:
    whole = list(islice(shuffled_activations(stream, HOOK, ids, 0), 8))
    later = list(islice(shuffled_activations(stream, HOOK, ids, 0, start), 8 - start))
    assert all(torch.equal(one, other) for one, other in zip(whole[start:], later, strict=True))


def test_a_text_with_few_tokens_that_count_gives_whole_batches(
    bridge: Any, stream: TokenStream, ids: torch.Tensor
) -> None:
    rows = torch.full_like(ids, bridge.tokenizer.bos_token_id)
    rows[:, 5] = ids[:, 5]
    batches = list(islice(shuffled_activations(stream, HOOK, rows, 0), 3))
    assert [len(batch) for batch in batches] == [4096] * 3


def test_a_text_of_special_tokens_alone_is_refused(bridge: Any, stream: TokenStream) -> None:
    rows = torch.full((4, 16), bridge.tokenizer.bos_token_id)
    with pytest.raises(InputError, match="no tokens but special ones"):
        next(shuffled_activations(stream, HOOK, rows, 0))
