"""Hook points by either of their names, and reading activations there."""

from typing import Any

import pytest
import torch

from tl_distill_floor import InputError
from tl_distill_floor.measuring.hooks import activation_reader, get_hook_point, resolve_hook_name


def test_finds_a_hook_point_by_either_name(bridge: Any) -> None:
    assert get_hook_point(bridge, "blocks.1.hook_resid_post") is get_hook_point(bridge, "blocks.1.hook_out")
    assert get_hook_point(bridge, "blocks.1.hook_mlp_out") is get_hook_point(bridge, "blocks.1.mlp.hook_out")
    assert resolve_hook_name(bridge, "blocks.1.hook_out") == "blocks.1.hook_out"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.7.hook_resid_post", "layers 0 to 2, got layer 7"),
        ("blocks.1.hook_nonsense", "no hook point 'blocks.1.hook_nonsense'; it has blocks.0"),
        ("nonsense", "no hook point 'nonsense'"),
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
