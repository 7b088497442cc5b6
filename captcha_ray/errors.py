"""What goes wrong, in sentences: errors that jobs print, and the checks that raise them."""

import difflib
import errno
import os

RESUME_HINT = "the same command goes on (a training: with --resume)"
"""What to do where work was cut short."""


class InputError(Exception):
    """Something only the user can mend, said in one sentence. Jobs print it and exit with status 2."""


class JobError(Exception):
    """Something that went wrong and can be said in one sentence. Jobs print it and exit with status 1."""


def check(ok: bool, sentence: str) -> None:
    """Raises InputError(sentence) unless `ok`."""
    if not ok:
        raise InputError(sentence)


def check_keys(given: list[str], known: list[str], what: str) -> None:
    """Raises InputError for the first unknown key, naming the nearest known one."""
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
            raise InputError(f"unknown {what} {key!r}; {hint}")


def full_disk(error: BaseException) -> str:
    """A sentence where that is what an error means, or what caused it (as Ray tells what a worker raised), else
    nothing."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            named = cause.filename and "\n" not in str(cause.filename)  # Ray Data puts a page of advice there
            where = cause.filename if named else os.strerror(cause.errno)
            return f"the disk is full: {where}; make room, and {RESUME_HINT}"
        cause = getattr(cause, "cause", None) or cause.__cause__
    return ""
