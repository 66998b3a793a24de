"""Costs in nats against Jacobians, closed forms and plain forward passes with a hook; models stay as they were."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.forward_passes import activation_of, logits_with
from tests.helpers.measurements import hooked
from tests.helpers.models import CONTEXT, FEATURES, WIDTH
from tl_distill_floor import InputError, measure
from tl_distill_floor.measuring.costs import dots, drawn_from
from tl_distill_floor.measuring.hooks import hook_point
from tl_distill_floor.measuring.rerun import forward_kl, rerunner

HOOK = "blocks.1.hook_resid_post"


def removed(sae: Any, activation: Tensor, counts: Tensor, feature: int) -> Tensor:
    """What the feature adds to the activation of the tokens that count, all else 0."""
    code = sae.encode(activation)[..., feature] * counts
    return code[..., None] * sae.W_dec[feature].detach()


@pytest.fixture(scope="module")
def exact(bridge: Any, sae: Any, ids: Tensor) -> np.ndarray:
    """½ Σ_t Var_p(slope of the logits along the removal), by central differences: the Fisher matrix, not sampled."""
    counts = (ids != 0) & (torch.arange(CONTEXT) > 0)
    activation, size = activation_of(bridge, ids), 0.02
    p = logits_with(bridge, ids, activation).softmax(-1)
    found = np.zeros(FEATURES)
    for feature in range(FEATURES):
        change = removed(sae, activation, counts, feature)
        up, down = (logits_with(bridge, ids, activation + sign * size * change) for sign in (1, -1))
        slope = (up - down).double() / (2 * size)
        variance = (p * slope.square()).sum(-1) - (p * slope).sum(-1).square()
        found[feature] = 0.5 * variance.sum() / counts.sum()
    return found


def test_fisher_is_the_exact_matrix_within_its_sampling_error(
    bridge: Any, sae: Any, ids: Tensor, exact: np.ndarray
) -> None:
    """The error falls as 1 / √draws: 64 times the draws, an eighth of it."""

    def error(draws: int) -> float:
        found = measure(bridge, sae, ids, cost="fisher", n_samples=draws).cost
        worth = exact > 1e-3 * exact.max()
        return float(np.sqrt(np.mean((found[worth] / exact[worth] - 1) ** 2)))

    few, many = error(4), error(256)
    assert many < 0.05
    assert 4 < few / many < 16


def test_ablation_is_the_kl_of_a_plain_forward_pass(bridge: Any, sae: Any, ids: Tensor) -> None:
    ids = ids[:6]
    counts = (ids != 0) & (torch.arange(CONTEXT) > 0)
    activation = activation_of(bridge, ids)
    stats = measure(bridge, sae, ids, cost="ablation", batch_size=4)
    p = bridge(ids).detach().double().log_softmax(-1)
    for feature in np.argsort(-stats.cost)[[0, 3, 20, 50]]:
        q = logits_with(bridge, ids, activation - removed(sae, activation, counts, int(feature))).double()
        kl = (p.exp() * (p - q.log_softmax(-1))).sum() / counts.sum()
        assert stats.cost[feature] == pytest.approx(float(kl), rel=1e-3, abs=1e-7)
    assert stats.cost_unit == "nats"
    never = stats.firing_count == 0
    assert (stats.cost[never] == 0).all()


def test_a_linear_model_has_a_closed_form(sae: Any, ids: Tensor) -> None:
    """Nothing between the activation and the logits but the unembedding: cost = ½ Σ_t a² Var_p(w · W_U) / tokens."""
    pytest.importorskip("transformer_lens.HookedTransformer")
    import transformer_lens

    config = transformer_lens.HookedTransformerConfig(
        n_layers=2, d_model=WIDTH, n_ctx=64, d_head=8, n_heads=3, attn_only=True, d_vocab=300, device="cpu", seed=0,
        normalization_type=None,
    )  # fmt: skip
    model = transformer_lens.HookedTransformer(config)
    ids = ids.clamp(min=1)
    activation, counts = activation_of(model, ids), (torch.arange(CONTEXT) > 0).expand(ids.shape)
    codes = sae.encode(activation).detach()[counts].double()
    p = (activation @ model.W_U + model.b_U).softmax(-1)[counts].detach().double()
    moved = (sae.W_dec @ model.W_U).detach().double()
    variance = p @ moved.square().T - (p @ moved.T).square()
    expected = (0.5 * (codes.square() * variance).sum(0) / counts.sum()).numpy()
    found = measure(model, sae, ids, cost="fisher", n_samples=200)
    worth = expected > 1e-3 * expected.max()
    np.testing.assert_allclose(found.cost[worth], expected[worth], rtol=0.2)
    assert np.median(np.abs(found.cost[worth] / expected[worth] - 1)) < 0.03


@pytest.mark.parametrize("kind", ["HookedTransformer", "HookedSAETransformer", "SAETransformerBridge"])
def test_every_class_of_model_has_the_same_fisher_costs(
    kind: str, bridge: Any, teacher_dir: Path, sae: Any, ids: Tensor
) -> None:
    ids = ids.clone()
    ids[:, 1:][ids[:, 1:] == 0] = 1
    expected = measure(bridge, sae, ids, cost="fisher")
    found = measure(hooked(kind, teacher_dir), sae, ids, hook_name="blocks.1.hook_out", cost="fisher")
    # Rounding turns a drawing into its neighbour now and then, which a few features show.
    change = np.abs(found.cost / expected.cost - 1)
    assert np.median(change) < 0.01
    assert change.max() < 0.3
    of_three = {"hook_name": HOOK, "cost": "ablation"}
    exact, again = (measure(m, sae, ids[:3], **of_three) for m in (bridge, hooked(kind, teacher_dir)))
    np.testing.assert_allclose(again.cost, exact.cost, rtol=1e-2, atol=1e-5 * exact.cost.max())


def test_bf16_has_nearly_the_same_costs(teacher_dir: Path, bridge: Any, sae: Any, ids: Tensor) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    half = TransformerBridge.boot_transformers(str(teacher_dir), device="cpu", dtype=torch.bfloat16)
    whole, halved = (measure(model, sae, ids, cost="fisher", n_samples=32).cost for model in (bridge, half))
    assert np.corrcoef(np.log(whole + 1e-6), np.log(halved + 1e-6))[0, 1] > 0.98
    assert halved.sum() == pytest.approx(whole.sum(), rel=0.1)


@pytest.mark.parametrize("cost", ["energy", "fisher", "ablation"])
def test_the_users_model_is_left_as_it_was(cost: str, bridge: Any, sae: Any, ids: Tensor) -> None:
    bridge.train()
    some = list(bridge.parameters())[::2]
    for weight in some:
        weight.requires_grad_(False)
    some[0].grad = torch.ones_like(some[0])

    def state() -> list[Any]:
        weights = [(p.requires_grad, None if p.grad is None else p.grad.sum().item()) for p in bridge.parameters()]
        modules = [(m.training, len(m._forward_hooks), "forward" in vars(m)) for m in bridge.modules()]
        return [weights, modules, torch.is_grad_enabled()]

    before, values = state(), [p.detach().clone() for p in bridge.parameters()]
    measure(bridge, sae, ids[:4], cost=cost)
    with pytest.raises(InputError):
        measure(bridge, sae, ids[:4] * 10**6, cost=cost)
    assert state() == before
    assert all(torch.equal(p, value) for p, value in zip(bridge.parameters(), values, strict=True))
    some[0].grad = None
    bridge.requires_grad_(True).eval()


def test_any_split_and_a_resumed_run_draw_the_same_outputs(bridge: Any, sae: Any, ids: Tensor, tmp_path: Path) -> None:
    whole = measure(bridge, sae, ids, cost="fisher", batch_size=8)
    part = {"cost": "fisher", "batch_size": 8, "n_codes": 10**6, "checkpoint": tmp_path / "partial.safetensors"}
    measure(bridge, sae, ids, n_tokens=8 * CONTEXT, **part)
    resumed = measure(bridge, sae, ids, resume=True, **part)
    np.testing.assert_array_equal(resumed.sum_cost, whole.sum_cost)
    np.testing.assert_array_equal(resumed.contexts.window, whole.contexts.window)
    assert whole.contexts.n_features == FEATURES


def made_of(model: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same hook points on a model that puts out something else."""

    class Changed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.cfg, self.hook_dict, self.tokenizer = model, model.cfg, model.hook_dict, model.tokenizer

        def forward(self, ids: Tensor) -> Tensor:
            return change(self.inner(ids))

    return Changed()


def test_what_has_no_logits_or_nothing_behind_it_is_refused(bridge: Any, sae: Any, ids: Tensor) -> None:
    with pytest.raises(InputError, match=r"no logits.*--cost energy"):
        measure(made_of(bridge, lambda logits: logits[..., :8]), sae, ids, cost="fisher")
    with pytest.raises(InputError, match=r"do not depend on blocks.1.hook_resid_post.*--cost energy"):
        measure(made_of(bridge, torch.Tensor.detach), sae, ids, cost="fisher")
    with pytest.raises(InputError, match="one of energy, fisher, ablation"):
        measure(bridge, sae, ids, cost="worth")
    with pytest.raises(InputError, match="drawings must be at least 1"):
        measure(bridge, sae, ids, n_samples=0)


@pytest.mark.parametrize("hook_name", ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_post", "blocks.2.hook_mlp_out"])
@pytest.mark.parametrize("kind", ["bridge", "HookedTransformer"])
def test_a_teacher_run_again_is_a_whole_forward_pass(
    kind: str, hook_name: str, bridge: Any, teacher_dir: Path, ids: Tensor
) -> None:
    model = bridge if kind == "bridge" else hooked(kind, teacher_dir)
    with rerunner(model, hook_name) as teacher:
        before = teacher.run(ids[:5])
        assert torch.equal(teacher.rerun(before), teacher.logits)
        other = before + torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
        again, rows = teacher.rerun(other), torch.tensor([3, 3, 0])
        torch.testing.assert_close(teacher.rerun(other[rows], rows), again[rows])
    handle = hook_point(model, hook_name).register_forward_hook(lambda *_: other)
    with torch.no_grad():
        torch.testing.assert_close(model(ids[:5]), again)
    handle.remove()


def test_forward_kl_by_hand() -> None:
    # p = (3/4, 1/4), q = (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2) nats.
    p, q = torch.tensor([[[3.0, 1.0]]]).log(), torch.tensor([[[1.0, 1.0]]]).log()
    assert float(forward_kl(p, q)) == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), rel=1e-6)
    assert float(forward_kl(p, p)) == 0


@pytest.mark.parametrize("n_outcomes", [3, 256, 257, 1000])
def test_outcomes_are_drawn_where_the_cumulated_probability_says(n_outcomes: int) -> None:
    random = torch.Generator().manual_seed(n_outcomes)
    p = torch.randn(400, n_outcomes, generator=random).mul(3).softmax(-1)
    p[:, 1] = 0.0
    uniform = torch.rand(400, generator=random)
    uniform[:2] = torch.tensor([0.0, 1 - 2**-24])
    drawn = drawn_from(p, uniform).numpy()
    reached = p.double().cumsum(1).numpy()
    aim = uniform.double().numpy() * reached[:, -1]
    assert (drawn != 1).all()
    beyond, before = reached[np.arange(400), drawn], np.where(drawn > 0, reached[np.arange(400), drawn - 1], 0.0)
    assert (aim < beyond + 1e-6).all()
    assert (aim >= before - 1e-6).all()


def test_dots_by_hand() -> None:
    left, right = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    found = dots(left, right, torch.tensor([0, 0, 2]), torch.tensor([0, 1, 1]))
    assert found.tolist() == [1.0, 3.0, 11.0]
    assert dots(left, right, *torch.zeros(2, 0, dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize("cost", ["energy", "fisher"])
def test_the_size_of_a_batch_changes_nothing_but_rounding(bridge: Any, sae: Any, ids: Tensor, cost: str) -> None:
    found = [measure(bridge, sae, ids, cost=cost, batch_size=size) for size in (1, 2, 5)]
    for one in found[1:]:
        assert one.firing_count.tolist() == found[0].firing_count.tolist()
        assert one.sampled_tokens == found[0].sampled_tokens
        assert one.fvu == pytest.approx(found[0].fvu, rel=1e-5)
        assert one.cost == pytest.approx(found[0].cost, rel=1e-3, abs=1e-6 * found[0].cost.max())
