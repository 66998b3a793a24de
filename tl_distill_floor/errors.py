"""The exception for unusable input, how messages name options, and checks of options: choices and integers."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from numbers import Integral, Real
from typing import Any, get_args

PARAMETERS: dict[str, str] = {
    "--batch-size": "batch_size",
    "--context": "context",
    "--context-size": "context_size",
    "--cost": "cost",
    "--depth": "depth",
    "--device": "device",
    "--divisor": "divisor",
    "--dtype": "dtype",
    "--feature-tokens": "n_feature_tokens",
    "--force": "force=True",
    "--heldout": "heldout",
    "--k": "k",
    "--label": "label= or labels",
    "--layer": "layer",
    "--loss": "loss",
    "--lr": "lr",
    "--max-loss": "max_loss",
    "--max-memory": "max_memory",
    "--max-params": "max_params",
    "--max-width": "max_width",
    "--min-count": "min_count",
    "--min-speedup": "min_speedup",
    "--no-head": "head=False",
    "--out": "out",
    "--resume": "resume=True",
    "--sae": "sae",
    "--sae-format": "load_sae's sae_format",
    "--shard": "shard=True",
    "--sparse": "k",
    "--start": "start",
    "--steps": "steps",
    "--text": "text",
    "--tokens": "n_tokens",
    "--tokens COLUMN": "tokens=COLUMN",
    "--tokens-per-step": "tokens_per_step",
    "--unit": "unit",
    "--width": "width",
    "--widths": "widths",
}
"""Parameter in Python of each option that a message names; for a flag, with its value."""
_COMMAND = r"tl-floor (?:(?!; |, |\)| \().)*"
_WORD = r"(?:bits|bf16|cpu|energy|fisher|fp32|random|svd|teacher-slice)\b"
_VALUE = rf"\d+(?:,\d+)+|\d+(?:\.\d+)?(?:e[+-]?\d+)?|'[^']*'|{_WORD}"
_OPTION = re.compile(rf"{_COMMAND}|(?<![\w-])(--[a-z][\w-]*(?: COLUMN)?)(?: ({_VALUE}))?")
"""A command to type, or an option with the value that follows it: numbers, a JSON object or a word."""
_is_command: ContextVar[bool] = ContextVar("is_command", default=False)


@contextlib.contextmanager
def options_of_command_line() -> Iterator[None]:
    """Let messages name the options of the command line, such as --layer 3; otherwise they name layer=3."""
    token = _is_command.set(True)
    try:
        yield
    finally:
        _is_command.reset(token)


def name_options(text: str) -> str:
    """Return a text that names options of the command line; outside of a command, with parameters in their place.

    Options of a command to type, and of other programs, stay as they are.

    Example:
        >>> name_options("set --layer 3 or --no-head, or use --cost energy with more --tokens")
        'set layer=3 or head=False, or use cost="energy" with more n_tokens='
        >>> name_options("try --widths 64,128, or tl-floor distill --widths 64")
        'try widths=[64, 128], or tl-floor distill --widths 64'
    """
    return text if _is_command.get() else _OPTION.sub(_as_parameter, text)


def _as_parameter(match: re.Match[str]) -> str:
    """Return the parameter of an option that was found, with the value that follows it; or what was found."""
    option, value = match.groups(default="")
    parameter = PARAMETERS.get(option)
    if parameter is None:
        return match[0]
    if parameter.endswith(("=True", "=False", "=COLUMN")):
        return match[0].replace(option, parameter)
    if value[:1].isalpha():
        value = f'"{value}"'
    elif value[:1].isdigit() and "," in value:
        value = f"[{value.replace(',', ', ')}]"
    return f"{parameter}={value}"


class InputError(ValueError):
    """Input that cannot be used.

    The message is one sentence: what was given, what was expected, what to type. The command line prints it and ends
    with exit status 2. In the code it names options as the command line does; see `name_options`.
    """

    def __str__(self) -> str:
        """Return the message with the names that its reader types."""
        return name_options(super().__str__())


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
