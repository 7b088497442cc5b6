"""A network namespace on this machine, behind a cable that a test can pull. Takes root and `ip`."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from typing import Self

import pytest

HOST = "10.203.77.1"
"""This machine's address on the cable."""


class Namespace:
    """host: the address of what runs within. command: what runs a command there, with this machine's disks. near, far:
    the cable's ends, here and there."""

    def __init__(self) -> None:
        self.host = "10.203.77.2"
        self._name = f"captcha-{os.getpid()}"
        self.near, self.far = f"near-{os.getpid()}", f"far-{os.getpid()}"
        self.command = ("ip", "netns", "exec", self._name)

    def __enter__(self) -> Self:
        try:
            _ip("netns", "add", self._name)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("network namespaces take root and `ip`")
        try:
            _ip("link", "add", self.near, "type", "veth", "peer", "name", self.far, "netns", self._name)
            _ip("addr", "add", f"{HOST}/24", "dev", self.near)
            _ip("link", "set", self.near, "up")
            for words in (f"addr add {self.host}/24 dev {self.far}", f"link set {self.far} up", "link set lo up"):
                _ip("-n", self._name, *words.split())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        _ip("netns", "del", self._name)

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Within, nothing goes over the cable; connections are not closed, they are silent."""
        _ip("link", "set", self.near, "down")
        try:
            yield
        finally:
            _ip("link", "set", self.near, "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
