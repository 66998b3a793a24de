"""SAEs that do not fit the activations: they are recognised early, and refused or measured with a warning."""

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.models import FEATURES, HOOK, WIDTH
from tl_distill_floor import InputError, measure, predict_floor
from tl_distill_floor.measuring.job import AttachedSae
from tl_distill_floor.measuring.plausibility import check_plausible, plausibility_warnings, unbiased_fvu
from tl_distill_floor.results.feature_sums import FeatureSums
from tl_distill_floor.sources.saes import load_sae


@pytest.fixture
def long_ids(ids: torch.Tensor) -> torch.Tensor:
    """Return 7,936 tokens that are counted, and 256 first positions, in 256 rows."""
    random = torch.Generator().manual_seed(5)
    rows = torch.randint(1, int(ids.max()) + 1, (256, ids.shape[1]), generator=random)
    rows[:, 0] = 0
    return rows


@pytest.fixture
def random_sae() -> Any:
    """Return an SAE with random weights, which reconstructs worse than the mean."""
    from sae_lens import StandardSAE, StandardSAEConfig

    sae = StandardSAE(StandardSAEConfig(d_in=WIDTH, d_sae=FEATURES))
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in (sae.W_enc, sae.W_dec):
            weights.copy_(0.4 * torch.randn(weights.shape, generator=random))
        sae.b_enc.fill_(-2)
        sae.b_dec.zero_()
    sae.cfg.metadata.hook_name = HOOK
    return sae


def sums_with(fvu: float, l0: float, n_tokens: int = 4000) -> FeatureSums:
    """Return sums over tokens of which 1,001 were sampled, with unit variance in one of two dimensions."""
    n, zeros = 1001, np.zeros(10)
    return FeatureSums(
        n_tokens=n_tokens, n_cost_tokens=n_tokens, n_masked=0,
        firing_count=np.full(10, round(l0 * n_tokens / 10)), sum_act=zeros,
        sum_act_sq=zeros, sum_cost=zeros, sampled_tokens=n, sampled_sum=np.array([2.0 * n, 0.0]),
        sampled_sum_sq=4.0 * n + 1000.0, sampled_error_sq=fvu * n,
    )  # fmt: skip


def attached_to(sae: Any, expected_l0: float | None) -> AttachedSae:
    """Return an SAE at its hook point whose publisher states an L0."""
    return AttachedSae(dataclasses.replace(load_sae(sae), expected_l0=expected_l0), HOOK, "digest")


@pytest.mark.parametrize(
    ("fvu", "l0", "stated", "refusal", "warning"),
    [
        (0.3, 2.0, None, None, None),
        (0.6, 2.0, None, None, "variance unexplained is 0.60, which is high"),
        (1.2, 2.0, None, "variance unexplained is 1.20, but the mean activation alone leaves 1", "is 1.20"),
        (0.3, 2.0, 6.0, None, None),
        (0.3, 2.0, 8.0, "its L0 is 2.0, but 8.0 is stated", "its L0 is 2.0"),
        (0.3, 8.0, 2.0, "its L0 is 8.0, but 2.0 is stated", "its L0 is 8.0"),
        (1.2, 8.0, 2.0, "1.20, but the mean activation alone leaves 1; its L0 is 8.0", "does not fit"),
    ],
)
def test_refuses_and_warns_at_the_thresholds(
    sae: Any, fvu: float, l0: float, stated: float | None, refusal: str | None, warning: str | None
) -> None:
    sums, attached = sums_with(fvu, l0), attached_to(sae, stated)
    assert unbiased_fvu(sums) == pytest.approx(fvu)
    warnings = plausibility_warnings(sums, attached)
    assert len(warnings) == (warning is not None)
    if warning:
        assert warning in warnings[0]
        assert "another hook point" in warnings[0]
        assert "normalisation" in warnings[0]
    if refusal is None:
        check_plausible(sums, attached)
    else:
        with pytest.raises(InputError, match=rf"does not fit the activations at {HOOK}: .*force=True") as caught:
            check_plausible(sums, attached)
        assert refusal in str(caught.value)
        check_plausible(
            dataclasses.replace(sums, n_tokens=1999, n_cost_tokens=1999, firing_count=sums.firing_count // 4),
            attached,
        )


def test_compares_the_l0_with_the_k_of_the_sae(sae: Any) -> None:
    sae = copy.deepcopy(sae)
    sae.cfg.k = 2
    with pytest.raises(InputError, match=r"its L0 is 8\.0, but 2\.0 is stated"):
        check_plausible(sums_with(0.3, 8.0), AttachedSae(load_sae(sae), HOOK, "digest"))


def test_refuses_before_the_long_part_of_the_work(bridge: Any, random_sae: Any, long_ids: torch.Tensor) -> None:
    read: list[int] = []
    with pytest.raises(InputError, match=r"variance unexplained is .* force=True"):
        measure(bridge, random_sae, long_ids, cost="energy", progress=lambda done, _total: read.append(done))
    assert max(read) < 3000  # of 8,192


@pytest.mark.parametrize("function", [measure, predict_floor])
def test_force_goes_on_with_a_warning(function: Any, bridge: Any, random_sae: Any, long_ids: torch.Tensor) -> None:
    options: dict[str, Any] = {} if function is measure else {"steps": 0, "widths": [4]}
    result = function(bridge, random_sae, long_ids, cost="energy", force=True, **options)
    assert any("the SAE does not fit the activations" in warning for warning in result.warnings)


def test_a_refusal_writes_no_checkpoint(bridge: Any, random_sae: Any, long_ids: torch.Tensor, tmp_path: Any) -> None:
    with pytest.raises(InputError, match="does not fit"):
        measure(bridge, random_sae, long_ids, cost="energy", checkpoint=tmp_path / "part.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_short_text_only_warns(bridge: Any, random_sae: Any, ids: torch.Tensor) -> None:
    stats = measure(bridge, random_sae, ids, cost="energy")
    assert stats.n_tokens < 2000
    assert any("does not fit" in warning for warning in stats.warnings)
