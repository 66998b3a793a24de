"""Tests of saved statistics and predictions: they load unchanged, and damaged or foreign files are rejected."""

import contextlib
import json
import pickle
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.probes import probe_result
from tests.helpers.records import stats_of
from tl_distill_floor import FeatureStats, FloorPrediction, InputError, ProbeResult, floor_from_stats
from tl_distill_floor.results.block_sums import MAX_BLOCKS, BlockSums
from tl_distill_floor.results.codes import Codes
from tl_distill_floor.results.student import load_students
from tl_distill_floor.results.tail_loss import TailLoss
from tl_distill_floor.storage.versioned import load_arrays, save_arrays

ONE = np.array([1])
COST = np.array([5.0, 1.0, 9.0, 4.0])


def test_saved_statistics_load_unchanged(tmp_path: Path) -> None:
    stats = stats_of(COST, expected_l0=3.5, settings={"context_size": 32}, warnings=("mind the gap",))
    loaded = FeatureStats.load(stats.save(tmp_path / "x.safetensors"))
    for name, value in vars(stats).items():
        if name != "blocks":
            np.testing.assert_array_equal(getattr(loaded, name), value, err_msg=name)
    np.testing.assert_array_equal(loaded.blocks.cost, stats.blocks.cost)
    assert loaded.warnings == ("mind the gap",)


def test_a_saved_prediction_loads_unchanged(tmp_path: Path) -> None:
    floor = floor_from_stats(stats_of(COST), [1, 2, 3])
    floor.save(tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["floor.json", "stats.safetensors"]
    loaded = FloorPrediction.load(tmp_path / "run")
    for name in ("n_features", "alpha", "capacity", "critical_width", "critical_width_interval", "warnings"):
        assert getattr(loaded, name) == getattr(floor, name), name
    for name in ("widths", "theorem", "sampling_interval", "theorem_interval", "independent_interval"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(floor, name))
    assert loaded.lost(1).tolist() == floor.lost(1).tolist()
    assert loaded.width_for(4.5) == floor.width_for(4.5)


def test_loads_a_prediction_with_the_names_of_earlier_versions(tmp_path: Path) -> None:
    floor = floor_from_stats(stats_of(COST), [1, 2, 3])
    file = floor.save(tmp_path)
    saved = file.read_text()
    stored = json.loads(saved)
    stored["interval"] = stored.pop("sampling_interval")
    stored["expected"] = stored.pop("feature_floor")
    file.write_text(json.dumps(stored))
    loaded = FloorPrediction.load(file)
    np.testing.assert_array_equal(loaded.sampling_interval, floor.sampling_interval)
    np.testing.assert_array_equal(loaded.feature_floor, floor.feature_floor)
    assert loaded.save(tmp_path / "again").read_text() == saved
    del stored["theorem_interval"], stored["independent_interval"]
    file.write_text(json.dumps(stored))
    loaded = FloorPrediction.load(file)
    assert np.isnan(loaded.theorem_interval).all()
    assert loaded.independent_interval.shape == (3, 2)


def test_unknown_intervals_are_null_in_the_file(tmp_path: Path) -> None:
    one_block = (np.array([1000]), np.full((1, 4), 100), COST[None] * 1000)
    floor = floor_from_stats(stats_of(None, blocks=one_block))
    floor.save(tmp_path)
    assert json.loads((tmp_path / "floor.json").read_text())["critical_width_interval"] == [None, None]
    assert np.isnan(FloorPrediction.load(tmp_path).critical_width_interval).all()


def test_rejects_a_prediction_of_other_statistics(tmp_path: Path) -> None:
    floor_from_stats(stats_of(COST)).save(tmp_path)
    stats_of(COST, n_tokens=500).save(tmp_path)
    with pytest.raises(InputError, match="not computed from the stats"):
        FloorPrediction.load(tmp_path)


def test_rejects_a_block_with_more_tokens_than_its_counts_can_hold() -> None:
    counts, cost = np.zeros((2, 1), dtype=np.int32), np.zeros((2, 1))
    BlockSums(np.array([1, 2**31 - 1]), np.array([1, 1]), counts, cost)
    with pytest.raises(ValueError, match="a block has more tokens than int32 counts"):
        BlockSums(np.array([1, 2**31]), np.array([1, 1]), counts, cost)


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 50, pickle.dumps({"a": 1}), b'{"format": "else"}', b"[1]"])
@pytest.mark.parametrize("record", [FeatureStats, FloorPrediction])
def test_rejects_files_in_other_formats(tmp_path: Path, content: bytes, record: type) -> None:
    file = tmp_path / ("floor.json" if record is FloorPrediction else "stats.safetensors")
    file.write_bytes(content)
    with pytest.raises(InputError, match=file.name):
        record.load(file)


def test_rejects_missing_files(tmp_path: Path) -> None:
    for record in (FeatureStats, FloorPrediction):
        with pytest.raises(InputError, match="missing"):
            record.load(tmp_path)


@given(cut=st.integers(0, 2000), flip=st.integers(0, 2000), bit=st.integers(0, 7))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_raise_input_errors_only(tmp_path: Path, cut: int, flip: int, bit: int) -> None:
    """Truncate the file and flip one bit: loading returns a record or raises an InputError, and nothing else."""
    stats = stats_of(COST, codes=Codes.from_dense(np.array([[0.0, 1, 2, 0], [3, 0, 0, 4]])))
    data = bytearray(stats.save(tmp_path / "intact.safetensors").read_bytes())
    data[flip % len(data)] ^= 1 << bit
    (tmp_path / "damaged.safetensors").write_bytes(bytes(data[: cut or None]))
    with contextlib.suppress(InputError):
        assert isinstance(FeatureStats.load(tmp_path / "damaged.safetensors"), FeatureStats)


def test_a_newer_version_asks_for_an_upgrade(tmp_path: Path) -> None:
    floor_from_stats(stats_of(COST)).save(tmp_path)
    stored = json.loads((tmp_path / "floor.json").read_text())
    (tmp_path / "floor.json").write_text(json.dumps(stored | {"version": 99}))
    with pytest.raises(InputError, match="upgrade"):
        FloorPrediction.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sum_cost": np.array([1.0, np.nan, 1.0, 1.0])}, "not finite"),
        ({"sum_cost": -np.ones(4)}, "at least 0"),
        ({"n_tokens": 10}, "at least every firing count"),
        ({"n_cost_tokens": 1001}, "some of the counted tokens"),
        ({"n_cost_tokens": 10}, "with costs must add up"),
        ({"blocks": BlockSums(ONE, ONE, np.ones((1, 4), dtype=np.int64), np.ones((1, 4)))}, "add up"),
    ],
)
def test_rejects_impossible_statistics(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(stats_of(COST), **change)


def test_rejects_impossible_predictions() -> None:
    floor = floor_from_stats(stats_of(COST), [1, 2])
    for change, message in (
        ({"theorem": -np.ones(2)}, "theorem must have 2 losses of at least 0"),
        ({"alpha": 1.0}, "alpha, the sparsity, must be inside"),
        ({"n_features": 0}, "must be above 0"),
        ({"widths": np.array([2, 1])}, "in rising order"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(floor, **change)


def test_a_prediction_is_pickled_after_it_was_used() -> None:
    ranks, loss = np.array([0, 1, 2]), np.array([[90.0], [30.0], [10.0]])
    tail = TailLoss(ranks, np.array([19.0, 10.0, 5.0]), loss, np.array([10]), np.array([0]))
    floor = floor_from_stats(stats_of(COST, cost_unit="nats"), [1, 2, 3], tail=tail)
    expected = floor.floor_at(1.5), floor.power_law
    copied = pickle.loads(pickle.dumps(floor))
    assert (copied.floor_at(1.5), copied.power_law) == expected
    assert copied.stats.digest() == floor.stats.digest()


def test_rejects_a_tail_loss_for_costs_in_squared_error() -> None:
    tail = TailLoss(np.array([0, 1]), np.array([19.0, 10.0]), np.array([[90.0], [30.0]]), np.array([10]), np.array([0]))
    with pytest.raises(InputError, match="these are in squared error; measure with cost="):
        floor_from_stats(stats_of(COST), [1, 2], tail=tail)
    with pytest.raises(ValueError, match="these are in squared error"):
        replace(floor_from_stats(stats_of(COST), [1, 2]), tail=tail)


def test_merging_rejects_the_same_text_twice() -> None:
    one = stats_of(COST, ids_digest=5)
    assert one.merge(stats_of(COST, ids_digest=6)).n_tokens == 2 * one.n_tokens
    with pytest.raises(ValueError, match="same token ids, which would count twice"):
        one.merge(stats_of(COST, ids_digest=5))


def test_merging_rejects_texts_that_overlap() -> None:
    one, longer, other = (
        stats_of(COST, ids_digest=digest, settings={"cost": "fisher", "text": text})
        for digest, text in ((5, "prose"), (6, "prose"), (7, "code"))
    )
    with pytest.raises(ValueError, match="both begin with the same tokens of made"):
        one.merge(longer)
    merged = one.merge(other)
    assert merged.settings["text"] == ["prose", "code"]
    for part in (longer, other):
        with pytest.raises(ValueError, match="would count twice"):
            merged.merge(part)
        with pytest.raises(ValueError, match="would count twice"):
            part.merge(merged)


def test_merging_rejects_another_decoder() -> None:
    with pytest.raises(ValueError, match="decoders differ"):
        stats_of(COST).merge(stats_of(COST, decoder_norm=2 * np.ones(4)))


def test_older_statistics_have_costs_of_all_tokens(tmp_path: Path) -> None:
    stats = stats_of(COST)
    file = stats.save(tmp_path)
    arrays, scalars = load_arrays(file, "feature-stats")
    del arrays["blocks.n_cost_tokens"], scalars["n_cost_tokens"]
    save_arrays(file, "feature-stats", arrays, scalars)
    loaded = FeatureStats.load(file)
    assert loaded.n_cost_tokens == stats.n_tokens
    np.testing.assert_array_equal(loaded.blocks.n_cost_tokens, stats.blocks.n_tokens)
    np.testing.assert_array_equal(loaded.cost, stats.cost)


def test_merging_adds_sums_and_limits_the_number_of_blocks() -> None:
    part = stats_of(COST, n_tokens=100)
    total = part
    for n_merged in range(1, 201):
        total = total.merge(part)
        assert total.n_tokens == (n_merged + 1) * 100 == total.blocks.n_tokens.sum()
        assert len(total.blocks.n_tokens) <= MAX_BLOCKS
        np.testing.assert_allclose(total.cost, part.cost)
        np.testing.assert_array_equal(total.blocks.firing_count.sum(0), total.firing_count)


def test_blocks_without_counted_tokens_are_left_out() -> None:
    part = stats_of(COST, n_tokens=100).blocks
    empty = BlockSums(*(np.zeros_like(getattr(part, field.name)) for field in fields(BlockSums)))
    joined = BlockSums.concatenate([empty, part, empty])
    for field in fields(BlockSums):
        np.testing.assert_array_equal(getattr(joined, field.name), getattr(part, field.name))
    assert len(BlockSums.concatenate([empty]).n_tokens) == 0


def test_sums_of_blocks_keep_their_32_bits_and_do_not_overflow() -> None:
    largest = np.iinfo(np.int32).max
    halves = BlockSums(
        np.array([largest // 2, largest // 2]),
        np.array([5, 6]),
        np.full((2, 3), largest // 2, dtype=np.int32),
        np.full((2, 3), 0.5, dtype=np.float32),
    )
    joined = halves.coarser()
    assert joined.firing_count.tolist() == [[largest // 2 * 2] * 3]
    assert joined.cost.tolist() == [[1.0] * 3]
    assert joined.n_cost_tokens.tolist() == [11]
    assert (joined.firing_count.dtype, joined.cost.dtype) == (np.int32, np.float32)
    with pytest.raises(ValueError, match="more tokens than int32 counts; measure less text"):
        replace(halves, n_tokens=halves.n_tokens + 1).coarser()


def test_paths_and_links_in_a_run_do_not_lead_out_of_it(distilled: Path, tmp_path: Path) -> None:
    """The path that a file states is ignored, and saving replaces a link instead of writing to its target."""
    student = tmp_path / "students" / "width8"
    shutil.copytree(distilled / "students" / "width8", student)
    stored = json.loads((student / "student.json").read_text()) | {"path": "/etc", "name": "../../elsewhere"}
    (student / "student.json").write_text(json.dumps(stored))
    (loaded,) = load_students(tmp_path)
    assert loaded.path == str(student)
    outside = tmp_path / "outside.json"
    outside.write_text("mine")
    (student / "student.json").unlink()
    (student / "student.json").symlink_to(outside)
    loaded.save(student)
    assert outside.read_text() == "mine"
    assert not (student / "student.json").is_symlink()


def test_a_directory_that_is_saved_to_may_have_a_dot_in_its_name(tmp_path: Path) -> None:
    """Two records would otherwise replace each other in one file named like the run."""
    run = tmp_path / "Qwen2.5-0.5B"
    stats, probes = stats_of(COST), probe_result("teacher", None, 0.7)
    assert (stats.save(run), probes.save(run)) == (run / "stats.safetensors", run / "probe.json")
    assert ProbeResult.load(run) == ProbeResult.load(run / "probe.json") == probes
    renamed = (run / "probe.json").rename(tmp_path / "probe.json.backup")
    assert ProbeResult.load(renamed) == probes
