"""The errors that a user can cause and mend."""


class UserError(Exception):
    """Something in the request or its input is wrong.

    The message is one sentence: what is wrong, where, what to do. The command line prints it and exits with code 2,
    without a traceback; from Python it is an ordinary exception.
    """


def check_positive(**options: float | None) -> None:
    """Check that options that count something, if given, are 1 or more. Raises UserError, naming the first other."""
    for name, value in options.items():
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} must be 1 or more; raise it or leave it out")
