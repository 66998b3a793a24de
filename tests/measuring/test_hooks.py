"""Hook points by either of their names, and reading activations there."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.measurements import load_as
from tests.helpers.models import CONTEXT, HOOK, VOCABULARY, save_family
from tl_distill_floor import InputError, load_teacher
from tl_distill_floor.measuring.hooks import activation_reader, get_hook_point, resolve_hook_name
from tl_distill_floor.measuring.replacement import differentiable_forward
from tl_distill_floor.measuring.rerun import rerunner


def test_finds_a_hook_point_by_either_name(bridge: Any) -> None:
    assert get_hook_point(bridge, "blocks.1.hook_resid_post") is get_hook_point(bridge, "blocks.1.hook_out")
    assert get_hook_point(bridge, "blocks.1.hook_mlp_out") is get_hook_point(bridge, "blocks.1.mlp.hook_out")
    assert resolve_hook_name(bridge, "blocks.1.hook_out") == "blocks.1.hook_out"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.7.hook_resid_post", "layers 0 to 2, got layer 7"),
        ("blocks.1.hook_resid_mid", r"no hook point 'blocks.1.hook_resid_mid'; .* such as blocks.1.hook_resid_pre, "),
        (
            "nonsense",
            r"no hook point 'nonsense'; .* in model.hook_dict, such as blocks.0.hook_out, blocks.1.hook_out, ",
        ),
    ],
)
def test_rejects_an_unknown_hook_point(bridge: Any, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        get_hook_point(bridge, name)


def test_forward_pass_ends_at_the_hook_point(bridge: Any, ids: torch.Tensor) -> None:
    """Later layers do not run, and the activation equals that of a full forward pass."""
    later_calls = []
    handle = get_hook_point(bridge, "blocks.2.hook_resid_post").register_forward_hook(lambda *_: later_calls.append(1))
    try:
        with activation_reader(bridge, ["blocks.1.hook_resid_post"]) as read:
            activation = read(ids)[0]
        assert not later_calls
    finally:
        handle.remove()
    _, cache = bridge.run_with_cache(ids)
    torch.testing.assert_close(activation, cache["blocks.1.hook_resid_post"])


def load_granite(directory: Path, tokenizer: Any) -> Any:
    """Load a tiny Granite, whose hook points of what a block adds are connected only while they hold a hook."""
    options: dict[str, Any] = {"num_key_value_heads": 2, "residual_multiplier": 0.22}
    return load_teacher(save_family(directory, tokenizer, "Granite", **options)).model


def load_opt(directory: Path, tokenizer: Any) -> Any:
    """Load a tiny OPT, whose MLP runs on flattened tokens."""
    return load_teacher(
        save_family(directory, tokenizer, "OPT", ffn_dim=64, word_embed_proj_dim=32, init_std=0.2)
    ).model


@pytest.mark.parametrize("load", [load_granite, load_opt])
def test_reads_and_replaces_what_a_block_adds(load: Any, tmp_path: Path, tokenizer: Any, ids: torch.Tensor) -> None:
    """Compare with the difference of the residual stream, and with the logits after it is replaced there."""
    model, tokens = load(tmp_path, tokenizer), ids[:3]
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
    names = ["blocks.1.hook_mlp_out", "blocks.1.hook_attn_out"]
    after, before = cache["blocks.1.hook_out"], cache["blocks.1.hook_in"]
    with activation_reader(model, names) as read:
        mlp, attention = read(tokens)
    assert mlp.shape == attention.shape == (*tokens.shape, 32)
    torch.testing.assert_close(before + attention + mlp, after, atol=1e-5, rtol=1e-4)

    with torch.no_grad():
        expected = model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_out", lambda _x, hook: after - mlp)])
    with rerunner(model, names[0]) as teacher:
        torch.testing.assert_close(teacher.run(tokens), mlp)
        torch.testing.assert_close(teacher.rerun(torch.zeros_like(mlp)), expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(model(tokens), logits)


@pytest.mark.parametrize("load", [load_granite, load_opt])
def test_gradients_reach_what_a_block_adds(load: Any, tmp_path: Path, tokenizer: Any, ids: torch.Tensor) -> None:
    """In the last layer, the gradient with respect to what the MLP adds is that with respect to the residual stream."""
    model, tokens = load(tmp_path, tokenizer), ids[:3]
    gradients = []
    for name in ("blocks.1.hook_mlp_out", "blocks.1.hook_out"):
        with differentiable_forward(model, [name]) as run:
            output = run(tokens)
            (gradient,) = torch.autograd.grad(output.logits.log_softmax(-1)[..., 5].sum(), output.activations)
        gradients.append(gradient.reshape(*tokens.shape, 32))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-3)
    assert gradients[0].abs().sum() > 0


def test_gradients_of_a_point_that_is_reached_three_times_are_summed(teacher_dir: Path, ids: torch.Tensor) -> None:
    """A HookedTransformer normalises the input of a block for queries, keys and values. Compare with a difference."""
    model, name, step = load_as("HookedTransformer", teacher_dir).double(), "blocks.1.ln1.hook_normalized", 1e-4
    model.cfg.dtype = torch.float64
    with differentiable_forward(model, [name]) as run:
        output = run(ids[:3])
        (gradient,) = torch.autograd.grad(output.logits.log_softmax(-1)[..., 5].sum(), output.activations)
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with rerunner(model, name) as teacher:
        activation = teacher.run(ids[:3])
        up, down = (teacher.rerun(activation + sign * step * direction) for sign in (1, -1))
    difference = float((up.double().log_softmax(-1) - down.double().log_softmax(-1))[..., 5].sum()) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(difference, rel=1e-5)


def load_gpt2(directory: Path, tokenizer: Any) -> Any:
    """Load a tiny GPT-2."""
    return load_teacher(save_family(directory, tokenizer, "GPT2", head="LMHeadModel")).model


def load_hooked_transformer(_directory: Path, _tokenizer: Any) -> Any:
    """Create a tiny HookedTransformer with random weights."""
    pytest.importorskip("transformer_lens.HookedTransformer")
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    options: dict[str, Any] = {"d_model": 32, "d_head": 8, "n_layers": 2, "n_ctx": CONTEXT, "act_fn": "gelu"}
    return HookedTransformer(HookedTransformerConfig(**options, d_vocab=VOCABULARY, seed=0, device="cpu"))


@pytest.mark.parametrize("load", [load_gpt2, load_opt, load_granite, load_hooked_transformer])
def test_a_change_in_the_middle_of_a_block_stays_in_the_residual_stream(
    load: Any, tmp_path: Path, tokenizer: Any, ids: torch.Tensor
) -> None:
    """It is the same as a change of what the attention adds."""
    model, tokens = load(tmp_path, tokenizer), ids[:3]
    change = torch.randn(*tokens.shape, 32, generator=torch.Generator().manual_seed(0))
    names = ["blocks.0.hook_resid_mid", "blocks.0.hook_attn_out"]
    with torch.no_grad():
        logits = model(tokens)
        expected = model.run_with_hooks(tokens, fwd_hooks=[(names[1], lambda x, hook: x + change.view_as(x))])
    with rerunner(model, names[0]) as teacher:
        middle = teacher.run(tokens)
        torch.testing.assert_close(teacher.rerun(middle), logits)
        for rows in ([0, 1, 2], [2, 0]):
            changed = (middle.view(change.shape) + change)[rows]
            torch.testing.assert_close(teacher.rerun(changed, torch.tensor(rows)), expected[rows], atol=1e-4, rtol=1e-3)
    gradients = []
    for hook_names in (names[:1], names[1:], ["blocks.0.hook_resid_post", "blocks.0.hook_resid_pre", names[0]]):
        with differentiable_forward(model, hook_names) as run:
            output = run(tokens)
            torch.testing.assert_close(output.logits, logits)
            score = output.logits.log_softmax(-1)[..., 5].sum()
            gradients.append(torch.autograd.grad(score, output.activations)[-1].view(change.shape))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(gradients[2], gradients[1], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(model(tokens), logits)


def test_losses_are_refused_where_it_is_not_known_how_a_block_carries_a_change(
    tmp_path: Path, tokenizer: Any, ids: torch.Tensor
) -> None:
    """GPT-1 normalises the residual stream after the MLP."""
    model = load_teacher(save_family(tmp_path, tokenizer, "OpenAIGPT", head="LMHeadModel")).model
    with pytest.raises(InputError, match=r"does not reach"), rerunner(model, "blocks.0.hook_resid_mid"):
        pass


def test_leaves_the_hooks_of_others_after_an_exception(bridge: Any, ids: torch.Tensor) -> None:
    """A hook that was there before is still there and called, also if reading fails."""
    calls: list[str] = []
    point = get_hook_point(bridge, HOOK)
    point.add_hook(lambda _output, hook: calls.append("called"))  # type: ignore[operator]
    before = (list(point.fwd_hooks), list(point.bwd_hooks), len(point._forward_hooks))  # type: ignore[arg-type]
    try:
        with contextlib.suppress(KeyError), differentiable_forward(bridge, [HOOK]) as run:
            run(ids[:2])
            raise KeyError
        assert (list(point.fwd_hooks), list(point.bwd_hooks), len(point._forward_hooks)) == before  # type: ignore[arg-type]
        assert calls == ["called"]
    finally:
        point.remove_hooks()  # type: ignore[operator]


def test_a_failing_forward_pass_is_one_sentence(bridge: Any, ids: torch.Tensor) -> None:
    def fail(*_inputs: object) -> None:
        raise RuntimeError("first line\nsecond line")

    handle = bridge.blocks[0].register_forward_pre_hook(fail)
    sentence = r"the teacher \(GPTNeoXForCausalLM as TransformerBridge\) fails with RuntimeError: first line; give"
    try:
        for open_reader in (activation_reader, differentiable_forward):
            with open_reader(bridge, [HOOK]) as read, pytest.raises(InputError, match=sentence):
                read(ids[:2])
        with rerunner(bridge, HOOK) as teacher, pytest.raises(InputError, match=sentence):
            teacher.run(ids[:2])
    finally:
        handle.remove()
