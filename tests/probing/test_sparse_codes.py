"""Codes of labelled examples: what the SAE gives for each, as sparse matrices."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.models import HOOK
from tests.helpers.probes import labelled_rows
from tl_distill_floor import FloorPrediction, SparseProbeConfig
from tl_distill_floor.probing import run_inputs
from tl_distill_floor.probing.run_inputs import RunInputs, load_run_inputs
from tl_distill_floor.probing.sparse_codes import collect_codes


@pytest.fixture
def inputs(measured: tuple[Path, Path, Path], bridge: Any, sae: Any) -> RunInputs:
    """Load the teacher, the SAE and labelled examples."""
    floor = FloorPrediction.load(measured[0]).with_features()
    return load_run_inputs(
        floor,
        bridge,
        sae,
        labelled_rows(),
        ["half", "length"],
        students=(),
        widths=[16, 8],
        config=SparseProbeConfig(batch_size=5),
        device="cpu",
    )


def test_codes_are_those_of_the_sae_times_the_decoder_norm(
    inputs: RunInputs, bridge: Any, sae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert inputs.widths == (8, 16)
    collected = collect_codes(inputs, {})
    halves, lengths = inputs.examples.tasks
    for task, codes in zip((halves, lengths), collected.codes, strict=True):
        for row in range(0, len(task), 5):
            ids = inputs.examples.ids[int(task.text[row])]
            with torch.no_grad():
                _, cache = bridge.run_with_cache(ids[None], names_filter=lambda name: name.endswith("hook_out"))
                activation = cache["blocks.1.hook_out"][0]
                all_codes = sae.encode(activation) * sae.W_dec.norm(dim=1)
            expected = all_codes[1:].mean(0) if task is halves else all_codes[int(task.position[row])]
            np.testing.assert_allclose(codes[[row]].toarray()[0], expected.numpy(), atol=1e-5)
    assert set(collected.dense) == {"activation", "kept 8", "kept 16"}
    # With little memory, one text is read at a time.
    monkeypatch.setattr(run_inputs, "MAX_CODES", 1)
    assert inputs.texts_per_pass == 1
    again = collect_codes(inputs, {})
    np.testing.assert_allclose(again.codes[1].toarray(), collected.codes[1].toarray(), atol=1e-5)
    np.testing.assert_allclose(again.dense["kept 8"][0], collected.dense["kept 8"][0], atol=1e-4)
    assert inputs.hook_name == HOOK
