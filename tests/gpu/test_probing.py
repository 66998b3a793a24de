"""Probes of activations that are computed on a GPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from tests.helpers.devices import DEVICE, assert_close
from tests.helpers.models import HOOK, PROSE
from tests.helpers.probes import labelled_rows
from tl_distill_floor import ProbeConfig, predict_floor, probe, probe_run
from tl_distill_floor.probing.activations import collect_activations
from tl_distill_floor.probing.examples import tokenize_examples
from tl_distill_floor.sources.labels import load_labels


def test_activations_are_those_of_the_cpu(bridge: Any, device_bridge: Any, tokenizer: Any) -> None:
    examples = tokenize_examples(
        load_labels(labelled_rows(), ["length", "half"]), tokenizer, pool="mean", context_size=32, per_class=100, seed=0
    )
    activations, expected = (
        collect_activations(model, HOOK, examples)["activation"] for model in (device_bridge, bridge)
    )
    for one, other in zip(activations, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_probe_has_the_scores_of_the_cpu(bridge: Any, device_bridge: Any) -> None:
    one, other = (probe(model, HOOK, labelled_rows(), label="length", n_splits=2) for model in (device_bridge, bridge))
    assert one.mean_auroc == pytest.approx(other.mean_auroc, abs=0.02)


def test_run_has_the_scores_of_the_cpu(
    bridge: Any, sae: Any, device_bridge: Any, device_sae: Any, ids: Tensor, tmp_path: Path
) -> None:
    """Forecasts and bottleneck students are computed on the teacher's device."""
    config = ProbeConfig(per_class=20, n_splits=2, bottleneck_steps=20, n_feature_tokens=4000)
    text = tmp_path / "text.txt"
    text.write_text(PROSE * 60)
    runs = []
    for model, each, device in ((device_bridge, device_sae, DEVICE), (bridge, sae, "cpu")):
        floor = predict_floor(model, each, ids, steps=0, head=False, widths=[8])
        options: dict[str, Any] = {"labels": ["length"], "config": config, "text": text, "device": device}
        runs.append(probe_run(floor, model, each, labelled_rows(), **options))
    assert [result.subject for result in runs[0].results] == [result.subject for result in runs[1].results]
    for one, other in zip(runs[0].results, runs[1].results, strict=True):
        assert one.mean_auroc == pytest.approx(other.mean_auroc, abs=0.1)
    assert_close(runs[0].features[0].auroc, runs[1].features[0].auroc, 0.01)
