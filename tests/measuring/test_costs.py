"""Costs in nats, compared with central differences, closed forms and forward passes with plain hooks."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.forward_passes import activation_of, logits_with
from tests.helpers.measurements import load_as
from tests.helpers.models import CONTEXT, FEATURES, HOOK, WIDTH
from tests.helpers.type_checks import without_type_checks
from tl_distill_floor import InputError, head_floor, load_teacher, measure
from tl_distill_floor.measuring.config import MeasureConfig
from tl_distill_floor.measuring.costs import row_dot_products
from tl_distill_floor.measuring.hooks import get_hook_point
from tl_distill_floor.measuring.job import prepare_job
from tl_distill_floor.measuring.kl import forward_kl_in_chunks
from tl_distill_floor.measuring.removal import measure_tail_loss
from tl_distill_floor.measuring.rerun import rerunner
from tl_distill_floor.measuring.sampling import one_of_each_group, sample_outcomes, spread_at_random
from tl_distill_floor.theory.allocation import rank_by_cost


def counted_tokens(ids: Tensor) -> Tensor:
    """Return which tokens are counted."""
    return (ids != 0) & (torch.arange(CONTEXT) > 0)


def contribution(sae: Any, activation: Tensor, counted: Tensor, feature: int) -> Tensor:
    """Return what a feature adds to the activation of the counted tokens; 0 for the other tokens."""
    code = sae.encode(activation)[..., feature] * counted
    return code[..., None] * sae.W_dec[feature].detach()


@pytest.fixture(scope="module")
def exact_fisher(bridge: Any, sae: Any, ids: Tensor) -> np.ndarray:
    """Compute the Fisher costs of the token ids without sampling."""
    return exact_fisher_costs(bridge, sae, ids)


def exact_fisher_costs(bridge: Any, sae: Any, ids: Tensor) -> np.ndarray:
    """Compute ½ Σ_t Var_p of the derivative of the logits along the removal, t the counted tokens.

    The derivative is a central difference.
    """
    counted, activation, step = counted_tokens(ids), activation_of(bridge, ids), 0.02
    p = logits_with(bridge, ids, activation).softmax(-1)
    costs = np.zeros(FEATURES)
    for feature in range(FEATURES):
        change = contribution(sae, activation, counted, feature)
        up, down = (logits_with(bridge, ids, activation + sign * step * change) for sign in (1, -1))
        derivative = (up - down).double() / (2 * step)
        variance = (p * derivative.square()).sum(-1) - (p * derivative).sum(-1).square()
        costs[feature] = 0.5 * variance[counted].sum() / counted.sum()
    return costs


def test_fisher_matches_exact_matrix_within_sampling_error(
    bridge: Any, sae: Any, ids: Tensor, exact_fisher: np.ndarray
) -> None:
    """The error falls as 1 / √n_samples: 36 times the samples, a sixth of the error."""

    def error(n_samples: int) -> float:
        cost = measure(bridge, sae, ids, cost="fisher", n_samples=n_samples).cost
        costly = exact_fisher > 1e-3 * exact_fisher.max()
        return float(np.sqrt(np.mean((cost[costly] / exact_fisher[costly] - 1) ** 2)))

    few, many = error(4), error(144)
    assert many < 0.07
    assert 3 < few / many < 12


def with_special_tokens(ids: Tensor) -> Tensor:
    """Return token ids of which every third is the special token 0, as in the turns of a short chat."""
    return ids.where(torch.arange(CONTEXT) % 3 > 0, 0)


def test_outputs_at_special_tokens_have_no_fisher_cost(bridge: Any, sae: Any, ids: Tensor) -> None:
    chat = with_special_tokens(ids[:10])
    expected = exact_fisher_costs(bridge, sae, chat).sum()
    assert measure(bridge, sae, chat, n_samples=100).cost.sum() == pytest.approx(expected, rel=0.03)


def test_outputs_at_special_tokens_have_no_ablation_cost(bridge: Any, sae: Any, ids: Tensor) -> None:
    chat = with_special_tokens(ids[:3])
    counted, activation = counted_tokens(chat), activation_of(bridge, chat)
    stats = measure(bridge, sae, chat, cost="ablation")
    feature = int(stats.cost.argmax())
    without = activation - contribution(sae, activation, counted, feature)
    p, q = (logits_with(bridge, chat, a).double().log_softmax(-1) for a in (activation, without))
    kl = (p.exp() * (p - q)).sum(-1)
    assert kl[~counted].sum() > 0.05 * kl[counted].sum()
    assert stats.cost[feature] == pytest.approx(float(kl[counted].mean()), rel=1e-3)


def test_ablation_matches_kl_of_plain_forward_pass(bridge: Any, sae: Any, ids: Tensor) -> None:
    ids = ids[:6]
    counted, activation = counted_tokens(ids), activation_of(bridge, ids)
    stats = measure(bridge, sae, ids, cost="ablation", batch_size=4)
    p = bridge(ids).detach().double().log_softmax(-1)
    for feature in np.argsort(-stats.cost)[[0, 3, 20, 50]]:
        without = activation - contribution(sae, activation, counted, int(feature))
        q = logits_with(bridge, ids, without).double().log_softmax(-1)
        kl = (p.exp() * (p - q))[counted].sum() / counted.sum()
        assert stats.cost[feature] == pytest.approx(float(kl), rel=1e-3, abs=1e-7)
    assert stats.cost_unit == "nats"
    never_fired = stats.firing_count == 0
    assert (stats.cost[never_fired] == 0).all()


def test_fisher_matches_closed_form_of_linear_model(sae: Any, ids: Tensor) -> None:
    """If only the unembedding follows the activation, cost = ½ Σ_t a² Var_p(w · W_U) / tokens."""
    pytest.importorskip("transformer_lens.HookedTransformer")
    import transformer_lens

    config = transformer_lens.HookedTransformerConfig(
        n_layers=2, d_model=WIDTH, n_ctx=64, d_head=8, n_heads=3, attn_only=True, d_vocab=300, device="cpu", seed=0,
        normalization_type=None,
    )  # fmt: skip
    model = transformer_lens.HookedTransformer(config)
    ids = ids.clamp(min=1)
    activation, counted = activation_of(model, ids), (torch.arange(CONTEXT) > 0).expand(ids.shape)
    codes = sae.encode(activation).detach()[counted].double()
    p = (activation @ model.W_U + model.b_U).softmax(-1)[counted].detach().double()
    change_of_logits = (sae.W_dec @ model.W_U).detach().double()
    variance = p @ change_of_logits.square().T - (p @ change_of_logits.T).square()
    expected = (0.5 * (codes.square() * variance).sum(0) / counted.sum()).numpy()
    cost = measure(model, sae, ids, cost="fisher", n_samples=200).cost
    costly = expected > 1e-3 * expected.max()
    np.testing.assert_allclose(cost[costly], expected[costly], rtol=0.2)
    assert np.median(np.abs(cost[costly] / expected[costly] - 1)) < 0.03


@pytest.mark.parametrize("cost", ["energy", "fisher", "ablation"])
def test_a_hook_point_that_is_left_out_is_named_with_its_flag(cost: Any, bridge: Any, sae: Any, ids: Tensor) -> None:
    unknown = copy.deepcopy(sae)
    unknown.cfg.metadata.hook_name = None
    for point, advice in (("hook_mlp_in", r"call model\.set_use_hook_mlp_in\(True\)"), ("attn.qkv.hook_out", "name")):
        with pytest.raises(InputError, match=f"does not reach blocks.1.{point}; {advice}"):
            measure(bridge, unknown, ids, hook_name=f"blocks.1.{point}", cost=cost)


@pytest.mark.parametrize("model_class", ["HookedTransformer", "HookedSAETransformer", "SAETransformerBridge"])
def test_costs_match_across_model_classes(
    model_class: str, bridge: Any, teacher_dir: Path, sae: Any, ids: Tensor
) -> None:
    ids = ids.clone()
    ids[:, 1:][ids[:, 1:] == 0] = 1
    expected = measure(bridge, sae, ids, cost="fisher")
    model = load_as(model_class, teacher_dir)
    stats = measure(model, sae, ids, hook_name="blocks.1.hook_out", cost="fisher")
    # Rounding occasionally turns a sampled output into its neighbour, which changes a few features.
    change = np.abs(stats.cost / expected.cost - 1)
    assert np.median(change) < 0.01
    assert change.max() < 0.3
    options: dict[str, Any] = {"hook_name": HOOK, "cost": "ablation"}
    exact, converted = (measure(m, sae, ids[:3], **options) for m in (bridge, model))
    np.testing.assert_allclose(converted.cost, exact.cost, rtol=1e-2, atol=1e-5 * exact.cost.max())


@pytest.mark.parametrize("cost", ["fisher", "ablation"])
def test_a_model_may_predict_fewer_tokens_than_it_reads(cost: Any, sae: Any, ids: Tensor) -> None:
    """The costs are those with one more output that has no probability."""
    pytest.importorskip("transformer_lens.HookedTransformer")
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    options: dict[str, Any] = {"d_model": WIDTH, "d_head": 8, "n_layers": 2, "n_ctx": CONTEXT, "act_fn": "relu"}
    fewer, same = (
        HookedTransformer(HookedTransformerConfig(**options, d_vocab=20, d_vocab_out=n, seed=0, device="cpu"))
        for n in (19, 20)
    )
    weights = fewer.state_dict()
    weights["unembed.W_U"] = torch.nn.functional.pad(weights["unembed.W_U"], (0, 1))
    weights["unembed.b_U"] = torch.nn.functional.pad(weights["unembed.b_U"], (0, 1), value=-1e4)
    same.load_state_dict(weights)
    stats, expected = (measure(model, sae, ids[:4] % 20, cost=cost, force=True) for model in (fewer, same))
    np.testing.assert_allclose(stats.cost, expected.cost, rtol=1e-3, atol=1e-6 * expected.cost.max())
    assert stats.fingerprint is not None
    assert stats.fingerprint.tokens.max() == 18


def test_bf16_costs_are_close_to_fp32(teacher_dir: Path, bridge: Any, sae: Any, ids: Tensor) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    bf16_model = TransformerBridge.boot_transformers(str(teacher_dir), device="cpu", dtype=torch.bfloat16)
    fp32, bf16 = (measure(model, sae, ids, cost="fisher", n_samples=32).cost for model in (bridge, bf16_model))
    assert np.corrcoef(np.log(fp32 + 1e-6), np.log(bf16 + 1e-6))[0, 1] > 0.98
    assert bf16.sum() == pytest.approx(fp32.sum(), rel=0.1)


@pytest.mark.parametrize("cost", ["energy", "fisher", "ablation"])
def test_measuring_changes_neither_the_model_nor_the_sae(cost: Any, bridge: Any, sae: Any, ids: Tensor) -> None:
    bridge.train()
    frozen = list(bridge.parameters())[::2]
    for weight in frozen:
        weight.requires_grad_(False)
    frozen[0].grad = torch.ones_like(frozen[0])

    def state() -> list[Any]:
        weights = [(p.requires_grad, None if p.grad is None else p.grad.sum().item()) for p in bridge.parameters()]
        modules = [(m.training, len(m._forward_hooks), "forward" in vars(m)) for m in bridge.modules()]
        return [weights, modules, torch.is_grad_enabled()]

    weights = [*bridge.parameters(), *sae.parameters()]
    state_before, weights_before = state(), [p.detach().clone() for p in weights]
    measure(bridge, sae, ids[:4], cost=cost)
    with pytest.raises(InputError):
        measure(bridge, sae, ids[:4] * 10**6, cost=cost)
    assert state() == state_before
    assert all(torch.equal(p, before) for p, before in zip(weights, weights_before, strict=True))
    frozen[0].grad = None
    bridge.requires_grad_(True).eval()


def test_costs_are_measured_on_evenly_spread_sequences(bridge: Any, sae: Any, ids: Tensor) -> None:
    """Counts, codes and contexts are of all tokens; costs are those of one of three successive sequences."""
    chosen = one_of_each_group(torch.arange(12), 3)
    assert chosen.view(4, 3).sum(1).tolist() == [1] * 4
    options: dict[str, Any] = {"n_tokens": 12 * CONTEXT, "batch_size": 1}
    every = measure(bridge, sae, ids, **options)  # each batch of one sequence is a block
    assert every.n_cost_tokens == every.n_tokens
    stats = measure(bridge, sae, ids, n_cost_tokens=4 * CONTEXT, **options)
    assert stats.n_cost_tokens == int(counted_tokens(ids)[:12][chosen].sum())
    np.testing.assert_allclose(stats.sum_cost, every.blocks.cost[chosen.numpy()].sum(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats.cost, stats.sum_cost / stats.n_cost_tokens)
    assert (stats.blocks.n_cost_tokens > 0).tolist() == chosen.tolist()
    for batch_size in (4, 5, 32):  # batches with some, and of one size without any
        other = measure(bridge, sae, ids, **options | {"batch_size": batch_size}, n_cost_tokens=4 * CONTEXT)
        np.testing.assert_allclose(other.sum_cost, stats.sum_cost, rtol=1e-3, atol=1e-5)
        for name in ("firing_count", "sum_act", "sum_act_sq", "sampled_error_sq"):
            np.testing.assert_allclose(getattr(other, name), getattr(every, name), rtol=1e-5)
        np.testing.assert_array_equal(other.contexts.window, every.contexts.window)
        assert other.codes is not None
        assert other.codes.n_tokens == every.n_tokens


def test_sequences_with_costs_do_not_follow_a_period_of_the_text() -> None:
    """Of two interleaved datasets, both have about half of the chosen sequences."""
    numbers = torch.arange(4000)
    of_first = int((numbers[one_of_each_group(numbers, 4)] % 2 == 0).sum())
    assert abs(of_first - 500) < 80  # five standard errors
    assert one_of_each_group(numbers, 1).all()


def test_numbers_spread_at_random_do_not_follow_a_period() -> None:
    """Sequences of two interleaved data sets, of which one in 10 is chosen."""
    chosen = spread_at_random(64, 640)
    assert (chosen // 10).tolist() == list(range(64))
    assert 20 <= int((chosen % 2 == 0).sum()) <= 44
    assert spread_at_random(9, 4).tolist() == [0, 1, 2, 3]
    assert spread_at_random(3, 0).tolist() == spread_at_random(0, 7).tolist() == []


def test_exact_costs_of_some_sequences(bridge: Any, sae: Any, ids: Tensor) -> None:
    some = measure(bridge, sae, ids, cost="ablation", n_tokens=6 * CONTEXT, n_cost_tokens=3 * CONTEXT)
    expected = measure(bridge, sae, ids[:6][one_of_each_group(torch.arange(6), 2)], cost="ablation")
    np.testing.assert_allclose(some.cost, expected.cost, rtol=1e-3, atol=1e-7)
    assert some.n_cost_tokens == expected.n_tokens


def test_costs_of_a_short_text_are_measured_on_more_of_it(
    bridge: Any, sae: Any, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = measure(bridge, sae, ids[:9], n_tokens=10**6, n_cost_tokens=4 * CONTEXT)
    assert stats.n_cost_tokens == int(counted_tokens(ids)[:9][one_of_each_group(torch.arange(9), 2)].sum())
    monkeypatch.setattr("tl_distill_floor.measuring.measurement.MAX_KEPT_TOKENS", 6 * CONTEXT)
    monkeypatch.setattr("tl_distill_floor.measuring.token_stream.MAX_KEPT_TOKENS", 6 * CONTEXT)
    of_long_text = measure(bridge, sae, ids[:9], n_tokens=10**6, n_cost_tokens=2 * CONTEXT)
    assert of_long_text.n_cost_tokens == int(counted_tokens(ids)[:9][one_of_each_group(torch.arange(9), 3)].sum())
    energy = measure(bridge, sae, ids[:9], n_tokens=10**6, n_cost_tokens=1, cost="energy")
    assert energy.n_cost_tokens == energy.n_tokens


def test_resumed_measurement_with_some_costs_is_the_same(bridge: Any, sae: Any, ids: Tensor, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 2, "n_tokens": 12 * CONTEXT, "n_cost_tokens": 4 * CONTEXT}
    expected = measure(bridge, sae, ids, **options)

    def stop(done: int, _total: int) -> None:
        if done >= 6 * CONTEXT:
            raise KeyboardInterrupt

    options["checkpoint"] = tmp_path / "partial.safetensors"
    with pytest.raises(KeyboardInterrupt):
        measure(bridge, sae, ids, progress=stop, **options)
    resumed = measure(bridge, sae, ids, resume=True, **options)
    np.testing.assert_array_equal(resumed.sum_cost, expected.sum_cost)
    assert resumed.n_cost_tokens == expected.n_cost_tokens


def with_changed_logits(model: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a model with the same hook points and other logits."""

    class ChangedModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.cfg, self.hook_dict, self.tokenizer = model, model.cfg, model.hook_dict, model.tokenizer

        def forward(self, ids: Tensor) -> Tensor:
            return change(self.inner(ids))

    return ChangedModel()


def test_rejects_models_and_options_that_allow_no_cost(bridge: Any, sae: Any, ids: Tensor) -> None:
    with pytest.raises(InputError, match=r'no logits.*cost="energy"'):
        measure(with_changed_logits(bridge, lambda logits: logits[..., :8]), sae, ids, cost="fisher")
    with pytest.raises(InputError, match=r'do not depend on blocks.1.hook_resid_post.*cost="energy"'):
        measure(with_changed_logits(bridge, torch.Tensor.detach), sae, ids, cost="fisher")
    with pytest.raises(InputError, match="one of fisher, energy, ablation"), without_type_checks():
        measure(bridge, sae, ids, cost="worth")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="n_samples must be at least 1"):
        measure(bridge, sae, ids, n_samples=0)


@pytest.mark.parametrize("cost", ["fisher", "ablation"])
def test_a_hook_point_with_several_activations_is_refused(cost: Any, bridge: Any, sae: Any, ids: Tensor) -> None:
    """The second activation is that of other tokens, as in a model that runs a layer several times."""
    model = with_changed_logits(bridge, lambda logits: bridge(logits.argmax(-1)))
    with pytest.raises(InputError, match=r'reaches blocks.1.hook_resid_post several times.*cost="energy"'):
        measure(model, sae, ids[:4], cost=cost)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_teacher_whose_logits_are_not_finite_is_named(
    value: float, bridge: Any, teacher_dir: Path, sae: Any, ids: Tensor
) -> None:
    """Its activations at the hook point are finite, so costs in squared error can be measured."""
    broken = load_teacher(teacher_dir).model
    with torch.no_grad():
        broken.original_model.lm_head.weight[5] = value
    for cost in ("fisher", "ablation"):
        with pytest.raises(InputError, match="the teacher's logits hold NaN or Inf"):
            measure(broken, sae, ids[:4], cost=cost)
    with pytest.raises(InputError, match="the teacher's logits hold NaN or Inf"):
        head_floor(broken, ids)
    np.testing.assert_array_equal(
        measure(broken, sae, ids, cost="energy").cost, measure(bridge, sae, ids, cost="energy").cost
    )
    job, stats = prepare_job(broken, [sae], ids), measure(bridge, sae, ids)
    order, ranks = rank_by_cost(stats.cost, stats.alive()), np.array([0, 8])
    with pytest.raises(InputError, match="the teacher's logits hold NaN or Inf"):
        measure_tail_loss(job, order, ranks, np.array([1.0, 0.5]), np.arange(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"n_tokens": 0}, "n_tokens must be at least 1, got 0"), ({"n_codes": -1}, "n_codes must be at least 0, got -1")],
)
def test_config_rejects_numbers_out_of_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MeasureConfig(**options)  # type: ignore[arg-type]


def test_config_keeps_codes_of_a_share_of_the_text() -> None:
    assert MeasureConfig(n_tokens=800, n_codes=200).share_of_codes == 0.25
    assert MeasureConfig(n_tokens=100, n_codes=200).share_of_codes == 1.0


@pytest.mark.parametrize("hook_name", ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_post", "blocks.2.hook_mlp_out"])
@pytest.mark.parametrize("model_class", ["bridge", "HookedTransformer"])
def test_rerun_matches_full_forward_pass(
    model_class: str, hook_name: str, bridge: Any, teacher_dir: Path, ids: Tensor
) -> None:
    model = bridge if model_class == "bridge" else load_as(model_class, teacher_dir)
    with rerunner(model, hook_name) as teacher:
        original = teacher.run(ids[:5])
        assert torch.equal(teacher.rerun(original), teacher.logits)
        replacement = original + torch.randn(original.shape, generator=torch.Generator().manual_seed(0))
        logits, rows = teacher.rerun(replacement), torch.tensor([3, 3, 0])
        torch.testing.assert_close(teacher.rerun(replacement[rows], rows), logits[rows])
        every_third = slice(1, None, 3)
        at_some_positions = teacher.rerun(replacement[rows], rows, every_third)
        torch.testing.assert_close(at_some_positions, logits[rows, every_third])
        torch.testing.assert_close(teacher.rerun(replacement), logits)
    handle = get_hook_point(model, hook_name).register_forward_hook(lambda *_: replacement)
    with torch.no_grad():
        torch.testing.assert_close(model(ids[:5]), logits)
    handle.remove()


@pytest.mark.parametrize("model_class", ["bridge", "HookedTransformer"])
def test_rerun_from_the_output_of_a_block_does_not_run_the_block(
    model_class: str, bridge: Any, teacher_dir: Path, ids: Tensor
) -> None:
    model = bridge if model_class == "bridge" else load_as(model_class, teacher_dir)
    runs: list[int] = []
    handles = [
        model.blocks[layer].mlp.register_forward_hook(lambda *_, layer=layer: runs.append(layer))
        for layer in range(model.cfg.n_layers)
    ]
    with rerunner(model, HOOK) as teacher:
        original = teacher.run(ids[:5])
        assert runs == list(range(model.cfg.n_layers))
        runs.clear()
        teacher.rerun(original + 1)
        assert runs == list(range(2, model.cfg.n_layers))
    for handle in handles:
        handle.remove()


def test_forward_kl_matches_hand_computation() -> None:
    # p = (3/4, 1/4), q = (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2) nats.
    p, q = torch.tensor([[[3.0, 1.0]]]).log(), torch.tensor([[[1.0, 1.0]]]).log()
    assert float(forward_kl_in_chunks(p, q)) == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), rel=1e-6)
    assert float(forward_kl_in_chunks(p, p)) == 0


def test_forward_kl_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = forward_kl_in_chunks(teacher, student)
    monkeypatch.setattr("tl_distill_floor.measuring.kl.LOGITS_PER_CHUNK", 4 * 7)
    torch.testing.assert_close(forward_kl_in_chunks(teacher, student), expected)


@pytest.mark.parametrize("n_outcomes", [3, 256, 257, 1000])
def test_sample_outcomes_inverts_cumulative_distribution(n_outcomes: int) -> None:
    random = torch.Generator().manual_seed(n_outcomes)
    p = torch.randn(400, n_outcomes, generator=random).mul(3).softmax(-1)
    p[:, 1] = 0.0
    uniform = torch.rand(400, generator=random)
    uniform[:2] = torch.tensor([0.0, 1 - 2**-24])
    sampled, rows = sample_outcomes(p, uniform).numpy(), np.arange(400)
    cumulative = p.double().cumsum(1).numpy()
    target = uniform.double().numpy() * cumulative[:, -1]
    assert (sampled != 1).all()
    including, excluding = cumulative[rows, sampled], np.where(sampled > 0, cumulative[rows, sampled - 1], 0.0)
    assert (target < including + 1e-6).all()
    assert (target >= excluding - 1e-6).all()


def test_row_dot_products_match_hand_computation() -> None:
    left, right = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    products = row_dot_products(left, right, torch.tensor([0, 0, 2]), torch.tensor([0, 1, 1]))
    assert products.tolist() == [1.0, 3.0, 11.0]
    assert row_dot_products(left, right, *torch.zeros(2, 0, dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize("cost", ["energy", "fisher"])
def test_batch_size_changes_only_rounding(bridge: Any, sae: Any, ids: Tensor, cost: Any) -> None:
    first, *others = [measure(bridge, sae, ids, cost=cost, batch_size=size) for size in (1, 2, 5)]
    for other in others:
        assert other.firing_count.tolist() == first.firing_count.tolist()
        np.testing.assert_allclose(other.sum_act_sq, first.sum_act_sq, rtol=1e-5)
        assert (other.n_tokens, other.sampled_tokens) == (first.n_tokens, first.sampled_tokens)
        assert other.fvu == pytest.approx(first.fvu, rel=1e-5)
        assert other.cost == pytest.approx(first.cost, rel=1e-3, abs=1e-6 * first.cost.max())
