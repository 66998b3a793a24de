"""Test how activations are given to an SAE."""

import copy
from typing import Any

import torch

from tl_distill_floor.measuring.encoding import as_sae_input, encode_tokens


def test_heads_are_split_only_while_the_sae_concatenates_them(sae: Any) -> None:
    """`reshape_activations` says what an SAE can do, `hook_z_reshaping_mode` what it does now."""
    config = copy.deepcopy(sae.cfg)
    config.metadata.hook_name, config.reshape_activations = "blocks.1.attn.hook_z", "hook_z"
    sae_of_heads = type(sae)(config)
    sae_of_heads.load_state_dict(sae.state_dict())
    acts = torch.randn(7, 4, sae.cfg.d_in // 4, generator=torch.Generator().manual_seed(0))
    codes = torch.relu((acts.flatten(1) - sae.b_dec) @ sae.W_enc + sae.b_enc)
    assert as_sae_input(sae_of_heads, acts, 4).shape == acts.shape
    torch.testing.assert_close(encode_tokens(sae_of_heads, acts, 4), codes)
    sae_of_heads.turn_off_forward_pass_hook_z_reshaping()
    assert as_sae_input(sae_of_heads, acts, 4).shape == (7, sae.cfg.d_in)
    torch.testing.assert_close(encode_tokens(sae_of_heads, acts, 4), codes)
