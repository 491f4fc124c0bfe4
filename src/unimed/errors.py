"""The one exception for input that a user can mend."""


class InputError(ValueError):
    """Input that cannot be used; the message is one sentence: what was expected, what was found, and where."""
