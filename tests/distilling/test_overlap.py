"""Held-out text that is trained on, and labels at the ends of documents."""

from typing import Any

import pytest
import torch

from tl_distill_floor.distilling.training.config import DistillConfig
from tl_distill_floor.distilling.training.distill import distill
from tl_distill_floor.distilling.training.losses import NO_LABEL
from tl_distill_floor.distilling.training.overlap import overlap, overlap_warnings
from tl_distill_floor.distilling.training.text_split import read_text_split, separator_ids
from tl_distill_floor.sources.teachers import load_teacher


def random_text(seed: int, n_tokens: int) -> torch.Tensor:
    """Return random token ids from 1 to 499 [token]."""
    return torch.randint(1, 500, (n_tokens,), generator=torch.Generator().manual_seed(seed))


def packed(text: torch.Tensor, context: int = 97) -> torch.Tensor:
    """Return sequences of `context` tokens, each beginning with token 0."""
    rows = text[: len(text) // (context - 1) * (context - 1)].view(-1, context - 1)
    return torch.cat([torch.zeros(len(rows), 1, dtype=torch.long), rows], dim=1)


def test_overlap_is_the_share_of_the_heldout_text_that_is_trained_on() -> None:
    """Half of the held-out text is in the training text, where its sequences begin at other tokens."""
    train, other = random_text(0, 96 * 40), random_text(1, 96 * 10)
    assert overlap(packed(train), packed(other)) == 0.0
    assert overlap(packed(train), packed(train[: 96 * 20])) == 1.0
    half = torch.cat([train[96 * 3 + 11 : 96 * 13 + 11], other])
    # Windows of 24 tokens that are divided between two training sequences are not found.
    assert 0.3 < overlap(packed(train), packed(half)) <= 0.5
    (warning,) = overlap_warnings(packed(train), packed(half))
    assert "% of the held-out text is also in the training text" in warning
    assert overlap_warnings(packed(train), packed(other)) == ()


@pytest.mark.parametrize("context", [2, 3, 9])
def test_overlap_of_sequences_shorter_than_a_window(context: int) -> None:
    train = torch.arange(1, 1 + 40 * (context - 1))
    assert overlap(packed(train, context), packed(train[: 4 * (context - 1)], context)) == 1.0
    assert overlap(packed(train, context), packed(train + 1000, context)) == 0.0


def test_result_names_an_overlap(bridge: Any, ids: torch.Tensor) -> None:
    config = DistillConfig(n_tokens=512, batch_size=8, n_evaluations=1, n_heldout_tokens=64, early_stop=False)
    assert "100% of the held-out" in distill(bridge, 8, ids, heldout=ids[:2], config=config).settings["warnings"][0]
    assert "warnings" not in distill(bridge, 8, ids[2:], heldout=ids[:2], config=config).settings


def test_labels_do_not_cross_the_end_of_a_document(bridge: Any, ids: torch.Tensor) -> None:
    """The label of a document's last token would be the separator; the last position has none either."""
    split = read_text_split(load_teacher(bridge), ids, None, DistillConfig(n_tokens=256, batch_size=4))
    row = torch.tensor([[0, 5, 6, 0, 7, 8]])
    assert separator_ids(bridge) == [0]
    assert split.labels(row).tolist() == [[5, 6, NO_LABEL, 7, 8, NO_LABEL]]


@pytest.mark.parametrize(("bos", "eos", "expected"), [(1, 2, [1]), (None, 2, [2]), (None, None, [])])
def test_separator_is_bos_or_else_eos(bos: int | None, eos: int | None, expected: list[int]) -> None:
    class Model:
        class tokenizer:  # noqa: N801
            bos_token_id, eos_token_id = bos, eos

        class cfg:  # noqa: N801
            d_vocab = 10

    from tests.helpers.type_checks import without_type_checks

    with without_type_checks():
        assert separator_ids(Model()) == expected  # type: ignore[arg-type]
