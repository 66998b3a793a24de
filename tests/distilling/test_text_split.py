"""The sequences of a training: their order in each pass over the text, and the held-out end of the text."""

from typing import Any

import torch

from tl_distill_floor.distilling.training.config import DistillConfig
from tl_distill_floor.distilling.training.text_split import read_text_split
from tl_distill_floor.sources.teachers import load_teacher


def test_the_end_of_the_text_is_held_out(bridge: Any, ids: torch.Tensor) -> None:
    """20 training sequences are a nine tenth of 22; one more is read, and a tenth of these 23 is held out."""
    split = read_text_split(load_teacher(bridge), ids, None, DistillConfig(n_tokens=20 * 32, batch_size=4))
    assert torch.equal(split.train, ids[:21])
    assert torch.equal(split.heldout, ids[21:23])
    few = DistillConfig(n_tokens=20 * 32, n_heldout_tokens=32, batch_size=4)
    assert torch.equal(read_text_split(load_teacher(bridge), ids, None, few).heldout, ids[22:23])


def test_each_pass_over_the_text_has_another_order(bridge: Any, ids: torch.Tensor) -> None:
    """Batches of 4 from 10 sequences: the third batch ends the first pass and begins the second one."""
    config = DistillConfig(n_tokens=320, batch_size=4, seed=5)
    split = read_text_split(load_teacher(bridge), ids[:10], ids[10:12], config)
    rows = torch.cat([split.batch(step, config) for step in range(5)])
    first, second = ([ids.tolist().index(row) for row in part.tolist()] for part in (rows[:10], rows[10:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    other_seed = DistillConfig(n_tokens=320, batch_size=4, seed=6)
    assert not torch.equal(split.batch(0, other_seed), rows[:4])


def test_the_number_of_steps_is_rounded(bridge: Any, ids: torch.Tensor) -> None:
    config = DistillConfig(n_tokens=320, batch_size=4)
    split = read_text_split(load_teacher(bridge), ids[:10], ids[10:12], config)
    # A step has 4 · 32 = 128 tokens, and 320 tokens are 2.5 steps, which round to the even number.
    sizes = {320: 2, 330: 3, 100: 1, 1: 1}
    assert {n: split.n_steps(DistillConfig(n_tokens=n, batch_size=4)) for n in sizes} == sizes
