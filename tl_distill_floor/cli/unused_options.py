"""Refuse options that have no effect on what a command is asked to do."""

from collections.abc import Iterable

import typer
from typer.core import TyperCommand

from tl_distill_floor.errors import InputError


class CommandWithContext(TyperCommand):
    """A command whose context is of the class that a `ctx: typer.Context` is annotated with."""

    context_class = typer.Context


def is_given(ctx: typer.Context, name: str) -> bool:
    """Return whether a parameter of a command is given on the command line."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_unused(
    ctx: typer.Context, names: Iterable[str], where: str, instead: str = "", *, also_defaults: bool = False
) -> None:
    """Raise an InputError if some options are given that have no effect.

    Args:
        ctx: context of the command.
        names: parameters of the command that have no effect.
        where: where they have none, and why, such as "without --teacher, which is measured there".
        instead: what to type to give them an effect; nothing if they can only be left out.
        also_defaults: refuse also an option that is given with its default value, since another value is used.

    Raises:
        InputError: one of the options is given on the command line.
    """
    parameters = {parameter.name: parameter for parameter in ctx.command.params}
    given = []
    for name in names:
        parameter, value = parameters[name], ctx.params[name]
        if is_given(ctx, name) and (also_defaults or value != parameter.get_default(ctx)):
            # Of a flag such as --head/--no-head, the second name is that of False.
            given.append((parameter.secondary_opts if value is False else parameter.opts)[0])
    if given:
        verb, them = ("has", "it") if len(given) == 1 else ("have", "them")
        advice = f"{instead}, or leave {them} out" if instead else f"leave {them} out"
        names_given = " and ".join(filter(None, [", ".join(given[:-1]), given[-1]]))
        raise InputError(f"{names_given} {verb} no effect {where}; {advice}")
