"""The one error type: what is wrong, where, and what to do, in a sentence."""


class PosthocError(Exception):
    """Something the user can mend; the command line prints it without a traceback and exits with `exit_code`."""

    exit_code = 1


class StoppedError(PosthocError):
    """Asked to stop, by a signal; what was in hand is written."""

    exit_code = 143


class UsageError(PosthocError):
    """The request itself is wrong (an option's value, an impossible combination), whatever the input holds."""

    exit_code = 2
