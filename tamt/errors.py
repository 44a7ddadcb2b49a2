"""The errors that a user can cause and mend."""


class UserError(Exception):
    """Something in the request or its input is wrong.

    The message is one sentence: what is wrong, where, what to do. The command line prints it and exits with code 2,
    without a traceback; from Python it is an ordinary exception.
    """
