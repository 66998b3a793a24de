"""Tests of where the layers of a model are, and of models of text and images in a Trainer."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.models import VOCABULARY
from tests.helpers.trainers import arguments, kl_of_rows, plain_model
from tl_distill_floor import DistillationTrainer, Match
from tl_distill_floor.distilling.students.layers import capture_residual_stream, layers_of
from tl_distill_floor.errors import InputError

MATCH = Match("blocks.1.hook_resid_post", 1)
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.3,
}  # fmt: skip
VISION = {
    "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 1, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip


def text_and_images(family: str, seed: int = 0) -> Any:
    """Return a model of text and images whose vision tower has as many layers as its text model."""
    import transformers

    images = {"image_token_index": 299, "boi_token_index": 298, "eoi_token_index": 297} if family == "Gemma3" else {}
    text = TEXT | ({} if family == "Gemma3" else {"model_type": "llama"})
    vision = VISION | ({} if family == "Gemma3" else {"model_type": "clip_vision_model"})
    config = getattr(transformers, f"{family}Config")(text_config=text, vision_config=vision, **images)
    torch.manual_seed(seed)
    return getattr(transformers, f"{family}ForConditionalGeneration")(config).eval()


@pytest.mark.parametrize("family", ["Gemma3", "Llava"])
def test_layers_of_text_and_images_are_those_of_the_text(family: str) -> None:
    model = text_and_images(family)
    assert layers_of(model) is model.model.language_model.layers


def test_layers_are_those_of_the_model_if_its_unembedding_is_called_decoder() -> None:
    model = plain_model("ModernBertDecoder", cls_token_id=1, sep_token_id=2)
    assert layers_of(model) is model.model.layers


@pytest.mark.parametrize("family", ["Gemma3", "Llava"])
@pytest.mark.parametrize("match", [None, MATCH])
def test_a_model_of_text_and_images_can_teach(family: str, match: Match | None, tmp_path: Path) -> None:
    teacher, student = text_and_images(family), plain_model("Llama", 1)
    rows = [list(range(5, 5 + length)) for length in (9, 6)]
    args = arguments(tmp_path, max_steps=1)
    trainer = DistillationTrainer(
        student, args, teacher=teacher, match=match, train_dataset=[{"input_ids": row} for row in rows]
    )
    loss = trainer.compute_loss(trainer.model, trainer.data_collator([{"input_ids": row} for row in rows]))
    expected = kl_of_rows(teacher, student, rows)
    if match is None:
        assert loss.item() == pytest.approx(expected, rel=1e-4)
    else:
        assert loss.item() > expected
    trainer.train()


def test_a_model_without_a_list_of_layers_is_refused_for_hook_matching_only(tmp_path: Path) -> None:
    teacher, student = plain_model("Llama"), plain_model("Llama", 1)
    teacher.config.num_hidden_layers = 5
    trainer = DistillationTrainer(student, arguments(tmp_path), teacher=teacher)
    rows = [[5, 6, 7]]
    loss = trainer.compute_loss(student, trainer.data_collator([{"input_ids": row} for row in rows]))
    assert loss.item() == pytest.approx(kl_of_rows(teacher, student, rows), rel=1e-4)
    with pytest.raises(InputError, match="LlamaForCausalLM has no list of 5 layers"):
        DistillationTrainer(student, arguments(tmp_path), teacher=teacher, match=MATCH)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_layers_with_several_residual_streams_are_not_matched(role: str, tmp_path: Path) -> None:
    """Gemma 3n: [stream, batch, position, width], which has no position where the Trainer looks for it."""
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    models = {"teacher": plain_model("Llama"), "student": plain_model("Llama", 1)}
    config = Gemma3nTextConfig(
        **TEXT | {"intermediate_size": [32, 32]}, vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=8,
        laurel_rank=8, num_kv_shared_layers=0, activation_sparsity_pattern=[0.0, 0.0],
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    torch.manual_seed(0)
    models[role] = Gemma3nForCausalLM(config).eval()
    given = {"args": arguments(tmp_path), "teacher": models["teacher"]}
    with pytest.raises(
        InputError, match=r"layer 1 of Gemma3nForCausalLM has an output of shape \(4, .* and hook match"
    ):
        DistillationTrainer(models["student"], match=MATCH, **given)
    DistillationTrainer(models["student"], **given)


def test_the_residual_stream_is_that_after_the_layer() -> None:
    model, captured = plain_model("Llama"), list[torch.Tensor]()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        with capture_residual_stream(model, 0, captured):
            model(ids)
        states = model(ids, output_hidden_states=True).hidden_states
    assert torch.equal(captured[0], states[1])


@pytest.mark.slow
def test_the_residual_stream_of_a_compiled_model_is_captured() -> None:
    """`torch.compile` does not look for hooks that are added to a model after its first forward pass."""
    model, captured = plain_model("Llama"), list[torch.Tensor]()
    ids = torch.tensor([[5, 6, 7]])
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the compiler about the type checks of the tests
        compiled(ids, use_cache=False)
        for layer in (0, 1, 0):
            with capture_residual_stream(model, layer, captured):
                compiled(ids, use_cache=False)
        states = model(ids, output_hidden_states=True).hidden_states
    assert len(captured) == 3
    torch.testing.assert_close(captured[0], states[1])
    assert torch.equal(captured[0], captured[2])
    assert "forward" not in vars(model.model.layers[0])
