"""Processes that have different inputs, or of which one fails, all end with one sentence."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from tests.helpers.forked_processes import run_in_processes
from tl_distill_floor.distilling.training.agreement import fail_together, gather_texts, of_first_process
from tl_distill_floor.distilling.training.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.training.distill import distill_students
from tl_distill_floor.errors import InputError

CONFIG = DistillConfig(n_tokens=32 * 8, batch_size=8, n_evaluations=1, n_heldout_tokens=128, early_stop=False)


def message_of(teacher: Path, ids: torch.Tensor, **changes: Any) -> str:
    """Return the message with which a training of one step is refused; empty if it is not.

    Args:
        teacher: directory of the teacher.
        ids: training text.
        changes: a student, the settings and options of `distill_students`.
    """
    spec, config = changes.pop("spec", StudentSpec(8)), changes.pop("config", CONFIG)
    try:
        distill_students(str(teacher), [spec], ids, config=config, **changes)
    except InputError as error:
        return str(error)
    return ""


def test_all_processes_name_what_differs(teacher_dir: Path, ids: torch.Tensor, tmp_path: Path) -> None:
    other = ids.clone()
    other[3, 5] += 1
    slower = dataclasses.replace(CONFIG, lr=1e-3)

    def messages(rank: int) -> list[str]:
        return [
            message_of(teacher_dir, other if rank else ids),
            message_of(teacher_dir, ids, spec=StudentSpec(8 + 8 * rank), config=slower if rank else CONFIG),
            message_of(teacher_dir, ids[:8] if rank else ids),
            message_of(tmp_path / "missing" if rank else teacher_dir, ids, shard=True),
        ]

    first, second = run_in_processes(2, messages)
    advice = "; start all of them with the same options and the same files"
    assert first[0] == second[0] == f"the processes of this run have different training text{advice}"
    assert first[1] == second[1] == f"the processes of this run have different students and settings{advice}"
    assert "7 training sequences of 32 tokens were read from" in second[2]
    assert first[2] == f"process 1 of this run: {second[2]}"
    assert "missing" in second[3]
    assert first[3] == f"process 1 of this run: {second[3]}"


def test_processes_exchange_text_of_different_lengths() -> None:
    def exchange(rank: int) -> list[list[str] | str]:
        accelerator = Accelerator(cpu=True)
        texts = ["ein Wort", "", "‖ 3"]
        return [
            gather_texts(accelerator, texts[rank]),
            gather_texts(accelerator, ""),
            of_first_process(accelerator, texts[rank]),
        ]

    assert run_in_processes(3, exchange) == [[["ein Wort", "", "‖ 3"], ["", "", ""], "ein Wort"]] * 3


def test_an_error_of_the_code_is_named_in_the_other_processes() -> None:
    def fail(rank: int) -> str:
        try:
            with fail_together(Accelerator(cpu=True)):
                return f"{1 // rank:.0f}"
        except ZeroDivisionError:
            return "own error"

    assert run_in_processes(2, fail) == [
        "own error",
        "process 0 of this run: ZeroDivisionError integer division or modulo by zero",
    ]
