"""The activations that are collected are those of the model."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.helpers.models import HOOK, save_family
from tests.helpers.probes import labelled_rows
from tl_distill_floor.measuring.hooks import activation_reader
from tl_distill_floor.probing.activations import collect_activations
from tl_distill_floor.probing.examples import MEAN_POSITION, tokenize_examples
from tl_distill_floor.sources.labels import load_labels
from tl_distill_floor.sources.teachers import load_teacher


def test_batched_activations_match_those_of_single_texts(bridge: Any, tokenizer: Any) -> None:
    labelled = load_labels(labelled_rows(), ["length", "half"])
    for pool in ("mean", "last"):
        examples = tokenize_examples(labelled, tokenizer, pool=pool, context_size=24)
        collected = collect_activations(bridge, HOOK, examples, batch_size=5)["activation"]
        for activations, task in zip(collected, examples.tasks, strict=True):
            for i in range(0, len(task), 7):
                ids = examples.ids[task.text[i]]
                with activation_reader(bridge, [HOOK]) as read:
                    single = read(ids[None])[0][0]
                is_mean = task.position[i] == MEAN_POSITION
                expected = single[1:].mean(0) if is_mean else single[task.position[i]]
                np.testing.assert_allclose(activations[i], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_padding_does_not_change_a_model_that_attends_to_later_tokens(tmp_path: Path, tokenizer: Any) -> None:
    """A TransformerBridge says of BERT that it is causal."""
    model = load_teacher(save_family(tmp_path, tokenizer, "Bert", head="ForMaskedLM")).model
    examples = tokenize_examples(load_labels(labelled_rows(), ["half"]), tokenizer, context_size=24)
    assert len({len(ids) for ids in examples.ids}) > 1
    (activations,) = collect_activations(model, "blocks.1.hook_out", examples, batch_size=5)["activation"]
    with activation_reader(model, ["blocks.1.hook_out"]) as read:
        expected = [read(examples.ids[text][None])[0][0, 1:].mean(0) for text in examples.tasks[0].text]
    np.testing.assert_allclose(activations, torch.stack(expected).numpy(), rtol=1e-4, atol=1e-5)


def test_special_tokens_are_not_in_the_mean(tokenizer: Any, bridge: Any) -> None:
    rows = [{"text": f"the cat{tokenizer.eos_token} sat {row}", "label": row % 2} for row in range(12)]
    only_special = {"text": tokenizer.eos_token * 2, "label": 0}
    examples = tokenize_examples(load_labels([*rows, only_special]), tokenizer)
    (activations,) = collect_activations(bridge, HOOK, examples)["activation"]
    assert 12 not in examples.tasks[0].text
    ids = examples.ids[0]
    is_special = ids == tokenizer.eos_token_id
    assert is_special.tolist()[0]
    assert int(is_special.sum()) == 2
    with activation_reader(bridge, [HOOK]) as read:
        single = read(ids[None])[0][0]
    (row,) = np.flatnonzero(examples.tasks[0].text == 0)
    np.testing.assert_allclose(activations[row], single[~is_special].mean(0).numpy(), rtol=1e-4, atol=1e-5)


def test_first_position_is_not_in_the_mean(tokenizer: Any, bridge: Any) -> None:
    examples = tokenize_examples(load_labels(labelled_rows(), ["length", "half"]), tokenizer, prepend_bos=False)
    activations = collect_activations(bridge, HOOK, examples)["activation"][1]
    with activation_reader(bridge, [HOOK]) as read:
        single = read(examples.ids[examples.tasks[1].text[0]][None])[0][0]
    np.testing.assert_allclose(activations[0], single[1:].mean(0).numpy(), rtol=1e-4, atol=1e-5)
