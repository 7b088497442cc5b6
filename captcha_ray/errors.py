"""Define the errors that jobs print as one sentence, and the checks that raise them."""

import difflib
import errno
import os

RESUME_HINT = "the same command goes on (a training: with --resume)"
"""Tells the user how to go on after work was cut short."""


class InputError(Exception):
    """An error that only the user can mend. Jobs print its sentence and exit with status 2."""


class JobError(Exception):
    """A failure that one sentence explains. Jobs print it and exit with status 1."""


def check(ok: bool, sentence: str) -> None:
    """Raise InputError(sentence) unless `ok`."""
    if not ok:
        raise InputError(sentence)


def check_keys(given: list[str], known: list[str], what: str) -> None:
    """Raise InputError for the first unknown key, naming the nearest known one.

    Args:
        given: Keys to check.
        known: Keys that are allowed.
        what: Name of such a key in the sentence.
    """
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
            raise InputError(f"unknown {what} {key!r}; {hint}")


def full_disk(error: BaseException) -> str:
    """Return a sentence if a full disk caused the error, as Ray reports what a worker raised; else ""."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            named = cause.filename and "\n" not in str(cause.filename)  # Ray Data puts a page of advice there
            where = cause.filename if named else os.strerror(cause.errno)
            return f"the disk is full: {where}; make room, and {RESUME_HINT}"
        cause = getattr(cause, "cause", None) or cause.__cause__
    return ""
