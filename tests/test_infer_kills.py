"""Thirty kills of a bulk inference at random moments: each ends, by the same command, with every object once."""

import os
import random
import shutil
import time
from collections import Counter
from pathlib import Path

import pyarrow.dataset
import pytest

from tests.processes import Job, kill
from tests.test_infer import corpus, slow_network  # noqa: F401 -- fixtures

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("CAPTCHA_RAY_KILL_SEED", "0"))

LONGEST_S = 16.0
"""A whole job of these tests takes about so long here; a kill comes at any moment of it."""

TITLES = {"driver": "jobs/infer.py", "worker": "ray::MapWorker", "node": "/raylet/raylet"}


def committed(out: Path) -> Counter[str]:
    if not list(out.rglob("*.parquet")):
        return Counter()
    return Counter(pyarrow.dataset.dataset(str(out), partitioning="hive").to_table(["uri"])["uri"].to_pylist())


@pytest.mark.parametrize("number", range(30))
def test_every_object_once_after_a_kill(number: int, corpus: Path, slow_network: Path, tmp_path: Path) -> None:  # noqa: F811
    moment = random.Random(f"{SEED}-{number}")
    kind = ("driver", "worker", "node")[number % 3]
    wanted = Counter(str(path) for path in corpus.rglob("*.png"))
    out = tmp_path / "out"
    night = ("--images", corpus, "--run", slow_network, "--out", out, "--stall-timeout-s", "60")
    night = (*night, "--objects-per-run", moment.choice(["1000", "2000000"]))
    while True:
        after = moment.uniform(0.5, LONGEST_S)
        with Job("infer", *night, cwd=tmp_path) as first:
            deadline = time.monotonic() + after
            while time.monotonic() < deadline and first.process.poll() is None:
                time.sleep(0.05)
            if victims := first.pids(TITLES[kind]):
                kill(moment.choice(victims))
                ended = first.wait()
                break
        shutil.rmtree(out, ignore_errors=True)  # there was none to kill at that moment: another one
    before = committed(out)
    assert set(before.values()) <= {1}
    with Job("infer", *night, cwd=tmp_path) as second:
        assert second.wait() == 0, second.said
        said = second.said.splitlines()
    print(f"kill {number}: {kind} after {after:.1f} s, status {ended}, {before.total():,} committed; then {said[0]}")
    assert committed(out) == wanted
    assert not (out / "_staging").exists()
    if kind == "worker":
        assert ended == 0, "a lost worker is replaced"
