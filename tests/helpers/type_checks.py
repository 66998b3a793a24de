"""Type checks of the package during the tests: make them cheap, and switch them off."""

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning
from jaxtyping import _import_hook

_CONF: Any = BeartypeConf(violation_type=jaxtyping.TypeCheckError)


def make_type_checks_cheap() -> None:
    """Check functions without array shapes by beartype alone, which takes 1 µs a call; jaxtyping takes 30 µs.

    The checks of a function are made at its first call, since many functions are not called in one process.

    Call this before the package is imported. jaxtyping decorates every function of the package as it is imported.
    """
    _keep_bytecode_of_libraries()
    jaxtyped = jaxtyping.jaxtyped

    def choose(*, typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
        with_shapes = jaxtyped(typechecker=typechecker)

        def add_checks(function: Callable[..., Any]) -> Callable[..., Any]:
            return with_shapes(function) if _has_shapes(function) else _with_beartype(function)

        def decorate(decorated: Any) -> Any:
            return with_shapes(decorated) if isinstance(decorated, type) else _at_first_call(decorated, add_checks)

        return decorate

    jaxtyping.jaxtyped = choose


def _keep_bytecode_of_libraries() -> None:
    """Let the libraries that the package imports be loaded from their own bytecode.

    jaxtyping gives them, too, bytecode of its own, which has to be compiled first.
    """
    path_of_jaxtyping: Callable[..., str] | None = getattr(_import_hook, "_optimized_cache_from_source", None)
    if path_of_jaxtyping is None:
        return  # another version

    def path(typechecker: str, source: str, *args: Any, **kwargs: Any) -> str:
        if "tl_distill_floor" in source.split(os.sep):
            return path_of_jaxtyping(typechecker, source, *args, **kwargs)
        return importlib.util.cache_from_source(source, *args, **kwargs)

    _import_hook._optimized_cache_from_source = path


def _has_shapes(function: Callable[..., Any]) -> bool:
    """Return whether a function's annotations name array shapes, or are strings, which may do so."""
    annotations = function.__annotations__.values()
    return any(isinstance(annotation, str) or "jaxtyping" in repr(annotation) for annotation in annotations)


def _with_beartype(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose types are checked."""
    with warnings.catch_warnings():
        # Classes of other libraries (datasets) have bases that beartype calls deprecated.
        warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)
        return beartype(conf=_CONF)(function)


def _at_first_call(
    function: Callable[..., Any], add_checks: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Callable[..., Any]:
    """Return a function to which the checks are added at its first call, unless jaxtyping is disabled."""
    checked: Callable[..., Any] | None = None

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        if checked is None:
            checked = add_checks(function)
        return checked(*args, **kwargs)

    return call


@contextmanager
def without_type_checks() -> Iterator[None]:
    """Call functions without type checks during the context, as they are called outside the tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
