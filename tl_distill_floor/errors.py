"""The exception for unusable input, and a check for options with a fixed set of values."""

from typing import Any, get_args


class InputError(ValueError):
    """Input that cannot be used.

    The message is one sentence: what was given, what was expected, what to type. The command line prints it and ends
    with exit status 2.
    """


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
