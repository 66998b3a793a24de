"""Tests that students that `from_pretrained` would load as other models are refused before they are trained."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import AutoModelForCausalLM

from tests.helpers.trainers import arguments, kl_of_rows, plain_model
from tests.helpers.type_checks import without_type_checks
from tl_distill_floor import DistillationTrainer, InputError
from tl_distill_floor.distilling.students.family_models import logit_difference
from tl_distill_floor.distilling.students.plain_student import check_plain_student

IDS = torch.randint(3, 64, (4, 12), generator=torch.Generator().manual_seed(0))


def with_weight_norm(student: Any) -> None:
    """Replace a weight by its direction and its length."""
    parametrizations.weight_norm(student.model.layers[0].mlp.up_proj)


def pruned(student: Any) -> None:
    """Multiply a weight by a mask in each forward pass."""
    prune.l1_unstructured(student.model.layers[0].mlp.up_proj, "weight", 0.5)  # type: ignore[no-untyped-call]


def with_fewer_layers(student: Any) -> None:
    """Remove a layer, but not from the configuration."""
    student.model.layers = student.model.layers[:1]


def tied(student: Any) -> None:
    """Tie the embeddings, but not in the configuration."""
    student.lm_head.weight = student.model.embed_tokens.weight


def with_bias(student: Any) -> None:
    """Add a bias to the logits, which the family does not have."""
    student.lm_head = nn.Linear(*reversed(student.lm_head.weight.shape))
    nn.init.normal_(student.lm_head.bias)


def with_hook(student: Any) -> None:
    """Scale the last hidden states in a hook."""
    student.model.norm.register_forward_hook(lambda _module, _inputs, output: 2 * output)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_weight_norm, r"no weight model.layers.0.mlp.up_proj.weight of its own, which a LlamaForCausalLM"),
        (pruned, r"no weight model.layers.0.mlp.up_proj.weight of its own"),
        (
            with_fewer_layers,
            r"no weight model.layers.1.self_attn.q_proj.weight of its own.* such as the number of layers",
        ),
        (tied, r"no weight lm_head.weight of its own"),
        (with_bias, r"the weights of the student has other logits, by up to [1-9].*would be loaded as another model"),
        (with_hook, r"the weights of the student has other logits, by up to [1-9]"),
    ],
)
def test_refuses_students_that_would_be_loaded_as_other_models(
    change: Callable[[Any], None], message: str, tmp_path: Path
) -> None:
    """Each is saved by the Trainer without an error, and has another loss when it is loaded."""
    student = plain_model("Llama")
    change(student)
    student.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert kl_of_rows(student, loaded, list(IDS)) > 0.01
    with pytest.raises(InputError, match=message):
        DistillationTrainer(student, arguments(tmp_path), teacher=plain_model("Llama", 1))


def test_accepts_students_that_are_loaded_as_they_are(tmp_path: Path) -> None:
    """One with embeddings of its own in spite of its configuration, one with an unused module, and one in bf16."""
    untied, extended = plain_model("Llama"), plain_model("Llama")
    untied.config.tie_word_embeddings = True
    extended.unused = nn.Linear(2, 2)
    for number, student in enumerate(
        (untied, extended, plain_model("Gemma2", head_dim=8, num_key_value_heads=1).bfloat16())
    ):
        check_plain_student(student, IDS)
        student.save_pretrained(tmp_path / str(number))
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / str(number)).eval()
        assert kl_of_rows(student, loaded, list(IDS)) == pytest.approx(0.0, abs=1e-4)


def test_the_check_leaves_the_student_and_the_generator_as_they_are() -> None:
    experts: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    student = plain_model("Qwen3Moe", head_dim=8, num_key_value_heads=1, **experts)
    weights, config = copy.deepcopy(student.state_dict()), student.config.to_dict()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    check_plain_student(student, IDS)
    assert torch.equal(torch.rand(1), expected)
    assert student.config.to_dict() == config
    assert all(torch.equal(weight, weights[name]) for name, weight in student.state_dict().items())


def test_models_with_adapters_around_them_are_to_be_merged(tmp_path: Path) -> None:
    class PeftModel(nn.Module):
        """A model of the package peft, which is not installed for the tests."""

        def merge_and_unload(self) -> Any:
            return plain_model("Llama")

    for name, models in (
        ("student", (PeftModel(), plain_model("Llama"))),
        ("teacher", (plain_model("Llama"), PeftModel())),
    ):
        student, teacher = models
        with (
            without_type_checks(),
            pytest.raises(InputError, match=rf"is a PeftModel.*; give {name}.merge_and_unload\(\)"),
        ):
            DistillationTrainer(student, arguments(tmp_path), teacher=teacher)  # type: ignore[arg-type]


def test_only_nan_is_the_same_as_nan() -> None:
    nan, one = torch.full((2, 3), float("nan")), torch.ones(2, 3)
    assert logit_difference(nan, nan, torch.float32) is None
    assert logit_difference(one, one, torch.float32) is None
    for logits, expected in ((nan, one), (one, nan)):
        assert math.isnan(logit_difference(logits, expected, torch.float32) or 0.0)
