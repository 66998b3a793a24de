"""Forecasts: the views of kept features, and the hidden state of bottleneck students."""

import copy
import dataclasses
from typing import Any

import numpy as np
import torch

from tests.helpers.records import stats_of
from tl_distill_floor.predicting.bottleneck_task import BottleneckTask
from tl_distill_floor.predicting.progress import StepCounter
from tl_distill_floor.predicting.simulation import train_bottlenecks
from tl_distill_floor.probing.forecasts import forecast_views
from tl_distill_floor.results.block_sums import BlockSums
from tl_distill_floor.results.codes import Codes


def test_views_match_the_sae_on_masked_codes_and_the_bottleneck(sae: Any) -> None:
    activation = torch.randn(7, sae.cfg.d_in, generator=torch.Generator().manual_seed(5))
    kept = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    kept[[3, 40, 41]] = True
    views = forecast_views(sae, sae.cfg.d_in, 3, {8: kept}, {4: lambda codes: codes[:, :4] * 2})
    arrays = views.after_pooling(views.per_token(activation))
    codes = sae.encode(activation)
    masked = codes.clone()
    masked[:, ~kept] = 0.0
    torch.testing.assert_close(arrays["kept 8"] + sae.b_dec, sae.decode(masked))
    torch.testing.assert_close(arrays["bottleneck 4"], codes[:, :4] * 2)
    torch.testing.assert_close(arrays["activation"], activation, rtol=0, atol=0)


def test_sae_that_concatenates_heads_gives_the_same_views(sae: Any) -> None:
    reconstructed = []
    activation = torch.randn(6, sae.cfg.d_in, generator=torch.Generator().manual_seed(8))
    for reshape in ("none", "hook_z"):
        config = copy.deepcopy(sae.cfg)
        config.metadata.hook_name, config.reshape_activations = "blocks.1.attn.hook_z", reshape
        z_sae = type(sae)(config)
        z_sae.load_state_dict(sae.state_dict())
        views = forecast_views(z_sae, sae.cfg.d_in, 3, {8: torch.ones(sae.cfg.d_sae, dtype=torch.bool)}, {})
        reconstructed.append(views.after_pooling(views.per_token(activation))["kept 8"])
    torch.testing.assert_close(reconstructed[1], reconstructed[0])


def test_bottleneck_state_is_its_weights_times_scaled_codes() -> None:
    random = np.random.default_rng(6)
    dense = np.maximum(random.normal(size=(600, 5)) - 0.5, 0.0)
    dense[:, 2] = 0.0  # this feature never fires, so W has no row for it
    codes = Codes.from_dense(dense, np.repeat(np.arange(60), 10))
    cost, norm = (dense**2).sum(0) / 600, np.array([1.0, 2.0, 1.0, 0.5, 1.0])
    stats = dataclasses.replace(
        stats_of(cost, n_tokens=600), codes=codes, decoder_norm=norm, sum_act_sq=(dense**2).sum(0),
        firing_count=(dense > 0).sum(0), sum_cost=cost * 600,
        blocks=BlockSums(np.array([600]), np.array([600]), (dense > 0).sum(0)[None], (cost * 600)[None]),
    )  # fmt: skip
    (hidden_state,) = train_bottlenecks(stats, np.array([2]), steps=4, seed=3).hidden_states()
    unit = hidden_state(torch.eye(5))
    assert torch.equal(unit[2], torch.zeros(2))
    # The state is linear in the codes, and each row of W is scaled by its decoder norm.
    state = hidden_state(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]))
    torch.testing.assert_close(state, torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])[None] @ unit)
    task = BottleneckTask.from_stats(stats, stats.alive(1), 3, "cpu")
    (trained,) = task.train([2], 4, 1024, 3, StepCounter(None, 1))
    torch.testing.assert_close(unit[[0, 1, 3, 4]], trained.models[1].W * torch.tensor([1.0, 2.0, 0.5, 1.0])[:, None])
