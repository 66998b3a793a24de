"""torch's compressed sparse rows."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_sparse() -> Iterator[None]:
    """torch says once a process that its compressed sparse rows are in beta; the tests compare them with dense rows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse", category=UserWarning)
        yield
