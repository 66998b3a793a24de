"""The hook point of a module's output, compared with a forward hook of torch on the module itself."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.models import save_family
from tl_distill_floor import InputError, load_teacher
from tl_distill_floor.measuring.hooks import activation_reader
from tl_distill_floor.measuring.module_outputs import hook_point_of_module

IDS = torch.tensor([[3, 5, 8, 13, 21, 34]])


@pytest.mark.parametrize(
    ("family", "module", "expected", "hook_name"),
    [
        ("Llama", "layers.1.mlp", "blocks.1.hook_mlp_out", "blocks.1.hook_mlp_out"),
        ("Llama", "model.layers.1", "blocks.1.hook_resid_post", "blocks.1.hook_resid_post"),
        ("Llama", "layers.1.self_attn.o_proj.input", "blocks.1.attn.hook_z", "blocks.1.attn.hook_z"),
        ("Gemma2", "layers.1.mlp", "blocks.1.hook_mlp_out", "blocks.1.mlp.hook_out"),
        ("Gemma2", "layers.1.self_attn", "blocks.1.hook_attn_out", "blocks.1.attn.hook_out"),
        ("Gemma2", "layers.1.post_feedforward_layernorm.output", "blocks.1.hook_mlp_out", "blocks.1.hook_mlp_out"),
        ("Bloom", "h.1.mlp", "blocks.1.hook_mlp_out", "blocks.1.mlp.hook_out"),
    ],
)
def test_the_hook_point_holds_what_the_module_returns(
    family: str, module: str, expected: str, hook_name: str, tokenizer: Any, tmp_path: Path
) -> None:
    model = load_teacher(str(save_family(tmp_path, tokenizer, family))).model
    assert hook_point_of_module(model, expected, module) == hook_name
    is_input = module.endswith(".input")
    path = module.removesuffix(".output").removesuffix(".input")
    values: list[Any] = []
    plain = dict(load_plain(tmp_path).named_modules())
    layer = next(part for name, part in plain.items() if name.endswith(path))
    if is_input:
        layer.register_forward_pre_hook(lambda _module, inputs: values.append(inputs[0]))
    else:
        layer.register_forward_hook(lambda _module, _inputs, output: values.append(output))
    with torch.no_grad():
        plain[""](IDS)
    value = values[0][0] if isinstance(values[0], tuple) else values[0]
    with activation_reader(model, [hook_name]) as read:
        (activation,) = read(IDS)
    torch.testing.assert_close(activation.reshape(value.shape), value, rtol=1e-4, atol=1e-4)


def load_plain(directory: Path) -> torch.nn.Module:
    """Load a model with transformers alone."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory).eval()  # type: ignore[no-any-return]


def test_a_module_under_another_name_keeps_the_expected_hook_point(bridge: Any) -> None:
    assert hook_point_of_module(bridge, "blocks.1.hook_mlp_out", "h.1.feed_forward") == "blocks.1.hook_mlp_out"


def test_a_module_whose_output_no_hook_point_holds_is_refused(bridge: Any) -> None:
    with pytest.raises(
        InputError, match=r"reads layers\.1\.input_layernorm, and no hook point of a GPTNeoX.* holds it"
    ):
        hook_point_of_module(bridge, "blocks.0.hook_mlp_out", "layers.1.input_layernorm")


def test_a_hooked_transformer_holds_outputs_after_their_normalisation() -> None:
    """As Gemma Scope 2 names them, not those of the modules before it."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes = {"n_layers": 2, "d_model": 8, "n_ctx": 4, "d_head": 4, "d_mlp": 16, "d_vocab": 10}
    config = HookedTransformerConfig(
        **sizes, act_fn="gelu", normalization_type="RMS", use_normalization_before_and_after=True
    )
    model = HookedTransformer(config)
    norm, hook_name = "model.layers.1.post_feedforward_layernorm.output", "blocks.1.hook_mlp_out"
    assert hook_point_of_module(model, hook_name, norm) == hook_name
    values: list[torch.Tensor] = []
    model.blocks[1].ln2_post.register_forward_hook(lambda _module, _inputs, output: values.append(output))
    with activation_reader(model, [hook_name]) as read:
        (activation,) = read(torch.tensor([[1, 2, 3]]))
    assert torch.equal(activation, values[0])
    with pytest.raises(
        InputError, match=r"reads layers\.1\.mlp, whose output has no hook point in a HookedTransformer"
    ):
        hook_point_of_module(model, hook_name, "layers.1.mlp")
