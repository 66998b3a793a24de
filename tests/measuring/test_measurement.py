"""Measuring, checked against plain PyTorch and Hugging Face code that shares nothing with ours."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.measurements import hooked, same_codes, same_numbers
from tests.helpers.models import CONTEXT, FEATURES, WIDTH
from tl_distill_floor import InputError, floor_from_stats, measure, predict_floor
from tl_distill_floor.measuring import batch_sums as batch
from tl_distill_floor.measuring import measurement as features
from tl_distill_floor.measuring.hooks import reader
from tl_distill_floor.measuring.measurement import _block_sizes
from tl_distill_floor.results.feature_stats import MAX_BLOCKS, FeatureStats


@pytest.fixture(scope="module")
def plain(teacher_dir: Path, sae: Any, ids: torch.Tensor) -> dict[str, Any]:
    """The same numbers by Hugging Face's hidden states and a dense float64 encoder."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(teacher_dir, attn_implementation="eager").eval()
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states[2].double()
    counts = (ids != 0) & (torch.arange(CONTEXT) > 0)
    x = hidden[counts]
    w_enc, w_dec, b_enc, b_dec = (p.detach().double() for p in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec))
    codes = ((x - b_dec) @ w_enc + b_enc).relu()
    return {
        "n_tokens": len(x),
        "n_masked": int((~counts).sum()),
        "firing_count": (codes > 0).sum(0).numpy(),
        "sum_act": codes.sum(0).numpy(),
        "sum_act_sq": codes.square().sum(0).numpy(),
        "cost": (codes.square().mean(0) * w_dec.square().sum(1)).numpy(),
        "l0": (codes > 0).sum(1).double().mean().item(),
        "fvu": ((x - codes @ w_dec - b_dec).square().sum() / (x - x.mean(0)).square().sum()).item(),
    }


def test_numbers_are_those_of_plain_pytorch(bridge: Any, sae: Any, ids: torch.Tensor, plain: dict[str, Any]) -> None:
    stats = measure(bridge, sae, ids, cost="energy", batch_size=7)
    assert (stats.n_tokens, stats.n_masked) == (plain["n_tokens"], plain["n_masked"])
    # A code within rounding of 0 may fire in one and not in the other: at most one in ten thousand.
    assert np.abs(stats.firing_count - plain["firing_count"]).sum() <= 1e-4 * plain["firing_count"].sum()
    for name in ("sum_act", "sum_act_sq", "cost"):
        np.testing.assert_allclose(getattr(stats, name), plain[name], rtol=2e-4, atol=1e-4 * plain[name].max())
    assert stats.l0 == pytest.approx(plain["l0"], rel=1e-3)
    assert (stats.hook_name, stats.d_model, stats.cost_unit) == ("blocks.1.hook_resid_post", WIDTH, "mse")


def test_unexplained_variance_on_every_token(
    bridge: Any, sae: Any, ids: torch.Tensor, plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "SAMPLE_EVERY", 1)
    stats = measure(bridge, sae, ids)
    assert stats.sampled_tokens == stats.n_tokens
    assert stats.fvu == pytest.approx(plain["fvu"], rel=1e-4)


def test_cost_is_what_dropping_the_feature_does_to_the_reconstruction(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    """cost_i against its definition: the squared change of the decoded activation when code i is set to 0."""
    stats = measure(bridge, sae, ids, cost="energy")
    with reader(bridge, ["blocks.1.hook_resid_post"]) as read, torch.no_grad():
        acts = read(ids)[0][(ids != 0) & (torch.arange(CONTEXT) > 0)]
        codes = sae.encode(acts)
        whole = sae.decode(codes)
        for feature in np.argsort(-stats.cost)[:5]:
            without = codes.clone()
            without[:, feature] = 0
            change = (sae.decode(without) - whole).double().square().sum(1).mean().item()
            assert stats.cost[feature] == pytest.approx(change, rel=1e-4)


@pytest.mark.parametrize("kind", ["HookedTransformer", "HookedSAETransformer", "SAETransformerBridge"])
@pytest.mark.parametrize("hook_name", ["blocks.1.hook_resid_post", "blocks.1.hook_out"])
def test_every_class_of_model_agrees(
    kind: str, hook_name: str, bridge: Any, teacher_dir: Path, sae: Any, ids: torch.Tensor
) -> None:
    ids = ids.clone()
    ids[:, 1:][ids[:, 1:] == 0] = 1  # the made HookedTransformer has no tokenizer to tell it which ids are special
    expected = measure(bridge, sae, ids, cost="energy")
    found = measure(hooked(kind, teacher_dir), sae, ids, hook_name=hook_name, cost="energy")
    assert found.n_tokens == expected.n_tokens
    assert np.abs(found.firing_count - expected.firing_count).sum() <= 1e-4 * expected.firing_count.sum()
    np.testing.assert_allclose(found.cost, expected.cost, rtol=1e-3, atol=1e-5 * expected.cost.max())


def test_an_attached_sae_is_refused(teacher_dir: Path, sae: Any, ids: torch.Tensor) -> None:
    model = hooked("HookedSAETransformer", teacher_dir)
    model.add_sae(sae)
    with pytest.raises(InputError, match="reset_saes"):
        measure(model, sae, ids)


def test_any_split_into_batches_gives_the_same_counts(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    one, many = measure(bridge, sae, ids, batch_size=40), measure(bridge, sae, ids, batch_size=3)
    np.testing.assert_array_equal(one.firing_count, many.firing_count)
    np.testing.assert_allclose(one.sum_act_sq, many.sum_act_sq, rtol=1e-5)
    assert one.n_tokens == many.n_tokens == int(one.blocks.n_tokens.sum())


def test_merging_two_halves_is_measuring_the_whole(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    whole = measure(bridge, sae, ids, batch_size=4)
    merged = measure(bridge, sae, ids[:16], batch_size=4)
    rest = measure(bridge, sae, ids[16:], batch_size=4)
    both = merged.merge(rest)
    with pytest.raises(ValueError, match="settings differ"):
        merged.merge(measure(bridge, sae, ids[16:], batch_size=5))
    np.testing.assert_array_equal(both.firing_count, whole.firing_count)
    np.testing.assert_allclose(both.sum_act_sq, whole.sum_act_sq, rtol=1e-12)
    assert both.sampled_error_sq == merged.sampled_error_sq + rest.sampled_error_sq


class StopError(Exception):
    """Stands for a kill at any moment."""


@pytest.mark.parametrize("kill_after", [1, 5, 9])
@pytest.mark.parametrize("n_codes", [500, 1280])
def test_resuming_ends_with_the_same_numbers_to_the_last_bit(
    bridge: Any,
    sae: Any,
    ids: torch.Tensor,
    tmp_path: Path,
    kill_after: int,
    n_codes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(features, "MAX_BLOCKS", 4)
    monkeypatch.setattr("tl_distill_floor.results.feature_stats.MAX_BLOCKS", 4)
    file = tmp_path / "partial.safetensors"
    options: dict[str, Any] = {"batch_size": 2, "n_tokens": 1280, "n_codes": n_codes}
    whole = measure(bridge, sae, ids, **options)

    calls: Iterator[int] = iter(range(100))

    def killed(_done: int, _total: int) -> None:
        if next(calls) == kill_after:
            raise StopError

    with pytest.raises(StopError):
        measure(bridge, sae, ids, checkpoint=file, progress=killed, **options)
    assert FeatureStats.load(file).n_tokens < whole.n_tokens
    same_numbers(measure(bridge, sae, ids, checkpoint=file, resume=True, **options), whole)
    same_numbers(FeatureStats.load(file), whole)


@pytest.mark.parametrize(("seconds", "saves"), [(0, 7), (3600, 1)])
def test_checkpoints_are_written_now_and_then_and_when_interrupted(
    bridge: Any, sae: Any, ids: torch.Tensor, tmp_path: Path, seconds: int, saves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes after seven batches of two sequences, each a block."""
    monkeypatch.setattr(features, "SECONDS_BETWEEN_SAVES", seconds)
    save, saved = FeatureStats.save, []
    monkeypatch.setattr(FeatureStats, "save", lambda stats, path: saved.append(stats) or save(stats, path))

    def interrupted(done: int, _total: int) -> None:
        if done == 7 * 2 * CONTEXT:
            raise KeyboardInterrupt

    file = tmp_path / "partial.safetensors"
    with pytest.raises(KeyboardInterrupt):
        measure(bridge, sae, ids, batch_size=2, checkpoint=file, progress=interrupted)
    assert len(saved) == saves
    found, expected = FeatureStats.load(file), measure(bridge, sae, ids[:14], batch_size=2)
    np.testing.assert_array_equal(found.sum_act, expected.sum_act)
    same_codes(found.codes, expected.codes)


def test_nothing_new_is_not_saved_again(bridge: Any, sae: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    file = tmp_path / "partial.safetensors"
    whole = measure(bridge, sae, ids, checkpoint=file)
    written = file.stat().st_mtime_ns
    same_numbers(measure(bridge, sae, ids, checkpoint=file, resume=True), whole)
    assert file.stat().st_mtime_ns == written


def test_resuming_with_other_options_is_refused(bridge: Any, sae: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    file = tmp_path / "partial.safetensors"
    measure(bridge, sae, ids, batch_size=2, n_tokens=320, checkpoint=file)
    with pytest.raises(InputError, match="another measurement"):
        measure(bridge, sae, ids, batch_size=5, checkpoint=file, resume=True)


def test_blocks_stay_few_and_of_one_size() -> None:
    sizes = _block_sizes(0)
    first = [next(sizes) for _ in range(MAX_BLOCKS + MAX_BLOCKS // 2 + 1)]
    assert first == [1] * 64 + [2] * 32 + [4]
    for done in (0, 3, 64, 66, 128, 132):
        rest = _block_sizes(done)
        expected, total = _block_sizes(0), 0
        while total < done:
            total += next(expected)
        assert [next(rest) for _ in range(80)] == [next(expected) for _ in range(80)]


def test_memory_of_the_record_does_not_grow_with_tokens(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    stats = measure(bridge, sae, ids.repeat(10, 1), batch_size=2)
    assert len(stats.blocks.n_tokens) <= MAX_BLOCKS
    tokens, alive = stats.growth()
    assert tokens[-1] == stats.n_tokens
    assert alive[-1] == stats.alive().sum()
    assert (np.diff(alive) >= 0).all()


def test_the_model_leaves_as_it_came(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    bridge.train()
    modes = [m.training for m in bridge.modules()]
    hooks = sum(len(m._forward_hooks) for m in bridge.modules())
    weights = {k: v.clone() for k, v in sae.state_dict().items()}
    measure(bridge, sae, ids)
    assert [m.training for m in bridge.modules()] == modes
    assert sum(len(m._forward_hooks) for m in bridge.modules()) == hooks
    assert all(torch.equal(v, weights[k]) for k, v in sae.state_dict().items())
    assert all(p.grad is None for p in bridge.parameters())
    bridge.eval()


def test_predict_floor_is_measure_and_floor(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    floor = predict_floor(bridge, sae, ids, widths=[2, 4, 8], steps=20, cost="energy")
    again = floor_from_stats(measure(bridge, sae, ids, cost="energy"), [2, 4, 8], steps=20)
    assert floor.theorem.tolist() == again.theorem.tolist()
    assert floor.simulated is not None
    assert floor.simulated.tolist() == again.simulated.tolist()
    assert floor.n_features <= FEATURES
    assert (floor.interval[:, 0] <= floor.expected).all()
    assert (floor.expected <= floor.interval[:, 1]).all()


def test_an_all_dead_sae_is_refused(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    dead = type(sae)(sae.cfg)
    with torch.no_grad():
        dead.b_enc.fill_(-1e6)
    with pytest.raises(InputError, match=f"none of the {FEATURES} features fired"):
        predict_floor(bridge, dead, ids)


def test_bf16_counts_nearly_as_fp32(teacher_dir: Path, sae: Any, ids: torch.Tensor, bridge: Any) -> None:
    found = measure(str(teacher_dir), sae, ids, dtype="bf16", cost="energy")
    expected = measure(bridge, sae, ids, cost="energy")
    assert found.n_tokens == expected.n_tokens
    assert found.l0 == pytest.approx(expected.l0, rel=0.02)
    assert found.cost.sum() == pytest.approx(expected.cost.sum(), rel=0.02)


def test_a_batch_in_which_nothing_counts_ends_nothing(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    ids = ids.clone()
    ids[[0, 3]] = 0
    stats = measure(bridge, sae, ids, batch_size=1)
    expected = (ids[:, 1:] != 0).sum().item()
    assert (stats.n_tokens, stats.n_masked) == (expected, ids.numel() - expected)


def test_a_checkpoint_of_another_sae_is_refused(bridge: Any, sae: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    """Also where it holds all the tokens that are asked for."""
    file = tmp_path / "partial.safetensors"
    measure(bridge, sae, ids, checkpoint=file)
    other = copy.deepcopy(sae)
    with torch.no_grad():
        other.W_enc.mul_(1.5)
    with pytest.raises(InputError, match="another measurement"):
        measure(bridge, other, ids, checkpoint=file, resume=True)


def test_a_hook_point_that_the_sae_does_not_read_is_refused(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"reads blocks\.1\.hook_resid_post, not blocks\.2"):
        measure(bridge, sae, ids, hook_name="blocks.2.hook_resid_post")


def test_an_sae_that_joins_the_heads_itself(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    """hook_z: the same numbers as an SAE that reads the heads already joined."""
    found = []
    for reshape in ("none", "hook_z"):
        config = copy.deepcopy(sae.cfg)
        config.metadata.hook_name, config.reshape_activations = "blocks.1.attn.hook_z", reshape
        z = type(sae)(config)
        z.load_state_dict(sae.state_dict())
        found.append(measure(bridge, z, ids))
    np.testing.assert_array_equal(found[0].firing_count, found[1].firing_count)
    assert found[0].fvu == pytest.approx(found[1].fvu)


def test_a_growing_count_of_tokens_is_reported(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    seen: list[tuple[int, int]] = []
    measure(bridge, sae, ids, batch_size=10, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == [320, 640, 960, 1280]
