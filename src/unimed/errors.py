"""The one exception for input that a user can mend, and the exit code that tells of it."""

BAD_INPUT = 78
"""sysexits.h calls it EX_CONFIG: nobody needs to try again before something was mended."""


class InputError(ValueError):
    """Input that cannot be used; the message is one sentence: what was expected, what was found, and where."""
