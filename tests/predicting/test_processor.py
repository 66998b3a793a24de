"""Tests of threads that work on different models."""

from contextlib import nullcontext
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.helpers.type_checks import without_type_checks
from tl_distill_floor.predicting.measured_floors import training_device
from tl_distill_floor.predicting.processor import product_dtype, threads_for

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    """Give torch two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_items_are_worked_on_at_the_same_time_with_a_share_of_the_threads(two_threads: None) -> None:
    both, n_threads = Barrier(2, timeout=60), {}

    def work(item: int) -> None:
        both.wait()  # one call alone would wait for ever
        n_threads[item] = torch.get_num_threads()

    with threads_for(2, CPU) as for_each:
        for_each(work, [0, 1])
        for_each(work, [2, 3])
        assert torch.get_num_threads() == 2  # of the caller
    assert n_threads == dict.fromkeys(range(4), 1)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("n_items", "device"), [(1, CPU), (2, torch.device("meta"))])
def test_one_item_or_another_device_uses_no_other_thread(two_threads: None, n_items: int, device: torch.device) -> None:
    n_threads: list[int] = []
    with threads_for(n_items, device) as for_each:
        for_each(lambda _: n_threads.append(torch.get_num_threads()), range(n_items))
    assert n_threads == [2] * n_items


def test_an_error_in_a_thread_is_raised_and_threads_are_restored(two_threads: None) -> None:
    def fail(item: int) -> None:
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"), threads_for(2, CPU) as for_each:
        for_each(fail, [0, 1])
    assert torch.get_num_threads() == 2


def test_products_are_in_half_precision_where_the_processor_has_units_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, dtype in (
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert product_dtype(CPU) == dtype


def test_products_on_a_gpu_are_in_half_precision_if_it_has_units_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    for has_units, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        # A T4 multiplies bf16 matrices too, by emulation, which is slower than fp32.
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_units: has)
        assert product_dtype(torch.device("cuda:0")) == dtype
    assert product_dtype(torch.device("mps")) == torch.float32


def test_students_are_trained_where_the_sae_is_unless_another_device_is_named() -> None:
    attached: Any = SimpleNamespace(sae=SimpleNamespace(device=torch.device("cuda:1")))
    with without_type_checks():
        assert training_device(attached, "cpu") == "cuda:1"
        assert training_device(attached, "cuda:0") == "cuda:0"
