"""Reads from a store go on while what was read is used, as many at once as are of help."""

import itertools
import subprocess
import sys
import threading

import pytest

from captcha_ray.storage import read_ahead
from captcha_ray.storage.read_ahead import MAX_READS, NUM_READS, REST, DaemonThreads, NumReads, ReadAhead


@pytest.mark.parametrize(
    ("waits", "number"),
    [
        ([0.05, 0.1, 0.0], NUM_READS),
        ([0.5], 2 * NUM_READS),
        ([0.5, 0.05, 0.05], 2 * NUM_READS),
        ([0.5, 0.3], 4 * NUM_READS),
        ([0.5, 0.05, 0.05, 0.9], 4 * NUM_READS),  # the store has become slower
        ([0.5, 0.45, 0.42], 2 * NUM_READS),  # it is at its limit
        ([0.5, *[0.45] * REST], 2 * NUM_READS),
        ([0.5, *[0.45] * REST, 0.45], 4 * NUM_READS),  # but may not be for ever
        ([0.9, 0.7, 0.5, 0.3, 0.2, 0.15], MAX_READS),
    ],
)
def test_reads_are_doubled_while_there_is_a_wait_and_doubling_helps(waits: list[float], number: int) -> None:
    reads = NumReads()
    for wait in waits:
        reads.adapt(wait)
    assert reads.value == number


def test_chunks_come_whole_and_in_order_while_the_next_one_is_read() -> None:
    begun = {item: threading.Event() for item in range(9)}

    def read(item: int) -> int:
        begun[item].set()
        return item * item

    found = []
    for number, squares in ReadAhead(read).chunks(enumerate([[0, 1, 2], [3, 4, 5], [6, 7, 8]])):
        found += squares
        assert all(begun[item].wait(60) for item in range(min(3 * number + 6, 9)))
    assert found == [item * item for item in range(9)]


def test_who_waits_gets_more_reads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "NUM_READS", 1)
    together = threading.Barrier(2)

    def read(item: int) -> int:
        if item >= 100:
            together.wait(60)  # passed by two reads at once alone
        return item

    reads = ReadAhead(read)
    clock = iter(float(second) for second in range(10_000))
    with monkeypatch.context() as patch:
        patch.setattr(read_ahead.time, "perf_counter", lambda: next(clock))  # reads take as long as what follows
        assert list(reads.chunks([("a", [0]), ("b", [1])])) == [("a", [0]), ("b", [1])]
    assert list(reads.chunks([("c", [100, 101])])) == [("c", [100, 101])]


def test_a_long_stream_of_chunks_gets_more_reads_while_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "ADAPT_CHUNKS", 2)
    reads = ReadAhead(lambda item: item)
    clock = iter(float(second) for second in range(10_000))
    monkeypatch.setattr(read_ahead.time, "perf_counter", lambda: next(clock))  # reads take as long as what follows
    numbers = []
    for number, _ in reads.chunks((number, [number]) for number in itertools.count()):
        numbers.append(reads._threads.number)
        if number == 7:
            break
    assert numbers == [NUM_READS] * 3 + [2 * NUM_READS] * 5, "doubled once, which did not help"


def test_an_error_of_a_read_is_raised_where_its_chunk_is_wanted() -> None:
    def read(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    chunks = ReadAhead(read).chunks(enumerate([[0, 1], [2, 3]]))
    assert next(chunks) == (0, [0, 1])
    with pytest.raises(ValueError, match="two"):
        next(chunks)


def test_threads_grow_as_far_as_the_system_lets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = read_ahead.DaemonThreads(2)
    start = threading.Thread.start

    def start_one_more(thread: threading.Thread) -> None:
        if pool.number == 3:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_one_more)
    pool.grow(100)
    assert pool.number == 3
    assert list(pool.map(lambda item: -item, range(9))) == [-item for item in range(9)]
    pool.number = 3
    with pytest.raises(RuntimeError, match="can't start"):
        read_ahead.DaemonThreads(1)


def test_a_read_that_hangs_does_not_keep_the_process() -> None:
    program = (
        "import threading\nfrom captcha_ray.storage.read_ahead import DaemonThreads\n"
        "DaemonThreads(2).submit(threading.Event().wait)\nprint('ended')"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=True, capture_output=True, text=True)
    assert done.stdout == "ended\n"


def test_closed_threads_end_after_the_call_that_they_are_at() -> None:
    before = set(threading.enumerate())
    threads = DaemonThreads(1)
    (thread,) = set(threading.enumerate()) - before
    has_begun, may_end = threading.Event(), threading.Event()

    def hold() -> bool:
        has_begun.set()
        return may_end.wait(60)

    held, queued = threads.submit(hold), threads.submit(list)
    assert has_begun.wait(60)
    threads.close()
    may_end.set()
    assert held.result(60)
    thread.join(60)
    assert not thread.is_alive()
    assert not queued.done()
