"""The one exception that the command line turns into a sentence and exit status 2."""


class InputError(ValueError):
    """What was given cannot be used. The message is one sentence: what was found, what was expected, what to type."""
