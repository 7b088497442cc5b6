"""Thirty kills of a bulk inference at random moments: each ends, by the same command, with every object once.

Twenty read a folder into a folder, ten a bucket into a bucket.
"""

import dataclasses
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.dataset
import pyarrow.fs
import pytest

from captcha_ray.storage import filesystem
from tests.support.processes import Job, kill
from tests.support.s3_server import client_of, create_bucket, serve_moto

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("CAPTCHA_RAY_KILL_SEED", "0"))

NUM_KILLS = 30
NUM_ON_DISK = 20

LONGEST_S = 16.0
"""Seconds that a whole job of these tests takes here; a kill comes at any moment of it."""

TITLES = {"driver": "jobs/infer.py", "worker": "ray::MapWorker", "node": "/raylet/raylet", "cluster": ""}
"""Parts of the victims' command lines; of the cluster, all processes are killed."""

MAX_TRIES = 20


@dataclasses.dataclass(frozen=True)
class Place:
    """The input and output of a job. out: for the job. table: the same for a plain reader."""

    images: str
    out: str
    environment: dict[str, str]
    files: pyarrow.fs.FileSystem
    table: str

    def committed(self) -> Counter[str]:
        """Count each URI that a plain reader sees."""
        found = self.files.get_file_info(pyarrow.fs.FileSelector(self.table, allow_not_found=True, recursive=True))
        if not any(file.path.endswith(".parquet") for file in found):
            return Counter()
        dataset = pyarrow.dataset.dataset(self.table, filesystem=self.files, partitioning="hive")
        return Counter(dataset.to_table(["uri"])["uri"].to_pylist())

    def staged(self) -> bool:
        found = self.files.get_file_info(pyarrow.fs.FileSelector(self.table, recursive=True))
        return any("_staging" in file.path and file.is_file for file in found)


@pytest.fixture
def place(number: int, corpus: Path, tmp_path: Path) -> Iterator[Place]:
    out = tmp_path / "out"
    if number < NUM_ON_DISK:
        yield Place(str(corpus), str(out), {}, pyarrow.fs.LocalFileSystem(), str(out))
        return
    with serve_moto() as server, client_of(server):
        create_bucket(server, "bucket")
        with ThreadPoolExecutor(8) as pool:
            for path in corpus.rglob("*.png"):
                pool.submit(filesystem.write, f"s3://bucket/images/{path.relative_to(corpus)}", path.read_bytes())
        address = urlsplit(server["AWS_ENDPOINT_URL"])
        files = pyarrow.fs.S3FileSystem(
            access_key=server["AWS_ACCESS_KEY_ID"],
            secret_key=server["AWS_SECRET_ACCESS_KEY"],
            endpoint_override=address.netloc,
            scheme=address.scheme,
        )
        yield Place("s3://bucket/images", "s3://bucket/out", server, files, "bucket/out")


@pytest.mark.parametrize("number", range(NUM_KILLS))
def test_every_object_once_after_a_kill(number: int, place: Place, slow_network: Path, tmp_path: Path) -> None:
    moment = random.Random(f"{SEED}-{number}")
    kind = list(TITLES)[number % len(TITLES)]
    wanted = Counter(filesystem.list_files(place.images))
    assert len(wanted) == 4000
    size = moment.choice(["1000", "2000000"])
    for tries in range(MAX_TRIES):  # until there is a victim: a job may end before its kill, or have no worker yet
        out = f"{place.out}/{tries}"
        here = dataclasses.replace(place, out=out, table=f"{place.table}/{tries}")
        night = ("--images", place.images, "--run", slow_network, "--out", out, "--stall-timeout-s", "60")
        night = (*night, "--objects-per-run", size)
        after = moment.uniform(0.5, LONGEST_S)
        with Job("infer", *night, cwd=tmp_path, env={**os.environ, **place.environment}) as first:
            deadline = time.monotonic() + after
            while time.monotonic() < deadline and first.process.poll() is None:
                time.sleep(0.05)
            victims = first.pids(TITLES[kind]) if first.process.poll() is None else []
            for pid in victims if kind == "cluster" else victims and [moment.choice(victims)]:
                kill(pid)
            if victims:
                ended = first.wait()
                break
            assert first.process.poll() in (None, 0), first.said
    else:
        pytest.fail("there was never anything to kill")
    before = here.committed()
    assert set(before.values()) <= {1}
    with Job("infer", *night, cwd=tmp_path, env={**os.environ, **place.environment}) as second:
        assert second.wait() == 0, second.said
        said = second.said.splitlines()
    print(f"kill {number}: {kind} after {after:.1f} s, status {ended}, {before.total():,} committed; then {said[0]}")
    assert here.committed() == wanted
    assert not here.staged()
    if kind == "worker":
        assert ended == 0, "a lost worker is replaced"
