"""Keep a second job from a folder or prefix, by a lease: an object that its holder renews until it ends or dies.

This is politeness, not safety: a commit that must not happen twice has to be refused by the store itself.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

from captcha_ray import console
from captcha_ray.errors import InputError, JobError
from captcha_ray.storage import filesystem

RENEW_S = 5.0
"""Seconds between renewals."""

PATIENCE_S = 20.0
"""Seconds without a renewal after which a lease of another machine's process may be taken over."""


class Lease:
    """A lock that expires if its holder dies; held while its block runs.

    Raises InputError if another process holds it.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._me = {"holder": secrets.token_hex(8), **_process()}
        self._lost = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> "Lease":
        try:
            self._acquire()
        except OSError as error:
            raise InputError(f"{self._folder} cannot be written: {error.strerror or error}") from error
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        try:
            if self._holds():
                filesystem.delete(self._uri)
        except OSError as error:  # the work is done or has failed already
            console.warn(f"the lease {self._uri} stays behind: {error}")

    def check(self) -> None:
        """Raise JobError if another process has taken the lease over."""
        with contextlib.suppress(OSError):
            self._lost = self._lost or not self._holds()
        if self._lost:
            raise JobError(f"another process has taken over {self._uri}; what this one had not committed is left to it")

    def _acquire(self) -> None:
        found, mine = self._read(), self._content(0)
        if found is not None:
            if _alive(found):
                raise InputError(f"{_who(found)} is at work on {self._folder}; wait for it, or end it")
            if not _same_machine(found):
                self._watch(found)
        dead = self._bytes()
        if dead is None:
            with contextlib.suppress(FileExistsError):
                filesystem.write(self._uri, mine, exclusive=True)
                return
        elif _parsed(dead) == found:
            with contextlib.suppress(FileNotFoundError):  # others took it over and are done already
                if filesystem.compare_and_swap(self._uri, mine, dead):
                    return
        raise InputError(f"another process has just begun to work on {self._folder}")

    @property
    def _folder(self) -> str:
        return self._uri.rpartition("/")[0]

    def _watch(self, found: dict[str, Any]) -> None:
        """Return once the holder has been silent for long enough. Raises InputError as soon as it renews."""
        console.say(f"{_who(found)} worked on {self._folder}; waiting {PATIENCE_S:.0f} s to see whether it still does")
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            time.sleep(1)
            now = self._read()
            if now is None:
                return  # given back meanwhile
            if now != found:
                raise InputError(f"{_who(found)} is at work on {self._folder}; wait for it, or end it")

    def _renew(self) -> None:
        count = 0
        while not self._done.wait(RENEW_S):
            count += 1
            try:
                held = self._bytes()
                if held is None or not self._is_mine(held):
                    self._lost = True
                    return
                with contextlib.suppress(FileNotFoundError):  # gone meanwhile, as the next look will find
                    filesystem.compare_and_swap(self._uri, self._content(count), held)
            except Exception as error:  # the store is away; the holder goes on until someone takes over
                console.warn(f"the lease cannot be renewed: {error}")

    def _holds(self) -> bool:
        held = self._bytes()
        return held is not None and self._is_mine(held)

    def _is_mine(self, data: bytes) -> bool:
        return bool(_parsed(data).get("holder") == self._me["holder"])

    def _content(self, count: int) -> bytes:
        return json.dumps({**self._me, "renewed": count}).encode()

    def _read(self) -> dict[str, Any] | None:
        data = self._bytes()
        return None if data is None else _parsed(data)

    def _bytes(self) -> bytes | None:
        try:
            return filesystem.read(self._uri)
        except FileNotFoundError:
            return None


def _parsed(data: bytes) -> dict[str, Any]:
    found = None
    with contextlib.suppress(ValueError):
        found = json.loads(data)
    return found if isinstance(found, dict) else {"host": "an unknown machine"}


def _process() -> dict[str, Any]:
    """Describe this process, so that another one on this machine can tell whether it is alive."""
    return {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "started": _started(os.getpid())}


def _boot() -> str | None:
    """Return an id that distinguishes machines, or containers with process numbers of their own, of one name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _started(pid: int) -> int | None:
    """Return when a process began, in ticks since the machine booted; None if it does not run."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else int(numbers[18])
    except (OSError, ValueError):
        return None


def _same_machine(found: dict[str, Any]) -> bool:
    return _boot() is not None and (found.get("host"), found.get("boot")) == (socket.gethostname(), _boot())


def _alive(found: dict[str, Any]) -> bool:
    return _same_machine(found) and _started(found["pid"]) == found["started"]


def _who(found: dict[str, Any]) -> str:
    return f"process {found.get('pid', '?')} on {found.get('host', 'another machine')}"
