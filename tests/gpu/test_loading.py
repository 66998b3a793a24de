"""Teachers and SAEs that are loaded on a GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.devices import DEVICE
from tl_distill_floor import InputError, build_student, load_sae, load_teacher
from tl_distill_floor.distilling.training.distill import _accelerator


def test_teacher_on_the_device_has_the_logits_of_the_cpu(bridge: Any, device_bridge: Any, ids: Tensor) -> None:
    with torch.no_grad():
        logits, expected = device_bridge(ids[:4].to(DEVICE)), bridge(ids[:4])
    assert logits.device.type == torch.device(DEVICE).type
    torch.testing.assert_close(logits.cpu(), expected, rtol=1e-4, atol=1e-4)


def test_teacher_in_bf16_is_near_the_teacher_in_fp32(teacher_dir: Path, bridge: Any, ids: Tensor) -> None:
    model: Any = load_teacher(teacher_dir, device=DEVICE, dtype="bf16").model
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        log_p, expected = (
            model(ids[:4].to(DEVICE)).float().log_softmax(-1).cpu(),
            bridge(ids[:4]).log_softmax(-1),
        )
    assert float((log_p - expected).abs().mean()) < 0.1 * float(expected.std())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sae_on_the_device_has_the_codes_of_the_cpu(sae: Any, sae_dir: Path, dtype: Any) -> None:
    loaded = load_sae(sae_dir, device=DEVICE, dtype=dtype).sae
    activation = torch.randn(50, sae.cfg.d_in, generator=torch.Generator().manual_seed(0))
    codes = loaded.encode(activation.to(DEVICE)).float().cpu()
    tolerance = 1e-5 if dtype == "float32" else 0.05
    torch.testing.assert_close(codes, sae.encode(activation), rtol=tolerance, atol=tolerance)


def test_student_has_the_same_initial_weights_on_every_device(bridge: Any, device_bridge: Any) -> None:
    weights, expected = (build_student(teacher, 16, start="svd").state_dict() for teacher in (device_bridge, bridge))
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-4)


def test_rejects_a_second_device_for_accelerate(bridge: Any, device_bridge: Any) -> None:
    if torch.device(DEVICE).type == "cpu":
        pytest.skip("needs two devices")
    assert _accelerator(device_bridge, DEVICE).device.type == torch.device(DEVICE).type
    with pytest.raises(InputError, match="already uses accelerate on another device than cpu; start another process"):
        _accelerator(bridge, "cpu")
