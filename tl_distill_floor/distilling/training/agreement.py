"""Processes that train the same students: compare their inputs, and end together if one of them fails.

Processes exchange text and numbers as tensors of bytes. Nothing that is received is unpickled.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

import torch
from accelerate import Accelerator
from torch import Tensor

from tl_distill_floor.distilling.training.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.training.text_split import TextSplit
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.token_stream import digest_sequences


@contextmanager
def fail_together(accelerator: Accelerator) -> Iterator[None]:
    """Raise the error of one process in all of them, so that none waits for a process that has ended.

    All processes must enter this context.

    Args:
        accelerator: the processes.

    Raises:
        InputError: another process failed.
    """
    if accelerator.num_processes == 1:
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    messages = gather_texts(accelerator, _message_of(failure))
    if failure is not None:
        raise failure
    for rank, message in enumerate(messages):
        if message:
            raise InputError(message if message.startswith("process ") else f"process {rank} of this run: {message}")


def check_same_inputs(
    accelerator: Accelerator, split: TextSplit, specs: Sequence[StudentSpec], config: DistillConfig
) -> None:
    """Check that all processes have the same texts, students and settings, by digests of them.

    Args:
        accelerator: the processes.
        split: training and held-out sequences of this process.
        specs: the students.
        config: settings of the training.

    Raises:
        InputError: two processes differ.
    """
    if accelerator.num_processes == 1:
        return
    digests = {
        "training text": digest_sequences(split.train, 0),
        "held-out text": digest_sequences(split.heldout, 0),
        "students": _digest_of_text(repr([(spec, spec.target and spec.target.digest) for spec in specs])),
        "settings": _digest_of_text(repr(asdict(config))),
    }
    of_all = [json.loads(text) for text in gather_texts(accelerator, json.dumps(digests))]
    differing = [name for name in digests if len({of_one[name] for of_one in of_all}) > 1]
    if differing:
        raise InputError(
            f"the processes of this run have different {' and '.join(differing)}; start all of them with the same"
            " options and the same files"
        )


def gather_texts(accelerator: Accelerator, text: str) -> list[str]:
    """Return the texts that all processes give, in their order.

    Args:
        accelerator: the processes.
        text: the text of this process.
    """
    data = text.encode()
    sizes = _gather(accelerator, torch.tensor([len(data)])).tolist()
    if not any(sizes):
        return [""] * len(sizes)
    padded = torch.zeros(1, max(sizes), dtype=torch.uint8)
    padded[0, : len(data)] = torch.tensor(list(data), dtype=torch.uint8)
    rows = _gather(accelerator, padded)
    return [bytes(row[:size].tolist()).decode() for row, size in zip(rows, sizes, strict=True)]


def of_first_process(accelerator: Accelerator, text: str) -> str:
    """Return the text of the first process.

    Args:
        accelerator: the processes.
        text: the text of this process, which is ignored in the others.
    """
    return gather_texts(accelerator, text if accelerator.is_main_process else "")[0]


def _gather(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """Return the tensors of all processes, joined along the first axis, on the CPU."""
    gathered: Tensor = accelerator.gather(tensor.to(accelerator.device))
    return gathered.cpu()


def _message_of(failure: Exception | None) -> str:
    if failure is None:
        return ""
    message = (str(failure).strip().splitlines() or [""])[0]
    return message if isinstance(failure, InputError) and message else f"{type(failure).__name__} {message}".strip()


def _digest_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
