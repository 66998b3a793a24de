"""One state of torch and NumPy in which everything is computed, whatever the caller has set."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from tl_distill_floor.sources.process_memory import keep_freed_memory

COMPILER = "torch._dynamo"
"""Module of `torch.compile`; as long as nothing has imported it, no model is compiled."""


@contextmanager
def neutral_torch_state() -> Iterator[None]:
    """Compute as in a new Python process during the context, then restore the caller's settings.

    Neutral are: the default dtype and device, autocast, inference mode, grad mode, deterministic algorithms, the
    precision of matrix products, NumPy's treatment of floating-point errors, and `torch.compile`, whose models do not
    see new hooks and run as they were before. Each of them would change results, or end a measurement with an error of
    torch. Freed memory stays in the process until the end, which saves time; see
    `keep_freed_memory`. Every public function that computes with torch enters this context, also as a decorator.

    Example:
        >>> import torch
        >>> with torch.inference_mode(), neutral_torch_state():
        ...     torch.is_inference_mode_enabled()
        False
    """
    import torch

    with ExitStack() as stack:
        stack.enter_context(keep_freed_memory())
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.are_deterministic_algorithms_enabled():
            warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
            stack.callback(torch.use_deterministic_algorithms, True, warn_only=warn_only)
            torch.use_deterministic_algorithms(False)
        stack.enter_context(_full_matmul_precision())
        for device_type in ("cpu", *_accelerators()):
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        if COMPILER in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(True))
        yield


@contextmanager
def _full_matmul_precision() -> Iterator[None]:
    """Compute products of fp32 matrices in fp32 during the context, then restore the precision of every backend."""
    import torch

    of_cpus = torch.backends.mkldnn
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn), (of_cpus.matmul, of_cpus)  # type: ignore[attr-defined]
    of_backends = [(matmul, matmul.fp32_precision, general.fp32_precision) for matmul, general in backends]
    if all(of_matmul in ("none", "ieee") for _, of_matmul, _ in of_backends):
        yield
        return
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch has no name for a precision that was set for one backend
        precision = "highest"
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        for matmul, of_matmul, of_backend in of_backends:
            matmul.fp32_precision = "none" if of_matmul == of_backend else of_matmul  # "none": that of the backend


@contextmanager
def quiet_sparse() -> Iterator[None]:
    """Suppress torch's warning that compressed sparse rows are in beta; the tests compare them with dense tensors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse", category=UserWarning)
        yield


def without_compilation(model: Any) -> Any:
    """Return the model that `torch.compile` has wrapped; any other object as it is."""
    compiler = sys.modules.get(COMPILER)
    return model._orig_mod if compiler and isinstance(model, compiler.OptimizedModule) else model


def _accelerators() -> list[str]:
    """Return the type of the machine's accelerator, such as "cuda"; an empty list if it has none."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return [] if accelerator is None else [accelerator.type]
