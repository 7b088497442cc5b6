"""Turn what object stores answer into errors, and repeat requests after temporary trouble.

Timeouts, resets, truncated bodies, 429 and 5xx are temporary; they are waited for with backoff and jitter.
"""

import contextlib
import itertools
import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)
from obstore.exceptions import BaseError, GenericError, PermissionDeniedError, UnauthenticatedError

from captcha_ray.errors import InputError

T = TypeVar("T")

ATTEMPTS = 5
"""Times that a request is made before its error is raised; their waits add up to three seconds at most."""

BACKOFF_S, MAX_BACKOFF_S = 0.1, 5.0
"""The wait after attempt k is uniform in 0 to BACKOFF_S * 2^k, at most MAX_BACKOFF_S: "full jitter" of M. Brooker,
"Exponential Backoff and Jitter" (2015).
"""

OUTAGE_S = 600.0
"""Seconds that a store may be out of reach without ending work that is long and cannot do without it."""


class _Patience:
    """Holds the seconds that `patience` gives this process."""

    seconds = 0.0


class StoreError(OSError, InputError):
    """A request that an object store refuses.

    As an OSError it costs a row; uncaught it ends a job as bad input does.
    """


class DeniedError(StoreError, PermissionError):
    """A request that is refused for lack of credentials or rights."""


@contextlib.contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Turn the clients' errors into those that local files raise."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{uri} or its bucket does not exist") from None
    except ClientError as error:
        code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status == 404:
            raise FileNotFoundError(f"{uri} or its bucket does not exist") from None
        kind = DeniedError if status in (401, 403) else StoreError
        raise kind(f"{uri}: {code}: {error.response['Error'].get('Message', '')}") from error
    except (PermissionDeniedError, UnauthenticatedError, NoCredentialsError) as error:
        raise DeniedError(f"{uri}: {_sentence(error)}") from error
    except (BaseError, BotoCoreError, ValueError) as error:  # ValueError: a key that obstore has no name for
        raise StoreError(f"{uri}: {_sentence(error)}") from error


def _sentence(error: Exception) -> str:
    """Return a client's message on one line, without its debugging dump or XML."""
    text, answer = re.split(r"(?=<\?xml|<Error)", str(error).partition("Debug source")[0] + "<Error", maxsplit=1)
    said = re.findall("<(?:Code|Message)>([^<]*)", answer)
    return " ".join(" ".join([type(error).__name__ + ":", text, *said]).split())[:300]


@contextlib.contextmanager
def patience(seconds: float = OUTAGE_S) -> Iterator[None]:
    """Let this process, in all its threads, repeat a request for at least so long after temporary trouble."""
    before, _Patience.seconds = _Patience.seconds, seconds
    try:
        yield
    finally:
        _Patience.seconds = before


def persist(request: Callable[[], T], uri: str) -> T:
    """Return the result of a request; repeat it after temporary trouble, `ATTEMPTS` times or as `patience` says."""
    started = time.monotonic()
    for attempt in itertools.count(1):
        try:
            with store_errors(uri):
                return request()
        except StoreError as error:
            spent = attempt >= ATTEMPTS and time.monotonic() - started >= _Patience.seconds
            if spent or not _may_pass(error.__cause__):
                raise
            if attempt == ATTEMPTS:
                logging.getLogger(__name__).warning(
                    "%s; the store is asked again for up to %.0f s", error, _Patience.seconds
                )
            time.sleep(random.uniform(0, min(BACKOFF_S * 2**attempt, MAX_BACKOFF_S)))
    raise AssertionError("unreachable")


def _may_pass(cause: BaseException | None) -> bool:
    """Return whether trouble is temporary, and not a wrong name, right or request."""
    if isinstance(cause, ClientError):
        status: int = cause.response["ResponseMetadata"]["HTTPStatusCode"]
        return status == 429 or status >= 500
    if isinstance(cause, BotoCoreError):
        wrong = (NoCredentialsError, ParamValidationError, PartialCredentialsError, ProfileNotFound)
        return not isinstance(cause, wrong)
    return isinstance(cause, GenericError)
