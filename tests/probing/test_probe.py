"""`probe` and the records of probes, on a tiny random model."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.models import HOOK
from tests.helpers.probes import labelled_rows
from tests.helpers.type_checks import without_type_checks
from tl_distill_floor import FloorPrediction, ProbeConfig, Probes, probe, probe_run
from tl_distill_floor.display.html import to_html
from tl_distill_floor.display.views import table_of
from tl_distill_floor.distilling.students.layers import is_residual, student_layer
from tl_distill_floor.errors import InputError
from tl_distill_floor.probing.activations import collect_activations


def test_probe_returns_scores_with_an_interval(bridge: Any) -> None:
    result = probe(bridge, HOOK, labelled_rows(), label="length", n_splits=2)
    assert (result.task, result.level, result.pool, result.kind) == ("length", "word", "word", "teacher")
    assert result.n_documents == 12
    assert result.chance == 0.5
    assert len(result.accuracy) == 2
    assert 0.4 < result.mean_accuracy <= 1.0
    # Two splits: the mean ± t(0.975, 1) · |a − b|/√2 · √(1/2 + 1/3).
    one, other = result.accuracy
    margin = 12.7062 * abs(one - other) / math.sqrt(2) * math.sqrt(1 / 2 + 1 / 3)
    assert result.interval == pytest.approx((result.mean_accuracy - margin, result.mean_accuracy + margin), rel=1e-4)
    assert probe(bridge, HOOK, labelled_rows(), label="length", n_splits=2) == result


def test_probe_shows_what_was_left_out_of_the_texts(bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tl_distill_floor.sources.labels.MAX_ROWS", 12)
    result = probe(bridge, HOOK, labelled_rows() * 2, label="length", n_splits=1, context_size=20)
    assert [warning[:20] for warning in result.warnings] == ["only the first 12 ro", "texts truncated to 2"]
    assert "! only the first 12 rows" in to_html(table_of(result))


TWO_CLASSES = [{"text": "a", "label": i % 2} for i in range(20)]


@pytest.mark.parametrize(
    ("labelled", "options", "message"),
    [
        ([], {}, "holds no rows"),
        ([{"text": "a"}], {}, "row 1 has no 'label'; name the field that holds its label with label= or labels="),
        ([{"text": "a", "genre": "b"}], {}, "choose one of its labels with label= or labels=: genre"),
        ([{"label": "a"}], {}, "row 1 has no text"),
        ([{"text": "a", "label": ["x"]}], {}, "the text has a list of labels 'label', expected one label"),
        ([{"words": ["a", "b"], "label": ["x"]}], {}, "1 labels 'label' for 2 words"),
        ([{"words": ["a", ""], "label": ["x", "y"]}], {}, "strings that are not empty"),
        ([{"words": ["a", "b"], "text": "b a", "label": ["x", "y"]}], {}, "the word 'a' does not follow in the text"),
        (
            [{"words": ["He", "a"], "text": "He saw a", "label": ["x", "y"]}],
            {},
            "'a' does not follow in the text; give",
        ),
        ([{"text": "a", "label": 1.5}], {}, "the label 'label' is of type float"),
        ([{"text": "a\0", "label": 1}], {}, "NUL bytes"),
        ([3], {}, "row 1 is int"),
        (7, {}, "labelled text must be a file, a dataset's name or rows, got int"),
        (Path("missing.jsonl"), {}, "there is no labelled text at missing.jsonl"),
        (
            [{"text": f"a {i}", "label": "x"} for i in range(9)],
            {},
            "needs two classes that occur in at least 5 documents, got 'x' in 9",
        ),
        ([{"text": "a", "label": f"{i}"} for i in range(9)], {}, "got '0' in 1, '1' in 1"),
        ([{"text": "a", "label": "x"}, {"words": ["a"], "label": ["y"]}], {}, "use two field names"),
        (TWO_CLASSES, {"pool": "max"}, "pool must be one of mean, last, got 'max'"),
        (TWO_CLASSES, {"n_splits": 0}, "n_splits must be at least 1, got 0"),
        (TWO_CLASSES, {"per_class": 1}, "per_class must be at least 2, got 1"),
        (TWO_CLASSES, {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (TWO_CLASSES, {"context_size": 900}, "2 to 64 tokens, got 900"),
    ],
)
def test_rejects_bad_input(bridge: Any, labelled: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")), without_type_checks():
        probe(bridge, HOOK, labelled, **options)


def test_rejects_a_layer_that_does_not_exist(bridge: Any) -> None:
    with pytest.raises(InputError, match="layers 0 to 2, got layer 9"):
        probe(bridge, "blocks.9.hook_resid_post", labelled_rows(), label="length")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "max"}, "pool must be one of mean, last, got 'max'"),
        ({"per_class": 1}, "per_class must be at least 2"),
        ({"n_splits": 0}, "n_splits must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 1.5}, "seed must be an integer, got 1.5"),
        ({"n_feature_tokens": -1}, "n_feature_tokens must be at least 0"),
        ({"bottleneck_steps": 1}, "the steps of the bottleneck students must be 0 or at least 2, got 1"),
        ({"bottleneck_steps": -1}, "the steps of the bottleneck students must be 0 or at least 2, got -1"),
    ],
)
def test_config_rejects_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message), without_type_checks():
        ProbeConfig(**options)


def test_reads_one_text_at_a_time_if_the_sae_has_very_many_features(
    measured: tuple[Path, Path, Path], bridge: Any, sae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_sizes: list[int] = []

    def collect_and_record(*args: Any, batch_size: int) -> Any:
        batch_sizes.append(batch_size)
        return collect_activations(*args, batch_size=batch_size)

    monkeypatch.setattr("tl_distill_floor.probing.probe_run.collect_activations", collect_and_record)
    config = ProbeConfig(n_splits=1, bottleneck_steps=0, n_feature_tokens=0)
    floor = FloorPrediction.load(measured[0])

    def accuracies() -> list[float]:
        probes = probe_run(floor, bridge, sae, labelled_rows(), labels=["half"], widths=[8], config=config)
        return [result.mean_accuracy for result in probes.results]

    all_at_once = accuracies()
    monkeypatch.setattr("tl_distill_floor.probing.run_inputs.MAX_CODES", 1)
    assert accuracies() == all_at_once
    assert batch_sizes == [16, 1]


def test_probe_leaves_the_model_unchanged(bridge: Any) -> None:
    before = {name: weight.clone() for name, weight in bridge.named_parameters()}
    hooks = [len(module._forward_hooks) for module in bridge.modules()]
    bridge.train()
    probe(bridge, HOOK, labelled_rows(), label="half", n_splits=1, pool="last")
    assert bridge.training
    bridge.eval()
    assert hooks == [len(module._forward_hooks) for module in bridge.modules()]
    assert all(torch.equal(weight, before[name]) for name, weight in bridge.named_parameters())


def test_probes_can_be_saved_and_compared(probes: Probes, tmp_path: Path) -> None:
    assert probes.save(tmp_path) == tmp_path / "probes.json"
    assert Probes.load(tmp_path) == probes
    (teacher,), (student,) = probes.of("genre", "teacher"), probes.of("genre", "student")
    assert student.retained(teacher) == pytest.approx((0.7 - 0.5) / (0.9 - 0.5))
    assert probes.forecast_error("kept") == pytest.approx(0.06)
    assert math.isnan(probes.forecast_error("bottleneck"))
    assert [result.width for result in probes.of("genre", "kept")] == [4, 8]
    assert probes.features[0].separation == 1.0
    for damage in (b"{", b"[]", b'{"format": "tl-distill-floor/probes", "version": 9}', b'{"format": "x"}'):
        (tmp_path / "probes.json").write_bytes(damage)
        with pytest.raises(InputError, match=r"probes\.json"):
            Probes.load(tmp_path)


def test_student_layer_has_the_same_relative_depth() -> None:
    layers = [student_layer(f"blocks.{layer}.hook_resid_post", 12, 6) for layer in range(12)]
    assert layers == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert [student_layer(f"blocks.{layer}.hook_out", 4, 4) for layer in range(4)] == [0, 1, 2, 3]
    assert student_layer("blocks.6.hook_resid_pre", 12, 12) == 5
    assert student_layer("blocks.0.hook_resid_pre", 12, 12) == 0
    names = ("hook_out", "hook_in", "attn.hook_out", "hook_mlp_out")
    assert [is_residual(f"blocks.1.{name}") for name in names] == [True, True, False, False]
    with pytest.raises(InputError, match="hook_embed is in no layer"):
        student_layer("hook_embed", 4, 4)
