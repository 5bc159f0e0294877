"""Errors that a user can act on, each with the exit status of the command; and helpers that messages share.

Every message names the bad value, where it was found, and the remedy. Any other exception is a bug of ours and keeps
its traceback.
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable


class UserError(Exception):
    """Base of all errors that the command line prints as one message, without a traceback."""

    exit_status = 1


def user_error_in(error: BaseException) -> UserError | None:
    """The UserError that another error wraps, such as one of Ray's; None if there is none."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = getattr(cause, "cause", None) or cause.__cause__
    return cause


class ConfigError(UserError, ValueError):
    """A configuration that cannot be run; the message names the key, the bad value and the remedy."""

    exit_status = 2


class DataError(UserError, ValueError):
    """A source, folder or shard that cannot be used; the message names it and the remedy."""

    exit_status = 2


class DecodeError(UserError, ValueError):
    """An image that was readable at ingest and no longer is; the message names it."""


class RunFailed(UserError, RuntimeError):
    """A run that started and could not finish; the message says why, and where to look."""


class CheckpointError(RunFailed):
    """A checkpoint that cannot be used; the message names it and what is wrong."""


class CheckpointDamaged(CheckpointError):
    """A checkpoint that cannot be read, however often it is tried."""


class Diverged(RunFailed):
    """Losses or weights that are no longer finite."""


class Alarmed(RunFailed):
    """A run that an alarm has ended, because of the alarm's level in the settings."""


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM ended the command; not an `Exception`, so that no failure handler swallows it.

    `exit_status` is the shell's: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, number: int, remedy: str) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"interrupted by {name}; {remedy}")
        self.exit_status = 128 + number


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its class name if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def how_to_install(extra: str) -> str:
    """The command that installs an extra of pyproject.toml: the project is on no package index."""
    return f"run `pip install -c constraints.txt -e '.[{extra}]'` in the project's folder"


def did_you_mean(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """`; did you mean 'x'?` for the closest known name, or an empty string if none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""
