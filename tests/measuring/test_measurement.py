"""`measure`, compared with plain PyTorch and Hugging Face code that shares nothing with the package."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.measurements import assert_same_codes, assert_same_stats, load_as
from tests.helpers.models import CONTEXT, FEATURES, HOOK, WIDTH
from tl_distill_floor import InputError, floor_from_stats, measure, predict_floor
from tl_distill_floor.measuring import batch_sums, measurement
from tl_distill_floor.measuring.hooks import activation_reader
from tl_distill_floor.measuring.measurement import _block_sizes
from tl_distill_floor.results.block_sums import MAX_BLOCKS
from tl_distill_floor.results.feature_stats import FeatureStats


@pytest.fixture(scope="module")
def expected_stats(teacher_dir: Path, sae: Any, ids: torch.Tensor) -> dict[str, Any]:
    """Compute the statistics from Hugging Face's hidden states and a dense float64 encoder."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(teacher_dir, attn_implementation="eager").eval()
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states[2].double()
    counted = (ids != 0) & (torch.arange(CONTEXT) > 0)
    x = hidden[counted]
    w_enc, w_dec, b_enc, b_dec = (p.detach().double() for p in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec))
    codes = ((x - b_dec) @ w_enc + b_enc).relu()
    return {
        "n_tokens": len(x),
        "n_masked": int((~counted).sum()),
        "firing_count": (codes > 0).sum(0).numpy(),
        "sum_act": codes.sum(0).numpy(),
        "sum_act_sq": codes.square().sum(0).numpy(),
        "cost": (codes.square().mean(0) * w_dec.square().sum(1)).numpy(),
        "l0": (codes > 0).sum(1).double().mean().item(),
        "fvu": ((x - codes @ w_dec - b_dec).square().sum() / (x - x.mean(0)).square().sum()).item(),
    }


def test_statistics_match_plain_pytorch(
    bridge: Any, sae: Any, ids: torch.Tensor, expected_stats: dict[str, Any]
) -> None:
    stats = measure(bridge, sae, ids, cost="energy", batch_size=7)
    assert (stats.n_tokens, stats.n_masked) == (expected_stats["n_tokens"], expected_stats["n_masked"])
    # A code that is 0 up to rounding may fire in only one of them: at most one in ten thousand.
    difference = np.abs(stats.firing_count - expected_stats["firing_count"]).sum()
    assert difference <= 1e-4 * expected_stats["firing_count"].sum()
    for name in ("sum_act", "sum_act_sq", "cost"):
        expected = expected_stats[name]
        np.testing.assert_allclose(getattr(stats, name), expected, rtol=2e-4, atol=1e-4 * expected.max())
    assert stats.l0 == pytest.approx(expected_stats["l0"], rel=1e-3)
    assert (stats.hook_name, stats.d_model, stats.cost_unit) == (HOOK, WIDTH, "mse")


def test_repr_is_one_short_line(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    text = repr(measure(bridge, sae, ids[:4], cost="energy"))
    assert text.startswith("FeatureStats(")
    assert HOOK in text
    assert "\n" not in text
    assert len(text) < 250


def test_fvu_of_all_tokens_matches_plain_pytorch(
    bridge: Any, sae: Any, ids: torch.Tensor, expected_stats: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_sums, "SAMPLE_EVERY", 1)
    stats = measure(bridge, sae, ids)
    assert stats.sampled_tokens == stats.n_tokens
    assert stats.fvu == pytest.approx(expected_stats["fvu"], rel=1e-4)


def test_one_token_of_each_short_sequence_is_sampled(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    """One in 32 is less than a token; all but the first of a sequence are counted."""
    stats = measure(bridge, sae, ids[:7, :16].clamp(min=1), cost="energy")
    assert (stats.n_tokens, stats.sampled_tokens) == (7 * 15, 7)


def test_energy_cost_matches_its_definition(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    """The cost of feature i is the squared change of the reconstruction when code i is set to 0."""
    stats = measure(bridge, sae, ids, cost="energy")
    with activation_reader(bridge, [HOOK]) as read, torch.no_grad():
        acts = read(ids)[0][(ids != 0) & (torch.arange(CONTEXT) > 0)]
        codes = sae.encode(acts)
        reconstruction = sae.decode(codes)
        for feature in np.argsort(-stats.cost)[:5]:
            without = codes.clone()
            without[:, feature] = 0
            change = (sae.decode(without) - reconstruction).double().square().sum(1).mean().item()
            assert stats.cost[feature] == pytest.approx(change, rel=1e-4)


@pytest.mark.parametrize("model_class", ["HookedTransformer", "HookedSAETransformer", "SAETransformerBridge"])
@pytest.mark.parametrize("hook_name", ["blocks.1.hook_resid_post", "blocks.1.hook_out"])
def test_statistics_match_across_model_classes(
    model_class: str, hook_name: str, bridge: Any, teacher_dir: Path, sae: Any, ids: torch.Tensor
) -> None:
    ids = ids.clone()
    ids[:, 1:][ids[:, 1:] == 0] = 1  # the HookedTransformer has no tokenizer and so knows no special token
    expected = measure(bridge, sae, ids, cost="energy")
    stats = measure(load_as(model_class, teacher_dir), sae, ids, hook_name=hook_name, cost="energy")
    assert stats.n_tokens == expected.n_tokens
    assert np.abs(stats.firing_count - expected.firing_count).sum() <= 1e-4 * expected.firing_count.sum()
    np.testing.assert_allclose(stats.cost, expected.cost, rtol=1e-3, atol=1e-5 * expected.cost.max())


def test_rejects_model_with_attached_sae(teacher_dir: Path, sae: Any, ids: torch.Tensor) -> None:
    model = load_as("HookedSAETransformer", teacher_dir)
    model.add_sae(sae)
    with pytest.raises(InputError, match="reset_saes"):
        measure(model, sae, ids)


def test_merge_of_two_halves_matches_the_full_measurement(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    full = measure(bridge, sae, ids, batch_size=4)
    first_half = measure(bridge, sae, ids[:16], batch_size=4)
    second_half = measure(bridge, sae, ids[16:], batch_size=4)
    merged = first_half.merge(second_half)
    with pytest.raises(
        ValueError, match=r"settings differ \(batch_size: 4 and 5\); measure both with the same options"
    ):
        first_half.merge(measure(bridge, sae, ids[16:], batch_size=5))
    some_costs = measure(bridge, sae, ids[16:], batch_size=4, n_cost_tokens=4 * ids.shape[1])
    with pytest.raises(ValueError, match=r"\(sequences_per_cost: 1 and .\); measure both with n_cost_tokens as large"):
        first_half.merge(some_costs)
    np.testing.assert_array_equal(merged.firing_count, full.firing_count)
    np.testing.assert_allclose(merged.sum_act_sq, full.sum_act_sq, rtol=1e-12)
    assert merged.sampled_error_sq == first_half.sampled_error_sq + second_half.sampled_error_sq


class StopError(Exception):
    """Interrupts a measurement."""


@pytest.mark.parametrize(("n_batches_before_stop", "n_codes"), [(1, 500), (5, 1280), (9, 500)])
def test_resumed_measurement_is_identical(
    bridge: Any,
    sae: Any,
    ids: torch.Tensor,
    tmp_path: Path,
    n_batches_before_stop: int,
    n_codes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measurement, "MAX_BLOCKS", 4)
    monkeypatch.setattr("tl_distill_floor.results.block_sums.MAX_BLOCKS", 4)
    file = tmp_path / "partial.safetensors"
    options: dict[str, Any] = {"batch_size": 2, "n_tokens": 1280, "n_codes": n_codes}
    expected = measure(bridge, sae, ids, **options)

    calls: Iterator[int] = iter(range(100))

    def stop(_done: int, _total: int) -> None:
        if next(calls) == n_batches_before_stop:
            raise StopError

    with pytest.raises(StopError):
        measure(bridge, sae, ids, checkpoint=file, progress=stop, **options)
    assert FeatureStats.load(file).n_tokens < expected.n_tokens
    resumed = measure(bridge, sae, ids, checkpoint=file, resume=True, **options)
    assert_same_stats(resumed, expected)
    np.testing.assert_array_equal(resumed.contexts.window, expected.contexts.window)
    assert_same_stats(FeatureStats.load(file), expected)


@pytest.mark.parametrize(("seconds", "n_saves"), [(0, 7), (3600, 1)])
def test_checkpoint_is_saved_periodically_and_when_interrupted(
    bridge: Any,
    sae: Any,
    ids: torch.Tensor,
    tmp_path: Path,
    seconds: int,
    n_saves: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C comes after seven batches of two sequences; each batch is a block."""
    monkeypatch.setattr(measurement, "SECONDS_BETWEEN_SAVES", seconds)
    save, saved = FeatureStats.save, []
    monkeypatch.setattr(FeatureStats, "save", lambda stats, path: saved.append(stats) or save(stats, path))

    def interrupt(done: int, _total: int) -> None:
        if done == 7 * 2 * CONTEXT:
            raise KeyboardInterrupt

    file = tmp_path / "partial.safetensors"
    with pytest.raises(KeyboardInterrupt):
        measure(bridge, sae, ids, batch_size=2, checkpoint=file, progress=interrupt)
    assert len(saved) == n_saves
    loaded, expected = FeatureStats.load(file), measure(bridge, sae, ids[:14], batch_size=2)
    np.testing.assert_array_equal(loaded.sum_act, expected.sum_act)
    assert_same_codes(loaded.codes, expected.codes)


def test_complete_checkpoint_is_not_written_again(bridge: Any, sae: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    file = tmp_path / "partial.safetensors"
    expected = measure(bridge, sae, ids, checkpoint=file)
    written = file.stat().st_mtime_ns
    assert_same_stats(measure(bridge, sae, ids, checkpoint=file, resume=True), expected)
    assert file.stat().st_mtime_ns == written


def test_a_checkpoint_may_be_named_by_its_directory(bridge: Any, sae: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    """Nothing is in the directory at first, so that there is nothing to continue."""
    options: dict[str, Any] = {"checkpoint": tmp_path, "resume": True, "cost": "energy"}
    expected = measure(bridge, sae, ids[:4], **options)
    assert [file.name for file in tmp_path.iterdir()] == ["stats.safetensors"]
    assert_same_stats(measure(bridge, sae, ids[:4], **options), expected)


def test_rejects_resume_with_other_options(bridge: Any, sae: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    file = tmp_path / "partial.safetensors"
    measure(bridge, sae, ids, batch_size=2, n_tokens=320, checkpoint=file)
    with pytest.raises(InputError, match="another measurement"):
        measure(bridge, sae, ids, batch_size=5, checkpoint=file, resume=True)


def test_block_sizes_double_and_continue_after_a_resume() -> None:
    sizes = _block_sizes(0)
    first = [next(sizes) for _ in range(MAX_BLOCKS + MAX_BLOCKS // 2 + 1)]
    assert first == [1] * 64 + [2] * 32 + [4]
    for n_batches_done in (0, 3, 64, 66, 128, 132):
        remaining = _block_sizes(n_batches_done)
        expected, total = _block_sizes(0), 0
        while total < n_batches_done:
            total += next(expected)
        assert [next(remaining) for _ in range(80)] == [next(expected) for _ in range(80)]


def test_number_of_blocks_does_not_grow_with_tokens(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    rows = ids.repeat(4, 1)
    stats = measure(bridge, sae, rows, batch_size=2)
    assert len(stats.blocks.n_tokens) <= MAX_BLOCKS < len(rows) // 2
    tokens, n_alive = stats.growth()
    assert tokens[-1] == stats.n_tokens
    assert n_alive[-1] == stats.alive().sum()
    assert (np.diff(n_alive) >= 0).all()


def test_predict_floor_is_measure_then_floor_from_stats(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    floor = predict_floor(bridge, sae, ids, widths=[2, 4, 8], steps=20, cost="energy")
    expected = floor_from_stats(measure(bridge, sae, ids, cost="energy"), [2, 4, 8], steps=20)
    assert floor.theorem.tolist() == expected.theorem.tolist()
    assert floor.simulated is not None
    assert floor.simulated.tolist() == expected.simulated.tolist()
    assert floor.n_features <= FEATURES
    assert (floor.sampling_interval[:, 0] <= floor.feature_floor).all()
    assert (floor.feature_floor <= floor.sampling_interval[:, 1]).all()


def test_rejects_sae_without_alive_features(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    dead = type(sae)(sae.cfg)
    with torch.no_grad():
        dead.b_enc.fill_(-1e6)
    with pytest.raises(InputError, match=f"none of the {FEATURES} features fired"):
        predict_floor(bridge, dead, ids)


def test_bf16_statistics_are_close_to_fp32(teacher_dir: Path, sae: Any, ids: torch.Tensor, bridge: Any) -> None:
    stats = measure(str(teacher_dir), sae, ids, dtype="bf16", cost="energy")
    expected = measure(bridge, sae, ids, cost="energy")
    assert stats.n_tokens == expected.n_tokens
    assert stats.l0 == pytest.approx(expected.l0, rel=0.02)
    assert stats.cost.sum() == pytest.approx(expected.cost.sum(), rel=0.02)


def test_batch_without_counted_tokens_is_skipped(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    ids = ids.clone()
    ids[[0, 3]] = 0
    stats = measure(bridge, sae, ids, batch_size=1)
    n_counted = (ids[:, 1:] != 0).sum().item()
    assert (stats.n_tokens, stats.n_masked) == (n_counted, ids.numel() - n_counted)


def test_rejects_checkpoint_of_another_sae(bridge: Any, sae: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    """The checkpoint is rejected even if it holds all the tokens that are asked for."""
    file = tmp_path / "partial.safetensors"
    measure(bridge, sae, ids, checkpoint=file)
    other = copy.deepcopy(sae)
    with torch.no_grad():
        other.W_enc.mul_(1.5)
    with pytest.raises(InputError, match="another measurement"):
        measure(bridge, other, ids, checkpoint=file, resume=True)


def test_rejects_hook_point_that_the_sae_does_not_read(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"reads blocks\.1\.hook_resid_post, not blocks\.2"):
        measure(bridge, sae, ids, hook_name="blocks.2.hook_resid_post")


def test_sae_that_concatenates_heads_matches_one_that_reads_them_concatenated(
    bridge: Any, sae: Any, ids: torch.Tensor
) -> None:
    both = []
    for reshape in ("none", "hook_z"):
        config = copy.deepcopy(sae.cfg)
        config.metadata.hook_name, config.reshape_activations = "blocks.1.attn.hook_z", reshape
        sae_of_heads = type(sae)(config)
        sae_of_heads.load_state_dict(sae.state_dict())
        both.append(measure(bridge, sae_of_heads, ids))
    np.testing.assert_array_equal(both[0].firing_count, both[1].firing_count)
    assert both[0].fvu == pytest.approx(both[1].fvu)


def test_progress_reports_tokens_after_every_batch(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    reports: list[tuple[int, int]] = []
    measure(bridge, sae, ids, batch_size=10, progress=lambda done, total: reports.append((done, total)))
    assert [done for done, _ in reports] == [320, 640, 960, 1280]
