"""Checks that a teacher, an SAE and a text belong together."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Array2D, Dataset, Features

from tests.helpers.models import CONTEXT, HOOK, PROSE, VOCABULARY, WIDTH
from tests.helpers.trainers import arguments
from tests.helpers.type_checks import without_type_checks
from tl_distill_floor import DistillationTrainer, InputError, head_floor, load_sae, load_teacher, measure, probe
from tl_distill_floor.measuring.hooks import activation_reader
from tl_distill_floor.measuring.job import AttachedSae


def test_rejects_ids_beyond_the_vocabulary(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    with pytest.raises(InputError, match="token id 5300, the teacher's vocabulary ends at 299"):
        measure(bridge, sae, ids + 5001)


@pytest.mark.parametrize("n_added", [30, 0])
def test_the_vocabulary_is_that_of_the_embedding(
    n_added: int, teacher_dir: Path, sae: Any, ids: torch.Tensor, tmp_path: Path
) -> None:
    """TransformerBridge states that of a tokenizer which is set later: with tokens of its own, or of a padded model."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain = AutoModelForCausalLM.from_pretrained(teacher_dir)
    if not n_added:
        plain.resize_token_embeddings(VOCABULARY + 20)
    plain.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(teacher_dir)
    tokenizer.save_pretrained(tmp_path)
    model = TransformerBridge.boot_transformers(str(tmp_path), device="cpu")
    vocabulary = int(model.cfg.d_vocab)
    expected = measure(model, sae, [PROSE * 4], n_codes=0, force=True)
    tokenizer.add_tokens([f"<x{number}>" for number in range(n_added)])
    tokenizer.save_pretrained(tmp_path)
    model.tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert model.cfg.d_vocab != vocabulary
    stats = measure(model, sae, [PROSE * 4], n_codes=0, force=True)
    assert stats.n_tokens == expected.n_tokens
    np.testing.assert_array_equal(stats.cost, expected.cost)
    assert head_floor(model, ids, widths=[4], steps=2).vocab_size == vocabulary
    with pytest.raises(InputError, match=f"the teacher's vocabulary ends at {vocabulary - 1};"):
        measure(model, sae, torch.full((4, CONTEXT), vocabulary))
    if n_added:
        labelled = [{"text": f"{PROSE[: 20 + i]} <x3>", "label": "ab"[i % 2]} for i in range(20)]
        with pytest.raises(InputError, match=f"holds token id {vocabulary + 3}, the teacher's vocabulary ends"):
            probe(model, HOOK, labelled, label="label")
    DistillationTrainer(args=arguments(tmp_path), teacher=model, width=16, train_dataset=[{"input_ids": ids[0]}])


def named_after_module(sae: Any) -> Any:
    """Return the SAE as SAELens trains it on a model of transformers, with a module as hook point."""
    renamed = copy.deepcopy(sae)
    renamed.cfg.metadata.hook_name = "gpt_neox.layers.1"
    return renamed


def test_a_module_as_hook_point_is_that_of_its_output(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    stats, expected = measure(bridge, named_after_module(sae), ids), measure(bridge, sae, ids)
    assert stats.hook_name == HOOK
    assert (stats.firing_count == expected.firing_count).all()


def test_cached_activations_may_have_the_name_of_a_module(bridge: Any, sae: Any, ids: Any, tmp_path: Path) -> None:
    with activation_reader(bridge, [HOOK]) as read:
        (activation,) = read(ids)
    features = Features({"gpt_neox.layers.1": Array2D(tuple(activation.shape[1:]), "float32")})
    Dataset.from_dict({"gpt_neox.layers.1": activation.numpy()}, features=features).save_to_disk(tmp_path)
    stats = measure(None, named_after_module(sae), tmp_path, force=True)
    codes = sae.encode(activation[:, 1:].flatten(0, 1))
    assert (stats.firing_count == (codes != 0).sum(0).numpy()).all()
    assert stats.n_tokens == len(codes)


def test_warns_of_special_tokens_that_are_not_known(bridge: Any, sae: Any, ids: Any, monkeypatch: Any) -> None:
    """Token 0 is in some sequences again. Without a tokenizer it counts as any other."""
    warning = "special tokens are not known: only first positions are left out"
    known = measure(bridge, sae, ids, cost="energy")
    assert not any(warning in text for text in known.warnings)
    monkeypatch.setattr(bridge, "tokenizer", None)
    stats = measure(bridge, sae, ids, cost="energy")
    assert any(warning in text for text in stats.warnings)
    assert stats.n_tokens == ids[:, 1:].numel() > known.n_tokens


def test_rejects_activations_without_sequences(sae: Any) -> None:
    """Some models flatten the tokens of a batch before a module, whose hook point then has no positions."""
    attached = AttachedSae(load_sae(sae), HOOK, "digest")
    assert attached.check_width(torch.zeros(2, 3, WIDTH)).shape == (2, 3, WIDTH)
    with pytest.raises(InputError, match=r"has activations of shape \[6, 24\] without sequences"):
        attached.check_width(torch.zeros(6, WIDTH))


def test_rejects_activations_that_are_not_finite(teacher_dir: Path, sae: Any, ids: torch.Tensor) -> None:
    teacher = load_teacher(str(teacher_dir))
    with torch.no_grad():
        next(teacher.model.parameters())[5] = float("nan")
    with pytest.raises(InputError, match="NaN or Inf"):
        measure(teacher.model, sae, ids)


def test_rejects_an_sae_of_another_layer_width_or_model(
    bridge: Any, sae: Any, ids: torch.Tensor, sae_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="not layer 2; set layer=1"):
        measure(bridge, sae, ids, layer=2)
    from sae_lens import StandardSAE, StandardSAEConfig

    wide = StandardSAE(StandardSAEConfig(d_in=WIDTH + 1, d_sae=40))
    with pytest.raises(InputError, match=f"has {WIDTH} dimensions, the SAE .* reads {WIDTH + 1}"):
        measure(bridge, wide, ids, layer=1)
    config = json.loads((sae_dir / "cfg.json").read_text())
    config["metadata"]["model_name"] = "gpt2-small"
    for file in sae_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    assert "was trained on gpt2-small" in measure(bridge, tmp_path, ids).warnings[0]
    with pytest.raises(InputError, match="was trained on gpt2-small, the teacher is tiny-prose"):
        measure("tiny-prose", tmp_path, ids)


def test_looks_up_the_sae_of_a_loaded_teacher_by_its_name(ids: torch.Tensor, teacher_dir: Path) -> None:
    assert measure(load_teacher("tiny-prose"), None, ids).sae_name == "tiny-prose-sae"
    with pytest.raises(
        InputError, match=r"no SAE is known for .*tiny-neox at layer 1; train one with tl-floor.*--no-sae"
    ):
        measure(load_teacher(teacher_dir), None, ids, layer=1)


def test_asks_for_an_sae_of_a_model_in_memory_without_a_known_name(
    ids: torch.Tensor, bridge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge.cfg, "model_name", "custom")
    for model in (bridge, load_teacher(bridge)):
        with pytest.raises(InputError, match="no SAE was named; give one with sae="):
            measure(model, None, ids, layer=1)


def test_a_measurement_is_not_resumed_with_other_weights(
    teacher_dir: Path, sae: Any, ids: torch.Tensor, tmp_path: Path
) -> None:
    teacher, checkpoint = load_teacher(str(teacher_dir)), tmp_path / "checkpoint.safetensors"
    measured = measure(teacher, sae, ids, cost="energy", checkpoint=checkpoint)
    again = measure(teacher, sae, ids, cost="energy", checkpoint=checkpoint, resume=True)
    assert again.sum_act.tolist() == measured.sum_act.tolist()
    with torch.no_grad():
        next(teacher.model.parameters()).mul_(1.5)
    with pytest.raises(InputError, match="is of another measurement"):
        measure(teacher, sae, ids, cost="energy", checkpoint=checkpoint, resume=True)


def test_a_model_without_weights_is_refused() -> None:
    import copy

    model = copy.deepcopy(load_teacher("tiny-prose").model).to("meta")
    with pytest.raises(InputError, match="weights are on the meta device, without values"):
        load_teacher(model)


def test_numbers_of_other_types_are_read_or_refused(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    expected = measure(bridge, sae, ids, cost="energy", n_tokens=500, batch_size=4)
    with without_type_checks():
        measured = measure(bridge, sae, ids, cost="energy", n_tokens=5e2, batch_size=np.int64(4))  # type: ignore[arg-type]
        for options, message in (
            ({"n_tokens": "1000"}, "n_tokens must be an integer, got '1000'"),
            ({"batch_size": 2.5}, "batch_size must be an integer, got 2.5"),
            ({"layer": "1"}, "layer must be an integer, got '1'"),
        ):
            with pytest.raises(InputError, match=message):
                measure(bridge, sae, ids, **options)
    assert measured.sum_act.tolist() == expected.sum_act.tolist()


def test_hooks_of_the_user_are_named(teacher_dir: Path, sae: Any, ids: torch.Tensor) -> None:
    model = load_teacher(str(teacher_dir)).model
    assert not any("has hooks" in warning for warning in measure(model, sae, ids, cost="energy").warnings)
    model.add_hook("blocks.0.hook_resid_post", lambda value, hook: 2 * value, is_permanent=True)  # type: ignore[attr-defined]
    (warning,) = (w for w in measure(model, sae, ids, cost="energy", force=True).warnings if "has hooks" in w)
    assert "reset_hooks(including_permanent=True)" in warning


def test_hooks_of_the_sae_are_named(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    steered = copy.deepcopy(sae)
    steered.add_hook("hook_sae_acts_post", lambda codes, hook: 2 * codes)
    stats = measure(bridge, steered, ids, cost="energy")
    assert sum("the SAE has hooks at hook_sae_acts_post" in warning for warning in stats.warnings) == 1
    steered.reset_hooks()
    assert not any("hooks" in warning for warning in measure(bridge, steered, ids, cost="energy").warnings)


def test_first_tokens_are_no_padding_for_a_hooked_transformer(sae: Any, ids: torch.Tensor, tokenizer: Any) -> None:
    """TransformerLens hides them if the tokenizer pads on the left with its beginning-of-sequence token."""
    import copy

    from transformer_lens import HookedTransformer, HookedTransformerConfig

    shape = {"n_layers": 2, "d_model": WIDTH, "n_ctx": 64, "d_head": 8, "n_heads": 3, "d_vocab": 300, "act_fn": "gelu"}
    cfg = HookedTransformerConfig(**shape, default_prepend_bos=False, seed=0)  # type: ignore[arg-type]
    left = copy.deepcopy(tokenizer)
    left.pad_token, left.padding_side = left.bos_token, "left"
    model = HookedTransformer(cfg)
    model.tokenizer = left
    with activation_reader(model, [HOOK]) as read:
        (activation,) = read(ids[:2])
    assert left.padding_side == "left"
    padded = model.run_with_cache(ids[:2])[1][HOOK]
    left.padding_side = "right"
    torch.testing.assert_close(activation, model.run_with_cache(ids[:2])[1][HOOK])
    assert not torch.allclose(activation, padded, atol=0.01)
