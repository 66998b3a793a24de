"""Numbers of heads of students: what the families accept, and what the teacher has."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.helpers.models import save_family
from tl_distill_floor import InputError, build_student, export_student, load_teacher
from tl_distill_floor.distilling.planning.candidates import StudentFamily
from tl_distill_floor.distilling.students.family_models import create_model
from tl_distill_floor.distilling.students.inherited_weights import inherit_weights
from tl_distill_floor.distilling.students.student_config import hugging_face_config, student_config
from tl_distill_floor.distilling.students.widths import family_widths

Fields = dict[str, int]
PUBLISHED: dict[str, tuple[str, Fields]] = {
    "gpt2": ("GPT2Config", {"n_embd": 768, "n_head": 12}),
    "pythia-70m": ("GPTNeoXConfig", {"hidden_size": 512, "num_attention_heads": 8}),
    "pythia-160m": ("GPTNeoXConfig", {"hidden_size": 768, "num_attention_heads": 12}),
    "pythia-410m": ("GPTNeoXConfig", {"hidden_size": 1024, "num_attention_heads": 16}),
    "smollm2-135m": ("LlamaConfig", {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3}),
    "llama-3.2-1b": (
        "LlamaConfig",
        {"hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64},
    ),
    "tinyllama": ("LlamaConfig", {"hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 4}),
    "gemma-2-2b": (
        "Gemma2Config",
        {"hidden_size": 2304, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256},
    ),
    "gemma-3-270m": (
        "Gemma3TextConfig",
        {"hidden_size": 640, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256},
    ),
    "qwen3-0.6b": (
        "Qwen3Config",
        {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
    ),
    "phi-2": ("PhiConfig", {"hidden_size": 2560, "num_attention_heads": 32}),
    "mistral-7b": (
        "MistralConfig",
        {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
    ),
}
"""Sizes of published models."""


def published_config(name: str) -> Any:
    """Return a configuration with the widths and heads of a published model."""
    family, fields = PUBLISHED[name]
    return getattr(transformers, family)(**fields)


@pytest.mark.parametrize("name", PUBLISHED)
def test_students_of_all_widths_can_be_saved_or_are_refused(name: str) -> None:
    teacher = published_config(name)
    n_heads, n_kv_heads = (getattr(teacher, f"num_{kind}_heads", None) for kind in ("attention", "key_value"))
    assert n_heads is not None
    group = n_heads // (n_kv_heads or n_heads)
    n_accepted = 0
    for width in range(8, teacher.hidden_size + 1, 8):
        try:
            config = student_config(teacher, width)
        except InputError as error:
            assert f"of {width}" in str(error) or f"of width {width}" in str(error)  # noqa: PT017
            assert "; try width " in str(error)  # noqa: PT017
            continue
        config.validate()
        number = config.num_attention_heads
        assert 1 <= number <= n_heads
        assert number <= group or number % group == 0
        n_accepted += 1
    assert n_accepted >= teacher.hidden_size // 8 * 0.55


@pytest.mark.parametrize(
    ("width", "heads"), [(256, 2), (176, 2), (200, 2), (224, 2), (264, 3), (384, 6), (48, 1), (576, 9)]
)
def test_the_number_of_heads_divides_the_width_where_the_family_requires_it(width: int, heads: int) -> None:
    """Three query heads share a key head, so there can be 1, 2, 3, 6 or 9; near means half to twice 9 · width / 576."""
    config = student_config(published_config("smollm2-135m"), width)
    assert (config.num_attention_heads, config.num_key_value_heads) == (heads, max(1, heads // 3))


def test_names_the_nearest_width_if_no_number_of_heads_divides_it() -> None:
    """At 512, 8 heads are the teacher's share; 6 and 9 divide neither 512 nor 520, and 6 divides 504 and 528."""
    with pytest.raises(InputError, match=r"near 9 divides a student's width of 512, .*; try width 504$"):
        student_config(published_config("smollm2-135m"), 512)


def test_students_whose_width_is_no_multiple_of_the_scaled_number_of_heads_are_saved(
    tokenizer: Any, tmp_path: Path
) -> None:
    """Nine heads at width 144 scale to four at 64, which three heads would not divide."""
    teacher = save_family(
        tmp_path / "llama", tokenizer, "Llama", hidden_size=144, num_attention_heads=9, num_key_value_heads=3
    )
    loaded = load_teacher(str(teacher))
    directory = export_student(loaded, 64, tmp_path / "student", start="svd")
    saved = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    assert saved.config.num_attention_heads == 2
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        torch.testing.assert_close(saved(ids).logits, build_student(loaded, 64)(ids).logits)


@pytest.mark.parametrize("family", ["GPT2", "GPTNeoX"])
def test_students_have_at_most_as_many_heads_as_their_teacher(family: str, tokenizer: Any, tmp_path: Path) -> None:
    """Widths 22, 26 and 30 have divisors up to 8, the head size of the teacher, only for five heads or more."""
    head = {"head": "LMHeadModel"} if family == "GPT2" else {}
    loaded = load_teacher(str(save_family(tmp_path / family, tokenizer, family, **head)))
    widths = family_widths(loaded.model, divisor=1)
    assert {8, 16, 24, 32} <= set(widths)
    assert not {22, 26, 30} & set(widths)
    students = StudentFamily(loaded.model)
    for width in widths[-3:]:
        assert not students.refusal(width)
        assert build_student(loaded, width).config.num_attention_heads <= 4


def test_tiny_prose_has_no_student_with_more_heads_than_its_eight() -> None:
    """176 = 11 · 16, and its heads have at least 16 dimensions, half of the teacher's 32."""
    teacher = load_teacher("tiny-prose")
    with pytest.raises(InputError, match="fits a student of width 176; try width 192"):
        build_student(teacher, 176)
    assert 176 not in family_widths(teacher.model)
    assert build_student(teacher, 192).config.num_attention_heads == 6


def test_a_student_with_larger_weights_than_its_teacher_is_refused(bridge: Any) -> None:
    """It has twice as many neurons."""
    config = student_config(hugging_face_config(bridge), 16)
    config.intermediate_size = 2 * hugging_face_config(bridge).intermediate_size
    with pytest.raises(InputError, match=r"has more rows or columns than the teacher's; .* start=.random"):
        inherit_weights(bridge, create_model(config), "teacher-slice")
