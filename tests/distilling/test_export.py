"""Exported students load in plain transformers, and have the size that their plan says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, RwkvConfig, RwkvForCausalLM

from tests.helpers.models import save_family
from tests.helpers.records import stats_of
from tests.helpers.type_checks import without_type_checks
from tl_distill_floor import Plan, build_student, export_student, load_teacher, plan
from tl_distill_floor.errors import InputError
from tl_distill_floor.predicting.floors import floor_from_stats
from tl_distill_floor.sources.teacher import Teacher

FAMILIES: dict[str, dict[str, Any]] = {
    "GPT2": {"head": "LMHeadModel"},
    "Llama": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "GPTNeoX": {},
}


@pytest.fixture(scope="module", params=FAMILIES)
def teacher(request: pytest.FixtureRequest, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    """Load a random teacher of a family."""
    family: str = request.param
    directory = save_family(tmp_path_factory.mktemp(family) / family, tokenizer, family, **FAMILIES[family])
    return load_teacher(str(directory))


@pytest.fixture(scope="module")
def neox(teacher_dir: Path) -> Teacher:
    """Load the random teacher."""
    return load_teacher(str(teacher_dir))


def plan_for(teacher: Teacher, **limits: Any) -> Plan:
    """Plan a student with floors from synthetic features."""
    stats = stats_of(1.0 / np.arange(1, 65), d_model=32, model_name=teacher.name, sampled_sum=np.zeros(32))
    return plan(floor_from_stats(stats, widths=[4, 8, 16, 32]), teacher, divisor=8, context=40, **limits)


@torch.no_grad()
def test_an_export_has_the_parameters_and_the_memory_of_its_plan(teacher: Teacher, tmp_path: Path) -> None:
    planned = plan_for(teacher, max_width=16)
    directory = export_student(teacher, planned, tmp_path / "student", start="svd")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
    weights = list(model.parameters())
    assert sum(weight.numel() for weight in weights) == planned.n_parameters
    chosen = planned.chosen
    assert chosen is not None
    assert (chosen.width, planned.context) == (16, 40)
    assert sum(weight.nbytes for weight in weights) == chosen.weight_bytes
    output = model(torch.zeros((1, 40), dtype=torch.long), use_cache=True)
    cache = output["cache" if "cache" in output else "past_key_values"]
    assert type(cache).__name__ == "DynamicCache"
    assert sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values)) == chosen.cache_bytes
    assert chosen.memory == chosen.weight_bytes + chosen.cache_bytes
    # The candidates are right, too.
    narrow = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(export_student(teacher, 8, tmp_path / "8")))
    assert sum(weight.numel() for weight in narrow.parameters()) == planned.candidates[0].n_parameters


def test_exports_the_weights_that_distill_would_start_from(teacher: Teacher, tmp_path: Path) -> None:
    directory = export_student(teacher, 16, tmp_path / "svd", start="svd")
    exported = AutoModelForCausalLM.from_pretrained(directory).state_dict()
    built = build_student(teacher, 16, start="svd").state_dict()
    assert exported.keys() == built.keys()
    for name, weight in built.items():
        torch.testing.assert_close(exported[name], weight, rtol=0, atol=0)


def test_a_configuration_alone_equals_that_with_weights(neox: Teacher, teacher_dir: Path, tmp_path: Path) -> None:
    planned = plan_for(neox, max_width=8, depth=2)
    without = export_student(neox, planned, tmp_path / "without")
    with_weights = export_student(neox, planned, tmp_path / "with", start="random", seed=3)
    files = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert {file.name for file in without.iterdir()} == files | {"plan.json"}
    assert {file.name for file in with_weights.iterdir()} == files | {"plan.json", "model.safetensors"}
    configs = [json.loads((directory / "config.json").read_text()) for directory in (without, with_weights)]
    assert configs[0] == configs[1]
    assert configs[0]["architectures"] == ["GPTNeoXForCausalLM"]
    assert (configs[0]["hidden_size"], configs[0]["num_hidden_layers"]) == (8, 2)
    assert Plan.load(without) == planned
    assert len(AutoTokenizer.from_pretrained(without)) == len(AutoTokenizer.from_pretrained(teacher_dir))
    assert str(teacher_dir.parent) not in (without / "config.json").read_text()
    assert "random" in (with_weights / "README.md").read_text()


def test_bad_input_writes_nothing(neox: Teacher, tmp_path: Path) -> None:
    planned = plan_for(neox, max_width=8)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="full exists already; name another directory"):
        export_student(neox, planned, tmp_path / "full")
    with pytest.raises(InputError, match="a plan has a depth of its own"):
        export_student(neox, planned, tmp_path / "new", depth=1)
    with pytest.raises(InputError, match="a student's width must be from 1 to its teacher's 24, got 25"):
        export_student(neox, 25, tmp_path / "new")
    message = "start must be one of random, teacher-slice, svd, got 'zeros'"
    with pytest.raises(InputError, match=message), without_type_checks():
        export_student(neox, 8, tmp_path / "new", start="zeros")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"the plan is for .*, and the teacher is tiny-prose; give the plan's teacher"):
        export_student("tiny-prose", planned, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


def test_settings_that_transformer_lens_changes_are_the_teachers(tokenizer: Any, tmp_path: Path) -> None:
    """A Bridge runs RWKV without its state, and sets an id of the padding, which RWKV does not have."""
    config = RwkvConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, context_length=64)
    RwkvForCausalLM(config).save_pretrained(tmp_path / "rwkv")
    tokenizer.save_pretrained(tmp_path / "rwkv")
    loaded = load_teacher(str(tmp_path / "rwkv"))
    for start in (None, "random"):
        directory = export_student(loaded, 16, tmp_path / f"student-{start}", start=start)
        own, exported = (json.loads((path / "config.json").read_text()) for path in (tmp_path / "rwkv", directory))
        assert exported["use_cache"] is own["use_cache"] is True
        assert "pad_token_id" not in own
        assert "pad_token_id" not in exported
        assert AutoConfig.from_pretrained(directory).hidden_size == 16
