"""The one exception for input that a user can mend, and the exit codes that mean something."""

STOPPED = 75
"""A run that was told to stop and goes on where it was when it is started again: EX_TEMPFAIL of sysexits.h."""

BAD_INPUT = 78
"""sysexits.h calls it EX_CONFIG: nobody needs to try again before something was mended."""


class InputError(ValueError):
    """Input that cannot be used; the message is one sentence: what was expected, what was found, and where."""
