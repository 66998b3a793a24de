"""Compressed sparse rows (CSR) of torch."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_sparse() -> Iterator[None]:
    """Suppress torch's warning that CSR tensors are in beta; the tests compare them with dense ones."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse", category=UserWarning)
        yield
