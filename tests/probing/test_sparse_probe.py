"""`sparse_probe` on a tiny random teacher with students."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.probes import labelled_rows
from tl_distill_floor import (
    FloorPrediction,
    InputError,
    SparseProbeConfig,
    SparseProbes,
    StudentResult,
    probe_run,
    sparse_probe,
)
from tl_distill_floor.predicting.lost_features import one_feature
from tl_distill_floor.results.student import load_students

QUICK = SparseProbeConfig(k=3, n_splits=2, n_controls=2, bottleneck_steps=0)


@pytest.fixture(scope="module")
def floor(measured: tuple[Path, Path, Path]) -> Any:
    """Load the prediction of the measured run."""
    return FloorPrediction.load(measured[0]).with_features()


@pytest.fixture(scope="module")
def probes(floor: Any, bridge: Any, sae: Any) -> SparseProbes:
    """Probe the teacher for both labels, without students."""
    return sparse_probe(floor, bridge, sae, labelled_rows(), labels=["half", "length"], widths=[8, 16], config=QUICK)


def test_links_concepts_to_features_and_to_the_widths_that_lose_them(probes: SparseProbes, floor: Any) -> None:
    assert probes.names == ("half", "length: short")
    for concept in probes.concepts:
        assert [at.k for at in concept.at] == [1, 2, 3]
        assert [len(scores.auroc) for scores in (concept.best.selected, concept.best.shuffled)] == [2, 4]
        assert len(concept.features) == 3
        for feature in concept.features:
            assert feature.survives_from == one_feature(floor, feature.feature).survives_from
            assert feature.peak is not None
        assert [at.width for at in concept.widths] == [8, 16]
        for at in concept.widths:
            kept = floor.kept(at.width)
            assert at.lost == tuple(each.feature for each in concept.core if not kept[each.feature])
            assert at.bottleneck is None
            assert at.students == ()
    assert probes.of("half").n_documents == 12
    assert probes.settings["k"] == 3


def test_the_same_seed_gives_the_same_result(probes: SparseProbes, floor: Any, bridge: Any, sae: Any) -> None:
    again = sparse_probe(floor, bridge, sae, labelled_rows(), labels=["length"], widths=[8, 16], config=QUICK)
    assert again.concepts == (probes.of("length: short"),)


def test_reports_progress(floor: Any, bridge: Any, sae: Any) -> None:
    seen: list[tuple[int, int, str]] = []
    config = dataclasses.replace(QUICK, bottleneck_steps=5, k=1, n_splits=1)
    result = sparse_probe(
        floor, bridge, sae, labelled_rows(), labels=["length"], widths=[8], config=config,
        progress=lambda *step: seen.append(step),
    )  # fmt: skip
    assert [step[:2] for step in seen] == [(1, 3), (2, 3), (3, 3)]
    assert [seen[0][2], seen[2][2]] == ["bottlenecks", "length: short"]
    assert result.concepts[0].widths[0].bottleneck is not None


@pytest.mark.slow
def test_students_are_probed_at_every_width(distilled: Path, floor: Any, bridge: Any, sae: Any) -> None:
    students = load_students(distilled)
    result = sparse_probe(
        floor, bridge, sae, labelled_rows(), labels=["length"], students=students, widths=[12], config=QUICK
    )
    (concept,) = result.concepts
    names = {at.width: [student.name for student in at.students] for at in concept.widths}
    assert names == {8: ["width8"], 12: [], 16: ["width16"], 24: ["width24"]}
    assert np.isfinite(list(result.forecast_error().values())[:2]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 97}, "a probe cannot read 97 features, since only 96 are alive; set k=96 or less"),
        ({"labelled": [{"text": f"a {i}", "label": "x"} for i in range(9)]}, "needs two classes that occur in"),
        ({"labelled": [{"text": f"a {i}", "label": i % 2} for i in range(8)]}, "needs two classes that occur in"),
        ({"widths": [0]}, "widths must be integers above 0, in dimensions, got"),
        ({"widths": [8.5]}, "widths must be integers above 0, in dimensions, got"),
    ],
)
def test_rejects_bad_input(floor: Any, bridge: Any, sae: Any, options: dict[str, Any], message: str) -> None:
    config = dataclasses.replace(QUICK, k=options.get("k", 1))
    labelled = options.get("labelled", [{"text": f"a {i}", "label": i % 2} for i in range(20)])
    with pytest.raises(InputError, match=message):
        sparse_probe(floor, bridge, sae, labelled, widths=options.get("widths", [8]), config=config)


@pytest.mark.parametrize("function", [sparse_probe, probe_run])
def test_rejects_students_of_another_teacher(function: Any, floor: Any, bridge: Any, sae: Any) -> None:
    """They may have another tokenizer, and would be compared with the forecasts for this teacher."""
    student = StudentResult("width8", "another", 8, 2, 100, (10,), (0.5,), 0.5, (0.0, 0.5), "under-trained", 50)
    with pytest.raises(InputError, match=r"the teacher of .* is another, and the prediction is for"):
        function(floor, bridge, sae, labelled_rows(), labels=["half"], students=[student])


def test_students_that_were_not_saved_are_named(floor: Any, bridge: Any, sae: Any) -> None:
    student = StudentResult("width8", floor.model_name, 8, 2, 100, (10,), (0.5,), 0.5, (0.0, 0.5), "under-trained", 50)
    probes = sparse_probe(
        floor, bridge, sae, labelled_rows(), labels=["half"], students=[student], widths=[8], config=QUICK
    )
    assert "not saved, and not probed: width8 (distil with out=DIRECTORY)" in probes.warnings
    assert probes.concepts[0].widths[0].students == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"n_controls": 0}, "n_controls must be at least 1, got 0"),
        ({"n_splits": 0}, "n_splits must be at least 1, got 0"),
        ({"bottleneck_steps": 1}, "the steps of the bottleneck students must be 0 or at least 2, got 1"),
    ],
)
def test_config_rejects_options_out_of_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SparseProbeConfig(**options)


def test_ks_are_powers_of_two_and_the_largest() -> None:
    assert [SparseProbeConfig(k=k).ks for k in (1, 2, 6, 8)] == [(1,), (1, 2), (1, 2, 4, 6), (1, 2, 4, 8)]
