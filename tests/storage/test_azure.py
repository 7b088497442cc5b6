"""Use containers of Azure's emulator Azurite, a program of npm that is looked for on the PATH and in node_modules."""

import base64
import contextlib
import datetime
import hashlib
import hmac
import io
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from captcha_ray.storage import bucket_listing, filesystem, objectstore, retries
from captcha_ray.storage.retries import DeniedError
from tests.factories import GLYPHS, draw_glyphs, glyph_texts, save_network
from tests.support.processes import JOBS, PREPROCESS, TRAIN
from tests.support.ray_nodes import free_ports
from tests.support.waiting import wait_until

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account that every Azurite has, and its key, from Azurite's documentation; they open nothing else."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Runs an emulator with the containers `box` and `tables`; gives the environment of a client."""
    here = Path(__file__).parents[2] / "node_modules/.bin"
    program = shutil.which("azurite-blob", path=f"{os.environ['PATH']}{os.pathsep}{here}")
    if not program:
        pytest.skip("azurite-blob is not installed (npm install azurite)")
    folder = tmp_path_factory.mktemp("azurite")
    (port,) = free_ports(1)
    command = [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--disableTelemetry"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, "--location", str(folder)], stdout=log, stderr=log)
    try:
        wait_until(lambda: "successfully listens" in (folder / "log").read_text(), process)
        address = f"http://127.0.0.1:{port}/{ACCOUNT}"
        for container in ("box", "tables"):
            make_container(address, container)
        yield {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": address,
        }
    finally:
        process.terminate()
        process.wait(timeout=20)


def make_container(address: str, name: str) -> None:
    """Asks for a container by a request signed with the account's key, which obstore cannot make."""
    date, version = f"{datetime.datetime.now(datetime.UTC):%a, %d %b %Y %H:%M:%S} GMT", "2021-08-06"
    said = (
        "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    )
    signature = base64.b64encode(hmac.new(base64.b64decode(KEY), said.encode(), hashlib.sha256).digest()).decode()
    headers = {"x-ms-date": date, "x-ms-version": version, "Content-Length": "0"}
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{signature}"
    request = urllib.request.Request(f"{address}/{name}?restype=container", method="PUT", headers=headers)
    with contextlib.closing(urllib.request.urlopen(request, timeout=20)) as answer:
        assert answer.status == 201


@pytest.fixture
def azure(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(retries, "BACKOFF_S", 0.001)
    objectstore.forget_clients()
    yield server
    objectstore.forget_clients()


BOXES = pytest.mark.parametrize("box", ["az://box", f"abfss://box@{ACCOUNT}.dfs.core.windows.net"])


@BOXES
@pytest.mark.usefixtures("azure")
def test_objects_are_written_read_listed_and_removed(box: str) -> None:
    names = [f"{box}/a/{k:03}" for k in range(3)]
    for name in names:
        filesystem.write(name, name.encode())
    assert filesystem.read(names[1]) == names[1].encode()
    assert objectstore.get_range(names[1], 2, 5) == names[1].encode()[2:5]
    listed = [entry for page in bucket_listing.list_pages(f"{box}/a") for entry in page]
    assert [entry.uri for entry in listed] == names
    assert listed[0] == objectstore.head(names[0]) == objectstore.get(names[0])[1]
    after = [entry.uri for page in bucket_listing.list_pages(f"{box}/a", names[1]) for entry in page]
    assert names[2] in after  # Azure knows no key to start after, so earlier ones may come too
    objectstore.delete(names[0], f"{box}/a/absent", *names[1:])
    assert not [entry for page in bucket_listing.list_pages(f"{box}/a") for entry in page]
    assert objectstore.head(names[0]) is None
    with pytest.raises(FileNotFoundError):
        filesystem.read(names[0])


@BOXES
@pytest.mark.usefixtures("azure")
def test_of_two_writers_one_wins(box: str) -> None:
    lock = f"{box}/lock"
    objectstore.put(lock, b"1", exclusive=True)
    with pytest.raises(FileExistsError):
        objectstore.put(lock, b"2", exclusive=True)
    assert not objectstore.compare_and_swap(lock, b"3", expected=b"2")
    assert objectstore.compare_and_swap(lock, b"3", expected=b"1")
    assert objectstore.get(lock)[0] == b"3"
    objectstore.delete(lock)


def test_a_wrong_key_is_a_lack_of_rights(azure: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(b"wrong").decode())
    objectstore.forget_clients()
    with pytest.raises(DeniedError):
        objectstore.get("az://box/a")


@pytest.mark.slow
def test_jobs_work_in_containers(azure: dict[str, str], tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "drawn", glyph_texts(80, 2))
    for path in (tmp_path / "drawn").iterdir():
        filesystem.write(f"az://box/corpus/{path.name}", path.read_bytes())
    run = str(save_network(tmp_path / "network", GLYPHS))

    def job(name: str, *arguments: str) -> str:
        env = {**os.environ, **azure}
        command = [sys.executable, str(JOBS / f"{name}.py"), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    job("preprocess", "--corpus", "az://box/corpus", "--out", "az://box/shards", *PREPROCESS)
    job("train", "--shards", "az://box/shards", "--run", "az://box/run", *TRAIN, "--epochs", "1")
    assert filesystem.exists("az://box/run/_SUCCESS")
    night = ("--images", "az://box/corpus", "--run", run, "--out", "az://tables/glyphs")
    assert re.search("80 of 80 objects done", job("infer", *night))
    assert "80 skipped as done; nothing to add" in job("infer", *night)
    found = [entry.uri for page in bucket_listing.list_pages("az://tables/glyphs") for entry in page]
    (rows,) = [uri for uri in found if uri.endswith(".parquet") and "/_" not in uri.removeprefix("az://tables")]
    assert pq.read_table(io.BytesIO(filesystem.read(rows))).num_rows == 80
