"""Type checks of the package during the tests: make them cheap, and switch them off."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning

_CONF: Any = BeartypeConf(violation_type=jaxtyping.TypeCheckError)


def make_type_checks_cheap() -> None:
    """Check functions without array shapes by beartype alone, which takes 1 µs a call; jaxtyping takes 30 µs.

    Call this before the package is imported. jaxtyping decorates every function of the package as it is imported.
    """
    jaxtyped = jaxtyping.jaxtyped

    def choose(*, typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
        def decorate(decorated: Any) -> Any:
            if isinstance(decorated, type) or _has_shapes(decorated):
                return jaxtyped(typechecker=typechecker)(decorated)
            return _with_beartype(decorated)

        return decorate

    jaxtyping.jaxtyped = choose


def _has_shapes(function: Callable[..., Any]) -> bool:
    """Return whether a function's annotations name array shapes, or are strings, which may do so."""
    annotations = function.__annotations__.values()
    return any(isinstance(annotation, str) or "jaxtyping" in repr(annotation) for annotation in annotations)


def _with_beartype(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose types are checked unless jaxtyping is disabled."""
    with warnings.catch_warnings():
        # Classes of other libraries (datasets) have bases that beartype calls deprecated.
        warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)
        checked = beartype(conf=_CONF)(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (function if jaxtyping.config.jaxtyping_disable else checked)(*args, **kwargs)

    return call


@contextmanager
def without_type_checks() -> Iterator[None]:
    """Call functions without type checks during the context, as they are called outside the tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
