"""Measurements are resumed only on the text that they were begun on, whatever its first items are."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.measurements import assert_same_stats
from tests.helpers.models import CONTEXT
from tl_distill_floor import DistillConfig, FeatureStats, InputError, distill, measure
from tl_distill_floor.measuring.token_stream import digest_sequences
from tl_distill_floor.results.feature_sums import DIGEST_MODULUS
from tl_distill_floor.sources.items import FIRST_ITEMS

N_ROWS, N_DONE = 100, 80
OPTIONS: dict[str, Any] = {"cost": "energy", "batch_size": 4, "n_codes": 1280}


@pytest.fixture
def rows(ids: torch.Tensor) -> torch.Tensor:
    """Return more rows than the fingerprint of a stream reads."""
    return torch.cat([ids, ids.roll(1, dims=0), ids.roll(2, dims=0)])[:N_ROWS].clone()


def stream(rows: torch.Tensor) -> Iterator[list[int]]:
    """Yield the rows, which can be read once."""
    yield from rows.tolist()


def changed(rows: torch.Tensor, number: int) -> torch.Tensor:
    """Return rows of which one has another token."""
    rows = rows.clone()
    rows[number, 5] = (rows[number, 5] + 1) % 300
    return rows


@pytest.fixture
def checkpoint(bridge: Any, sae: Any, rows: torch.Tensor, tmp_path: Path) -> Path:
    """Interrupt a measurement of a stream after `N_DONE` rows."""

    def interrupt(done: int, _total: int) -> None:
        if done == N_DONE * CONTEXT:
            raise KeyboardInterrupt

    file = tmp_path / "partial.safetensors"
    with pytest.raises(KeyboardInterrupt):
        measure(bridge, sae, stream(rows), checkpoint=file, progress=interrupt, **OPTIONS)
    return file


def test_a_digest_is_that_of_the_token_ids() -> None:
    row = torch.tensor([[3, 1, 2]])
    expected = int.from_bytes(hashlib.sha256(b"7 " + row.numpy().tobytes()).digest()[:8]) % DIGEST_MODULUS
    assert digest_sequences(row, 7) == expected
    both = torch.tensor([[3, 1, 2], [5, 5, 5]])
    assert digest_sequences(both, 0) == (digest_sequences(both[:1], 0) + digest_sequences(both[1:], 1)) % DIGEST_MODULUS
    assert digest_sequences(both, 0) != digest_sequences(both.flip(0), 0)


def test_a_stream_is_resumed_if_what_was_read_is_the_same(
    bridge: Any, sae: Any, rows: torch.Tensor, checkpoint: Path
) -> None:
    later = changed(rows, N_DONE + 5)
    resumed = measure(bridge, sae, stream(later), checkpoint=checkpoint, resume=True, **OPTIONS)
    assert_same_stats(resumed, measure(bridge, sae, later, **OPTIONS))
    assert resumed.ids_digest == digest_sequences(later, 0)


@pytest.mark.parametrize("number", [0, FIRST_ITEMS + 1, N_DONE - 1])
def test_a_stream_that_differs_is_not_resumed(
    bridge: Any, sae: Any, rows: torch.Tensor, checkpoint: Path, number: int
) -> None:
    """Its first items are a part of the fingerprint, the later ones are compared when they are skipped."""
    message = "of another measurement" if number == 0 else r"generator differs in its first 2,\d\d\d tokens from the"
    with pytest.raises(InputError, match=message):
        measure(bridge, sae, stream(changed(rows, number)), checkpoint=checkpoint, resume=True, **OPTIONS)
    assert FeatureStats.load(checkpoint).ids_digest == digest_sequences(rows[: _n_saved(checkpoint)], 0)


def test_a_stream_that_ends_earlier_is_not_resumed(bridge: Any, sae: Any, rows: torch.Tensor, checkpoint: Path) -> None:
    with pytest.raises(InputError, match="generator differs in its first"):
        measure(bridge, sae, stream(rows[: FIRST_ITEMS + 1]), checkpoint=checkpoint, resume=True, **OPTIONS)


def test_a_complete_measurement_of_another_stream_is_not_resumed(
    bridge: Any, sae: Any, rows: torch.Tensor, tmp_path: Path
) -> None:
    file = tmp_path / "partial.safetensors"
    complete = measure(bridge, sae, stream(rows), checkpoint=file, **OPTIONS)
    assert_same_stats(measure(bridge, sae, stream(rows), checkpoint=file, resume=True, **OPTIONS), complete)
    with pytest.raises(InputError, match="generator differs in its first 3,200 tokens"):
        measure(bridge, sae, stream(changed(rows, 99)), checkpoint=file, resume=True, **OPTIONS)


def test_a_training_on_another_stream_is_not_resumed(bridge: Any, rows: torch.Tensor, tmp_path: Path) -> None:
    config = DistillConfig(n_tokens=90 * CONTEXT, n_heldout_tokens=256, n_evaluations=2, batch_size=8, early_stop=False)
    first = distill(bridge, 8, stream(rows), config=config, out=tmp_path / "whole")

    def interrupt(done: int, _total: int, _message: str) -> None:
        if done >= 40 * CONTEXT:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(
            bridge, 8, stream(rows), config=config, out=tmp_path / "parts", progress=interrupt, checkpoint_seconds=0.0
        )
    with pytest.raises(InputError, match="of a training with another text"):
        distill(bridge, 8, stream(changed(rows, 70)), config=config, out=tmp_path / "parts", resume=True)
    resumed = distill(bridge, 8, stream(rows), config=config, out=tmp_path / "parts", resume=True)
    assert resumed.losses == first.losses


def _n_saved(checkpoint: Path) -> int:
    stats = FeatureStats.load(checkpoint)
    return (stats.n_tokens + stats.n_masked) // CONTEXT
