"""The errors that a person can mend: the command line prints them as one line, without a traceback."""


class UserError(ValueError):
    """Names what was given, what came and what was expected."""
