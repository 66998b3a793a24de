"""The exception for unusable input, the reason of other errors, and checks of options: choices and integers."""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, get_args


class InputError(ValueError):
    """Input that cannot be used.

    The message is one sentence: what was given, what was expected, what to type. The command line prints it and ends
    with exit status 2.
    """


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none.

    A line that ends with a colon is continued by the next one, as in torch's errors of loading a state dict.

    Example:
        >>> reason_of(ValueError("no such file\\nTraceback")), reason_of(KeyError())
        ('no such file', 'KeyError')
        >>> reason_of(RuntimeError("Error(s) in loading state_dict:\\n\\tUnexpected key(s): b_gate. "))
        'Error(s) in loading state_dict: Unexpected key(s): b_gate'
    """
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]).rstrip(".") if lines[0].endswith(":") else lines[0]


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise an InputError unless `value` is one of the values of a `Literal`.

    Args:
        name: name of the option, for the message.
        value: the value given.
        choices: a `Literal` type.

    Example:
        >>> from typing import Literal
        >>> check_choice("dtype", "fp32", Literal["fp32", "bf16"])
    """
    allowed = get_args(choices)
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")


def as_integer(name: str, value: object, least: int | None = None) -> int:
    """Return a number of things as an int; a float without a fraction, such as 1e6, is one too.

    Args:
        name: name of the option, for the message.
        value: the value given.
        least: smallest value that is allowed; None for any.

    Raises:
        InputError: the value is not an integer, or it is smaller.

    Example:
        >>> as_integer("n_tokens", 2e5, 1)
        200000
    """
    if isinstance(value, bool) or not isinstance(value, Real) or float(value) != float(value) // 1:
        raise InputError(f"{name} must be an integer, got {value!r:.40}")
    number = int(float(value)) if not isinstance(value, Integral) else int(value)
    if least is not None and number < least:
        raise InputError(f"{name} must be at least {least}, got {number}")
    return number


def set_integers(record: object, least: Mapping[str, int | None]) -> None:
    """Replace numbers of a frozen dataclass by ints, when it is made.

    Args:
        record: the dataclass.
        least: for each field the smallest value that is allowed, None for any; a field that is None stays so.

    Raises:
        InputError: see `as_integer`.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Options:
        ...     n_tokens: int
        ...     def __post_init__(self):
        ...         set_integers(self, {"n_tokens": 1})
        >>> Options(1e3)
        Options(n_tokens=1000)
    """
    for name, smallest in least.items():
        value = getattr(record, name)
        if value is not None:
            object.__setattr__(record, name, as_integer(name, value, smallest))
