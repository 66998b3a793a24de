"""A teacher that is loaded again is compared with the one that was measured, by what both compute."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.measurements import load_as
from tests.helpers.models import CONTEXT, HOOK, VOCABULARY, save_family
from tests.helpers.probes import labelled_rows
from tl_distill_floor import (
    FeatureStats,
    HeadFloor,
    ProbeConfig,
    StudentResult,
    add_promoted_tokens,
    calibrate,
    diagnose,
    distill,
    floor_from_stats,
    head_floor,
    measure,
    plan,
    probe_run,
)
from tl_distill_floor.annotations import Dtype
from tl_distill_floor.display.run_parts import load_run_parts
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.fingerprints import STRIDE, compare_with_fingerprint, teacher_fingerprint
from tl_distill_floor.measuring.reloading import check_measured_teacher, check_outputs
from tl_distill_floor.sources.teacher import Teacher
from tl_distill_floor.sources.teachers import load_teacher


@pytest.fixture(scope="module")
def stats(teacher_dir: Path, sae: Any, ids: torch.Tensor) -> FeatureStats:
    """Measure the random teacher, loaded by its name."""
    return measure(str(teacher_dir), sae, ids, cost="energy")


def scaled(directory: Path, module: str, factor: float, dtype: Dtype = "fp32") -> Teacher:
    """Load a teacher, and multiply the weights of a module of its Hugging Face model by a factor."""
    teacher = load_teacher(str(directory), dtype=dtype)
    original = teacher.model.original_model  # type: ignore[attr-defined]
    with torch.no_grad():
        for weight in original.get_submodule(module).parameters():
            weight.mul_(factor)
    return teacher


def test_a_fingerprint_is_what_plain_transformers_computes(stats: FeatureStats, teacher_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    fingerprint = stats.fingerprint
    assert fingerprint is not None
    assert fingerprint.ids.tolist() == sorted({number * STRIDE % VOCABULARY for number in range(1, 17)})
    model = AutoModelForCausalLM.from_pretrained(teacher_dir, attn_implementation="eager").eval()
    with torch.no_grad():
        output = model(torch.from_numpy(fingerprint.ids)[None], output_hidden_states=True)
    np.testing.assert_allclose(fingerprint.activation, output.hidden_states[2][0].numpy(), rtol=1e-4, atol=1e-5)
    log_prob = output.logits[0].log_softmax(-1).numpy()[:, fingerprint.tokens]
    np.testing.assert_allclose(fingerprint.log_prob, log_prob, rtol=1e-4, atol=1e-4)
    assert fingerprint.eps.tolist() == [torch.finfo(torch.float32).eps]


@pytest.mark.parametrize("model_class", ["HookedTransformer", "HookedSAETransformer", "SAETransformerBridge"])
def test_the_same_model_in_memory_is_accepted(stats: FeatureStats, teacher_dir: Path, model_class: str) -> None:
    """Its weights have other names."""
    teacher = load_teacher(load_as(model_class, teacher_dir))
    assert check_measured_teacher(stats, teacher) == ()


@pytest.mark.parametrize("module", ["gpt_neox.layers.0.attention", "lm_head"])
def test_other_weights_before_and_after_the_hook_point_are_refused(
    stats: FeatureStats, teacher_dir: Path, module: str
) -> None:
    with pytest.raises(InputError, match=r"made with other weights of the teacher .*tiny-neox.* measure again"):
        check_measured_teacher(stats, scaled(teacher_dir, module, 1.05))
    assert check_measured_teacher(stats, scaled(teacher_dir, module, 1 + 1e-6)) == ()


def test_activations_may_be_left_out_of_the_comparison(stats: FeatureStats, teacher_dir: Path) -> None:
    """A student is trained on what the teacher outputs, whatever its residual stream is."""
    before_hook_point = scaled(teacher_dir, "gpt_neox.layers.0.attention", 1.05)
    with pytest.raises(InputError, match="its log-probabilities differ by"):
        check_outputs(stats, before_hook_point)
    assert stats.fingerprint is not None
    centred = dataclasses.replace(stats.fingerprint, activation=stats.fingerprint.activation - 1.0)
    centred_stats, teacher = dataclasses.replace(stats, fingerprint=centred), load_teacher(teacher_dir)
    check_outputs(centred_stats, teacher)
    with pytest.raises(InputError, match="made with other weights of the teacher"):
        check_measured_teacher(centred_stats, teacher)


def test_a_model_of_another_size_is_refused(stats: FeatureStats, tokenizer: Any, tmp_path: Path) -> None:
    for family, options in (("Llama", {}), ("GPT2", {"head": "LMHeadModel", "max_position_embeddings": 8})):
        other = load_teacher(save_family(tmp_path / family, tokenizer, family, **options))  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"made with other weights of the teacher .* \(they cannot be compared on"):
            check_measured_teacher(stats, other)
    assert stats.fingerprint is not None
    larger = dataclasses.replace(stats.fingerprint, tokens=stats.fingerprint.tokens + VOCABULARY)
    difference, may_be_rounding = compare_with_fingerprint(larger, load_teacher(stats.model_name).model, HOOK)
    assert np.isnan(difference)
    assert not may_be_rounding


def test_outputs_that_are_not_numbers_are_another_teacher(stats: FeatureStats, teacher_dir: Path) -> None:
    with pytest.raises(InputError, match=r"its log-probabilities are infinite or not a number in one of the two\)"):
        check_outputs(stats, scaled(teacher_dir, "gpt_neox.final_layer_norm", float("nan")))


def test_rounding_in_half_precision_gives_a_warning(
    teacher_dir: Path, sae: Any, ids: torch.Tensor, stats: FeatureStats
) -> None:
    rounded = measure(str(teacher_dir), sae, ids, cost="energy", dtype="bf16")
    assert check_measured_teacher(rounded, load_teacher(str(teacher_dir), dtype="bf16")) == ()
    in_bf16, in_fp32 = load_teacher(str(teacher_dir), dtype="bf16"), load_teacher(str(teacher_dir))
    for measured, teacher in ((stats, in_bf16), (rounded, in_fp32)):
        (warning,) = check_measured_teacher(measured, teacher)
        assert warning.startswith("whether the teacher is the one that was measured is not known")
    with pytest.raises(InputError, match="made with other weights"):
        check_measured_teacher(rounded, scaled(teacher_dir, "gpt_neox.layers.0", 1.5, "bf16"))


def test_a_teacher_without_a_head_is_known_by_its_activations(
    tokenizer: Any, sae: Any, ids: torch.Tensor, tmp_path: Path
) -> None:
    directory = save_family(tmp_path / "headless", tokenizer, "GPTNeoX", head="Model", hidden_size=24)
    measured = measure(str(directory), sae, ids, cost="energy", force=True)
    assert measured.fingerprint is not None
    assert measured.fingerprint.log_prob.shape == (len(measured.fingerprint.ids), 0)
    assert check_measured_teacher(measured, load_teacher(str(directory))) == ()


def test_fingerprints_are_saved_and_older_files_have_none(
    stats: FeatureStats, bridge: Any, teacher_dir: Path, tmp_path: Path
) -> None:
    stats.save(tmp_path)
    loaded = FeatureStats.load(tmp_path)
    assert loaded.fingerprint is not None
    assert check_measured_teacher(loaded, load_teacher(bridge)) == ()
    dataclasses.replace(stats, fingerprint=None).save(tmp_path)
    older = FeatureStats.load(tmp_path)
    assert older.fingerprint is None
    assert check_measured_teacher(older, scaled(teacher_dir, "gpt_neox.layers.0", 2.0)) == ()


def test_the_model_is_not_changed(bridge: Any) -> None:
    bridge.train()
    hooks = sum(len(module._forward_hooks) for module in bridge.modules())
    teacher_fingerprint(bridge, HOOK)
    assert bridge.training
    assert sum(len(module._forward_hooks) for module in bridge.modules()) == hooks
    bridge.eval()


def test_probes_and_promoted_tokens_refuse_another_teacher(
    stats: FeatureStats, bridge: Any, teacher_dir: Path, sae: Any
) -> None:
    floor, other = floor_from_stats(stats, [4, 8], steps=0), scaled(teacher_dir, "gpt_neox.layers.0.mlp", 1.1)
    config = ProbeConfig(n_splits=1, n_feature_tokens=0, bottleneck_steps=0)
    with pytest.raises(InputError, match="made with other weights of the teacher"):
        probe_run(floor, other, sae, labelled_rows(), labels=["half"], config=config)
    with pytest.raises(InputError, match="made with other weights of the teacher"):
        add_promoted_tokens(floor, [0, 1], other, sae)
    probes = probe_run(floor, bridge, sae, labelled_rows(), labels=["half"], config=config)
    assert probes.warnings == ("texts truncated to 32 tokens: 3",)
    assert len(stats.fingerprint.ids) <= CONTEXT  # type: ignore[union-attr]


def test_a_plan_and_a_training_refuse_another_teacher_of_the_same_width(
    stats: FeatureStats, bridge: Any, teacher_dir: Path, tmp_path: Path
) -> None:
    floor, other = floor_from_stats(stats, [4, 8], steps=0), scaled(teacher_dir, "gpt_neox.layers.2", 1.1)
    stats.save(tmp_path)
    assert plan(floor, bridge, max_width=8).width == 8
    with pytest.raises(InputError, match="made with other weights of the teacher"):
        plan(floor, other, max_width=8)
    with pytest.raises(InputError, match="made with other weights of the teacher"):
        distill(other, 8, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["stats.safetensors"]


def test_a_head_floor_knows_its_teacher_too(bridge: Any, teacher_dir: Path, ids: torch.Tensor, tmp_path: Path) -> None:
    computed = head_floor(bridge, ids, widths=[4, 8], steps=2)
    computed.save(tmp_path)
    head, other = HeadFloor.load(tmp_path), scaled(teacher_dir, "gpt_neox.layers.2", 1.1)
    assert head == computed
    assert plan(head, bridge, max_width=8).width == 8
    assert plan(dataclasses.replace(head, fingerprint=None), other, max_width=8).width == 8  # of an older version
    with pytest.raises(InputError, match="made with other weights of the teacher"):
        plan(head, other, max_width=8)
    with pytest.raises(InputError, match="made with other weights of the teacher"):
        distill(other, 8, out=tmp_path)
    fields = json.loads((tmp_path / "head.json").read_bytes())
    for damaged in ("AAAA", fields["fingerprint"][:400], "no base64"):
        (tmp_path / "head.json").write_text(json.dumps(fields | {"fingerprint": damaged}))
        with pytest.raises(InputError, match="not a valid head file"):
            HeadFloor.load(tmp_path)


def test_students_of_another_teacher_of_the_same_name_are_not_used(
    stats: FeatureStats, teacher_dir: Path, tmp_path: Path
) -> None:
    """The students' run was measured before the teacher was trained further."""
    floor, other = floor_from_stats(stats, [4, 8], steps=0), scaled(teacher_dir, "gpt_neox.layers.2", 1.1)
    floor.save(tmp_path / "now")
    for width, loss in ((2, 0.5), (4, 0.4), (8, 0.2)):
        student = StudentResult(
            name=f"width{width}",
            teacher=stats.model_name,
            width=width,
            depth=3,
            n_parameters=100 * width,
            tokens=(1000, 2000),
            losses=(2 * loss, loss),
            floor=loss,
            interval=(loss, loss),
            status="saturated",
            heldout_tokens=100,
        )
        (tmp_path / "before" / "students" / student.name).mkdir(parents=True)
        student.save(tmp_path / "before" / "students" / student.name)
    students = list(load_run_parts(tmp_path / "now", students=tmp_path / "before").students)
    assert calibrate(floor, students).widths == (2, 4, 8)  # the run of the students has no measurement
    stats.save(tmp_path / "before")
    assert calibrate(floor, students).widths == (2, 4, 8)
    dataclasses.replace(stats, fingerprint=teacher_fingerprint(other.model, HOOK)).save(tmp_path / "before")
    message = "the students in .*before have other weights of the teacher .* differ by 0"
    for use in (lambda: calibrate(floor, students), lambda: diagnose(students[0], floor)):
        with pytest.raises(InputError, match=message):
            use()
    assert stats.fingerprint is not None
    other_ids = dataclasses.replace(stats.fingerprint, ids=stats.fingerprint.ids + 1)
    dataclasses.replace(stats, fingerprint=other_ids).save(tmp_path / "before")
    with pytest.raises(InputError, match="they cannot be compared on the same tokens, since their vocabularies,"):
        calibrate(floor, students)
    parts = load_run_parts(tmp_path / "now", students=tmp_path / "before")
    assert parts.students == ()
    assert "have other weights of the teacher" in parts.unreadable[0]
