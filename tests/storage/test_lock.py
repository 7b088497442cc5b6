"""A lease keeps others out while its holder lives, wherever it runs, and no longer."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from captcha_ray.errors import InputError, JobError
from captcha_ray.storage import filesystem, lock
from captcha_ray.storage.lock import PATIENCE_S, Lease, _boot, _process
from tests.support.leases import found
from tests.support.s3_server import client_of
from tests.support.waiting import wait_until

HOLD = """
import sys
from captcha_ray.storage.lock import Lease
with Lease(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["local", "rclone", "moto"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return where a lease may stand, in each kind of place."""
    if request.param == "local":
        yield f"{tmp_path}/out/_lease.json"
        return
    with client_of(request.getfixturevalue(f"{request.param}_server")):
        yield f"s3://bucket/{tmp_path.name}/_lease.json"


@contextlib.contextmanager
def holder(uri: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease until its input ends."""
    command = [sys.executable, "-c", HOLD, uri]
    folder = Path(lock.__file__).parents[2]
    with subprocess.Popen(
        command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert said == "held\n", said + process.stdout.read()
            yield process
        finally:
            process.kill()


def leave(uri: str, **fields: object) -> None:
    """The lease of a process on a machine of the same name that is another."""
    other = {**_process(), "boot": "another", "holder": "it", "renewed": 3, **fields}
    filesystem.write(uri, json.dumps(other).encode())


def lost(held: Lease) -> bool:
    try:
        held.check()
    except JobError:
        return True
    return False


def clock(monkeypatch: pytest.MonkeyPatch, tick: Callable[[float], None] = lambda now: None) -> list[float]:
    """Lets whoever watches a lease wait by this clock alone. tick: told the time after each wait. Gives the times."""
    times = [0.0]

    def sleep(seconds: float) -> None:
        times.append(times[-1] + seconds)
        tick(times[-1])

    monkeypatch.setattr(lock, "time", SimpleNamespace(monotonic=lambda: times[-1], sleep=sleep))
    return times


def test_a_lease_is_held_by_one_and_gone_after_its_block(uri: str) -> None:
    with Lease(uri) as held:
        assert found(uri)["pid"] == os.getpid()
        with pytest.raises(InputError, match=f"^process {os.getpid()} on .* is at work on {uri.rpartition('/')[0]};"):
            Lease(uri).__enter__()
        held.check()
    assert not filesystem.exists(uri)
    with Lease(uri):
        assert filesystem.exists(uri)
    with pytest.raises(ZeroDivisionError), Lease(uri):
        raise ZeroDivisionError
    assert not filesystem.exists(uri)


def test_a_lease_of_a_live_process_is_refused_by_its_number_until_it_ends(uri: str) -> None:
    with holder(uri) as process:
        before = found(uri)
        with pytest.raises(InputError, match=f"^process {process.pid} on .*; wait for it, or end it$"):
            Lease(uri).__enter__()
        assert found(uri) == before
        process.communicate()
        assert process.returncode == 0
        assert not filesystem.exists(uri)
        with Lease(uri):
            assert found(uri)["pid"] == os.getpid()


def test_a_lease_of_a_killed_process_is_taken_over_at_once(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with holder(uri) as process:
        process.kill()
        process.wait()
    assert found(uri)["pid"] == process.pid
    times = clock(monkeypatch)
    with Lease(uri) as held:
        assert found(uri)["pid"] == os.getpid()
        held.check()
    assert times == [0], "nobody waited"
    assert not filesystem.exists(uri)


def test_a_killed_process_that_nobody_has_waited_for_is_dead(tmp_path: Path) -> None:
    uri = f"{tmp_path}/_lease.json"
    with holder(uri) as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with Lease(uri):
            assert found(uri)["pid"] == os.getpid()


def test_a_process_with_a_dead_ones_number_is_not_taken_for_it(tmp_path: Path) -> None:
    uri = f"{tmp_path}/_lease.json"
    process = _process()
    leave(uri, **{**process, "started": process["started"] - 1})
    with Lease(uri):
        assert found(uri)["started"] == process["started"]


@pytest.mark.parametrize(
    "fields", [{}, {"host": "elsewhere", "boot": _boot()}, {"boot": None}], ids=["boot", "host", "unknown"]
)
def test_a_lease_from_elsewhere_that_is_silent_is_taken_over_with_patience(
    uri: str, monkeypatch: pytest.MonkeyPatch, fields: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    def tick(now: float) -> None:
        if now <= PATIENCE_S - 1:
            assert found(uri)["holder"] == "it"

    leave(uri, **fields)
    times = clock(monkeypatch, tick)
    with Lease(uri):
        assert found(uri)["holder"] != "it"
    assert times[-1] >= PATIENCE_S == 20
    assert "waiting 20 s to see whether it still does" in capsys.readouterr().out


def test_a_lease_from_elsewhere_that_is_renewed_late_is_refused(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def tick(now: float) -> None:
        if now == PATIENCE_S - 1:
            leave(uri, renewed=4)

    leave(uri)
    clock(monkeypatch, tick)
    with pytest.raises(InputError, match=f"^process {os.getpid()} on .* is at work on .*; wait for it, or end it$"):
        Lease(uri).__enter__()
    assert (found(uri)["holder"], found(uri)["renewed"]) == ("it", 4)


def test_by_the_real_clock_silence_is_waited_for_and_renewal_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATIENCE_S", 1)
    uri = f"{tmp_path}/_lease.json"
    ended = threading.Event()

    def renew() -> None:
        count = 0
        while not ended.wait(0.02):
            count += 1
            leave(uri, renewed=count)

    leave(uri)
    holding = threading.Thread(target=renew)
    holding.start()
    try:
        with pytest.raises(InputError, match="is at work on"):
            Lease(uri).__enter__()
    finally:
        ended.set()
        holding.join()
    assert found(uri)["holder"] == "it"
    with Lease(uri):
        assert found(uri)["holder"] != "it"


def test_a_lease_from_elsewhere_that_is_given_back_meanwhile_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{tmp_path}/_lease.json"
    leave(uri)
    clock(monkeypatch, lambda _: filesystem.delete(uri))
    with Lease(uri):
        assert found(uri)["holder"] != "it"


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"\xff", b"{}"),
        *(b"[]", b"null", b"5"),
    ],
)
def test_a_lease_that_says_nothing_is_taken_over_with_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    uri = f"{tmp_path}/_lease.json"
    filesystem.write(uri, content)
    times = clock(monkeypatch)
    with Lease(uri):
        assert found(uri)["pid"] == os.getpid()
    assert times[-1] >= PATIENCE_S


def test_a_lease_is_renewed_while_it_is_held(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_S", 0.01)
    with Lease(uri) as held:
        first = found(uri)
        wait_until(lambda: found(uri)["renewed"] >= first["renewed"] + 3)
        assert {**found(uri), "renewed": 0} == {**first, "renewed": 0}
        held.check()


@pytest.mark.parametrize("taken", [True, False], ids=["taken", "deleted"])
def test_a_lost_lease_is_found_out_and_left_alone(uri: str, monkeypatch: pytest.MonkeyPatch, taken: bool) -> None:
    monkeypatch.setattr(lock, "RENEW_S", 0.05)
    other: dict[str, Any] = {}

    def take() -> bool:  # again where a renewal came in between: leases are politeness
        if taken:
            leave(uri, **other)
        else:
            filesystem.delete(uri)
        return lost(held)

    with Lease(uri) as held:
        held.check()
        wait_until(take)
        with pytest.raises(JobError, match=f"^another process has taken over {uri}; "):
            held.check()
    assert filesystem.exists(uri) == taken
    if taken:
        assert found(uri)["holder"] == "it"


def test_a_renewal_does_not_overwrite_who_took_over_since_it_looked(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_S", 0.05)
    with Lease(uri) as held:
        look = held._bytes

        def look_and_be_late() -> bytes | None:
            data = look()
            if data is not None and b'"it"' not in data:
                leave(uri)
            return data

        monkeypatch.setattr(held, "_bytes", look_and_be_late)
        wait_until(lambda: held._lost)
    assert found(uri)["holder"] == "it"


def rush(uri: str) -> tuple[int, list[str]]:
    """Eight begin at once: how many hold the lease then, and what the others were told."""
    start, done = threading.Barrier(8), threading.Barrier(8)
    held: list[Lease] = []
    refused: list[str] = []

    def begin() -> None:
        start.wait(60)
        try:
            with Lease(uri) as mine:
                held.append(mine)
                done.wait(60)
        except InputError as error:
            refused.append(str(error))
            done.wait(60)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(" at work on " in sentence or "just begun to work on" in sentence for sentence in refused)
    return len(held), refused


def test_of_many_that_begin_at_once_one_gets_in(tmp_path: Path) -> None:
    held, refused = rush(f"{tmp_path}/_lease.json")
    assert (held, len(refused)) == (1, 7)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("number", range(20))
def test_of_many_that_take_a_dead_lease_over_one_gets_in(tmp_path: Path, number: int) -> None:
    uri = f"{tmp_path}/_lease.json"
    leave(uri, **{**_process(), "started": 1})
    held, refused = rush(uri)
    assert (held, len(refused)) == (1, 7)
    assert not os.listdir(tmp_path)


def test_a_dead_lease_that_others_took_over_meanwhile_is_theirs(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(uri, **{**_process(), "started": 1})
    compare_and_swap = filesystem.compare_and_swap

    def late(uri: str, data: bytes, expected: bytes) -> bool:
        filesystem.write(uri, b'{"holder": "another"}')
        return compare_and_swap(uri, data, expected)

    monkeypatch.setattr(filesystem, "compare_and_swap", late)
    with pytest.raises(InputError, match="another process has just begun to work on"), Lease(uri):
        pass
    assert found(uri) == {"holder": "another"}
