"""Warnings about a teacher in memory that is not processed as that of the SAE's training."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.measurements import load_as
from tests.helpers.models import save_family
from tests.helpers.saes import tiny_sae
from tl_distill_floor import load_sae, load_teacher, measure
from tl_distill_floor.measuring.processing import is_centred, loading_warnings
from tl_distill_floor.sae_training.train_sae import train_sae
from tl_distill_floor.sources.teacher import Teacher

CENTRED, NOT_CENTRED = "the weights of this one are centred", "the weights of this one are not centred"


def trained_on(sae: Any, **model_kwargs: Any) -> Any:
    """Return a copy of an SAE whose metadata states how its teacher was loaded."""
    copied = copy.deepcopy(sae)
    copied.cfg.metadata.model_from_pretrained_kwargs = model_kwargs
    return copied


def processed_teacher(kind: str, teacher_dir: Path) -> Any:
    """Load the teacher with centred weights."""
    if kind == "HookedTransformer":
        model = load_as(kind, teacher_dir)
        model.process_weights_(fold_ln=True, center_writing_weights=True, center_unembed=True)
        return model
    model = load_teacher(str(teacher_dir)).model
    model.enable_compatibility_mode()  # type: ignore[attr-defined]
    return model


def loading_warnings_of(stats: Any) -> list[str]:
    """Return the warnings about how the teacher was loaded."""
    return [warning for warning in stats.warnings if "trained on a teacher" in warning]


@pytest.mark.parametrize("kind", ["HookedTransformer", "TransformerBridge"])
def test_centred_weights_are_recognised(kind: str, teacher_dir: Path, sae: Any, ids: torch.Tensor) -> None:
    model = processed_teacher(kind, teacher_dir)
    options: dict[str, Any] = {"cost": "energy", "hook_name": "blocks.1.hook_out", "force": True}
    uncentred = measure(model, trained_on(sae, center_writing_weights=False), ids, **options)
    (warning,) = loading_warnings_of(uncentred)
    assert CENTRED in warning
    for matching in ({"center_writing_weights": True, "fold_ln": True}, {}):
        assert not loading_warnings_of(measure(model, trained_on(sae, **matching), ids, **options))


def test_missing_centring_is_recognised(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    centred = measure(bridge, trained_on(sae, center_writing_weights=True), ids, cost="energy")
    (warning,) = loading_warnings_of(centred)
    assert NOT_CENTRED in warning
    for matching in ({"center_writing_weights": False}, {"fold_ln": True, "fold_value_biases": True}):
        assert not loading_warnings_of(measure(bridge, trained_on(sae, **matching), ids, cost="energy"))


def test_models_with_rms_norms_are_not_centred_by_the_option(tmp_path: Path, tokenizer: Any) -> None:
    model = load_teacher(save_family(tmp_path, tokenizer, "Llama")).model
    source = load_sae(trained_on(tiny_sae(), center_writing_weights=True))
    teacher = Teacher(model, "in-memory model", has_public_name=False)
    activation = np.ones((3, 6), dtype=np.float32)
    assert not is_centred(activation)
    assert not loading_warnings(teacher, source, "blocks.0.hook_resid_post", activation)
    (warning,) = loading_warnings(teacher, source, "blocks.0.mlp.hook_post", activation)
    assert "how this one was loaded is not known" in warning


def test_a_trained_sae_says_whether_its_teacher_was_centred(
    teacher_dir: Path, bridge: Any, ids: torch.Tensor, tmp_path: Path
) -> None:
    for name, model, expected in (
        ("centred", processed_teacher("HookedTransformer", teacher_dir), {"center_writing_weights": True}),
        ("plain", bridge, {}),
    ):
        out = train_sae(model, ids, layer=1, out=tmp_path / name, d_sae=32, k=4, n_tokens=8192, context_size=32)
        assert load_sae(out).model_kwargs == expected
