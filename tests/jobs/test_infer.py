"""Runs jobs/infer.py as a user does every night: real processes, an S3 server, kills, other projects' readers."""

import contextlib
import io
import json
import math
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from PIL import Image

from captcha_ray import Recognizer
from captcha_ray.storage import filesystem
from tests.factories import GLYPHS, draw_glyphs, glyph_texts, save_network
from tests.support.fault_proxy import Fault, fault_proxy
from tests.support.processes import Job, environment, kill, run_job
from tests.support.s3_server import SECRET_KEY, client_of, serve_s3
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("network") / "run", GLYPHS)


def rows(table: Path) -> list[dict[str, Any]]:
    """Return all rows that a plain reader of another project sees, by URI."""
    found = pyarrow.dataset.dataset(str(table), partitioning="hive").to_table()
    return sorted(found.to_pylist(), key=lambda row: (row["uri"], row["predicted_at"]))


def png(width: int, height: int, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width), np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """Return a PNG whose header claims side x side pixels, without any pixel."""
    data = bytearray(png(8, 8))
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def check_table_of_three_nights(table: Path, bucket: Path, network: Path) -> None:
    found = rows(table)
    assert len(found) == 63
    objects = Counter((row["uri"], row["etag"]) for row in found)
    assert set(objects.values()) == {1}
    assert Counter(str(row["date"]) for row in found) == {
        "2026-11-20": 30,
        "2026-11-21": 21,
        "2026-11-22": 2,
        "unknown": 10,
    }
    local = table.as_posix()
    assert duckdb.sql(f"SELECT count(*), count(DISTINCT run_id) FROM '{local}/**/*.parquet'").fetchall() == [(63, 5)]
    by_date = duckdb.sql(f"SELECT count(*) FROM read_parquet('{local}/**/*.parquet', hive_partitioning = true) "
                         "WHERE date = '2026-11-22'")  # fmt: skip
    assert by_date.fetchall() == [(2,)]
    predictions = Recognizer.load(str(network))
    path = bucket / "2026-11-22" / "ab.png"
    row = next(row for row in found if row["uri"] == "s3://images/2026-11-22/ab.png")
    expected = predictions.predict(path)
    assert row["text"] == expected.text
    assert row["confidence"] == pytest.approx(expected.confidence, rel=1e-5)
    assert row["confidence"] == pytest.approx(math.prod(row["char_confidence"]), rel=1e-5)
    assert (row["size"], row["status"], row["error"]) == (path.stat().st_size, "ok", None)
    manifest = json.loads((table / "date=2026-11-22/run=000001/_manifest.json").read_text())
    assert manifest["counts"] == {"objects": 2, "ok": 2, "uncertain": 0, "errors": {}}
    assert (manifest["listed"], manifest["skipped"], manifest["model_id"]) == (61, 58, row["model_id"])
    assert {"list", "plan", "fetch", "decode", "recognize", "write", "wall"} <= set(manifest["seconds"])
    assert manifest["cost"]["per_million_images"] > 0
    assert not [path for path in table.rglob("*") if "_staging" in str(path) or "_lease" in str(path)]


def test_three_nights_over_a_bucket(network: Path, tmp_path: Path) -> None:
    bucket, out = tmp_path / "s3/images", tmp_path / "s3/predictions"
    out.mkdir(parents=True)
    texts = glyph_texts(60, 2)
    draw_glyphs(bucket / "2026/11/20", texts[:30])
    draw_glyphs(bucket / "2026-11-21", texts[30:50])
    draw_glyphs(bucket / "undated", texts[50:])
    seen: Counter[str] = Counter()

    def count(method: str, path: str, attempt: int) -> None:
        seen[method if path.startswith("/images/") and ".png" in path else "other"] += 1

    with serve_s3(tmp_path / "s3") as server, fault_proxy(server["AWS_ENDPOINT_URL"], count) as proxy:
        env = environment(**{name: value for name, value in server.items() if name != "AWS_ENDPOINT_URL"})
        night = ("--images", "s3://images", "--run", network, "--out", "s3://predictions/captchas",
                 "--endpoint-url", proxy.url, "--date-pattern", r"(\d{4})[-/](\d\d)[-/](\d\d)")  # fmt: skip
        status, said, err = run_job("infer", *night, cwd=tmp_path, env=env)
        assert (status, err) == (0, "")
        assert "60 of 60 objects done: 60 ok, 0 errors; 0 skipped as done; committed as " in said.splitlines()[-1]
        assert seen["GET"] == 60

        status, said, _ = run_job("infer", *night, cwd=tmp_path, env=env)
        assert status == 0
        assert "0 of 60 objects done" in said
        assert "60 skipped as done; nothing to add" in said
        assert seen["GET"] == 60, "a night with nothing new reads no image"

        names = sorted(path.name for path in (bucket / "2026-11-21").iterdir())
        with client_of(server):
            filesystem.delete(f"s3://images/2026-11-21/{names[0]}")
            filesystem.write(f"s3://images/2026-11-21/{names[1]}", png(24, 16, seed=1))
            for name in ("ab", "cd"):
                filesystem.write(f"s3://images/2026-11-22/{name}.png", png(24, 16, seed=ord(name[0])))
        status, said, _ = run_job("infer", *night, cwd=tmp_path, env=env)
        assert status == 0
        assert "3 of 61 objects done" in said
        assert seen["GET"] == 63

        with client_of(server):
            by_pandas = pd.read_parquet("s3://predictions/captchas")
    assert sorted(by_pandas["uri"]) == [row["uri"] for row in rows(out / "captchas")]
    check_table_of_three_nights(out / "captchas", bucket, network)
    for path in [path for path in out.rglob("*") if path.is_file()]:
        assert SECRET_KEY.encode() not in path.read_bytes()


def troubles(method: str, path: str, attempt: int) -> Fault | None:
    """Deny one object, lose another, and let the first request of most others fail."""
    if "denied.png" in path:
        return Fault.DENIED
    if "lost.png" in path and method == "GET" and not path.startswith("/images?"):
        return Fault.INTERNAL
    first = {"/images/good/": [Fault.SLOW_DOWN, Fault.RESET, Fault.CUT, Fault.INTERNAL, None]}
    for prefix, faults in first.items():
        if path.startswith(prefix) and attempt == 0:
            return faults[sum(path.encode()) % len(faults)]
    return Fault.SLOW_DOWN if "list-type" in path and attempt == 0 else None


def test_every_object_of_a_bucket_in_trouble_has_its_row(network: Path, tmp_path: Path) -> None:
    bucket = tmp_path / "s3/images"
    (tmp_path / "s3/out").mkdir(parents=True)
    draw_glyphs(bucket / "good", glyph_texts(40, 2))
    whole = png(24, 16)
    broken = {
        "truncated.png": (whole[:-40], "Truncated"),
        "empty.png": (b"", "EmptyFile"),
        "text.png": (b"not an image at all", "NotAnImage"),
        "bomb.png": (bomb(50_000), "TooLarge"),
        "heavy.png": (b"x" * 5_000_000, "TooLarge"),
        "long.png": (png(400, 8), "WrongAspect"),
        "damaged.png": (whole[:50] + b"\0\1\2" + whole[53:], "Damaged"),
        "half.jpg": (b"\xff\xd8\xff\xe0" + b"\0" * 20, "NotAnImage"),
        "denied.png": (whole, "Denied"),
        "lost.png": (whole, "StoreError"),
    }
    for name, (data, _) in broken.items():
        (bucket / name).write_bytes(data)

    with serve_s3(tmp_path / "s3") as server, fault_proxy(server["AWS_ENDPOINT_URL"], troubles) as proxy:
        env = environment(**server) | {"AWS_ENDPOINT_URL": proxy.url}
        night = ("--images", "s3://images", "--run", network, "--out", "s3://out/table")
        status, said, err = run_job("infer", *night, "--max-error-fraction", "0.1", cwd=tmp_path, env=env)
        assert (status, said.count("Traceback")) == (1, 0)
        assert err.startswith("error: ")
        assert "--max-error-fraction 0.1 allows; nothing of them was committed" in err
        assert not list((tmp_path / "s3/out").rglob("*.parquet"))

        status, said, err = run_job("infer", *night, cwd=tmp_path, env=env)
        assert (status, err) == (0, "")
        assert "50 of 50 objects done: 40 ok, 10 errors" in said
        with client_of(server):  # neither what is deleted, nor new, nor changed is a failure to try again
            filesystem.delete("s3://images/lost.png")
            filesystem.write("s3://images/new.png", whole)
            filesystem.write("s3://images/text.png", b"still not an image")
        status, said, err = run_job("infer", *night, "--retry-errors", cwd=tmp_path, env=env)
    assert (status, err) == (0, ""), "all that is left of the errors may fail again"
    assert "8 of 50 objects done: 0 ok, 8 errors" in said
    found = {row["uri"].rpartition("/")[2]: row for row in rows(tmp_path / "s3/out/table")}
    assert len(found) == 50
    errors = {name: row["error"] for name, row in found.items() if row["status"] == "error"}
    assert {name: sentence.partition(": ")[0] for name, sentence in errors.items()} == {
        name: reason for name, (_, reason) in broken.items()
    }
    assert all(len(sentence.partition(": ")[2]) > 5 and "\n" not in sentence for sentence in errors.values())
    assert all(found[name]["text"] is None for name in errors)


def staged(out: Path) -> list[Path]:
    return list(out.glob("_staging/*/*/*.staged"))


@contextlib.contextmanager
def at_work(out: Path, num_blocks: int, *flags: str | Path) -> Iterator[Job]:
    """Start a job, and give it once it has staged so many blocks."""
    with Job("infer", "--out", out, *flags, cwd=out.parent) as job:
        wait_until(lambda: len(staged(out)) >= num_blocks, job.process, explain=lambda: job.said)
        yield job


def test_a_killed_job_continues_and_a_second_one_keeps_out_of_its_way(
    corpus: Path, slow_network: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    night = ("--images", corpus, "--run", slow_network)
    with at_work(out, 3, *night) as first:
        status, _, err = run_job("infer", *night, "--out", out, cwd=tmp_path)
        assert (status, "is at work on" in err) == (2, True)
        kill(first.process.pid)
        assert first.wait() == -9
        assert not list(out.rglob("*.parquet")), "nothing is committed by halves"
    with Job("infer", *night, "--out", out, cwd=tmp_path) as second:
        assert second.wait() == 0, second.said
        kept = int(
            second.said.partition(" objects were recognized before an interruption")[0]
            .splitlines()[-1]
            .replace(",", "")
        )
        assert kept >= 3 * 256
        assert "4,000 of 4,000 objects done: 4,000 ok" in second.said
    found = rows(out)
    assert Counter(row["uri"] for row in found) == {str(path): 1 for path in corpus.rglob("*.png")}
    assert not (out / "_staging").exists()


def test_a_job_that_is_told_to_end_soon_after_its_start_keeps_what_it_has_staged(
    corpus: Path, slow_network: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    night = ("--images", corpus, "--run", slow_network)
    with at_work(out, 1, *night) as first:
        first.process.terminate()
        assert first.wait() == 143, first.said
    assert not (out / "_lease.json").exists()
    kept = sum(pq.read_metadata(path).num_rows for path in staged(out))
    with Job("infer", *night, "--out", out, cwd=tmp_path) as second:
        assert second.wait() == 0, second.said
    assert f"{kept:,} objects were recognized before an interruption and are kept" in second.said
    assert Counter(row["uri"] for row in rows(out)) == {str(path): 1 for path in corpus.rglob("*.png")}


@pytest.mark.parametrize(
    ("killed", "num_blocks", "flags"),
    [
        ("RecognizeBlocks", 3, ("--num-workers", "2")),
        ("DecodeBlocks", 0, ("--num-workers", "1", "--num-decoders", "1")),  # it is soon done with all
        ("RecognizeDecoded", 3, ("--num-workers", "1", "--num-decoders", "1")),
    ],
)
def test_a_killed_worker_is_replaced_and_nothing_is_lost_or_twice(
    killed: str, num_blocks: int, flags: tuple[str, ...], corpus: Path, slow_network: Path, tmp_path: Path
) -> None:
    out, title = tmp_path / "out", f"ray::MapWorker(MapBatches({killed}))"
    with at_work(out, num_blocks, "--images", corpus, "--run", slow_network, *flags) as running:
        wait_until(lambda: running.pids(title), running.process, explain=lambda: running.said)
        kill(running.pids(title)[0])
        assert running.wait() == 0, running.said
    assert Counter(row["uri"] for row in rows(out)) == {str(path): 1 for path in corpus.rglob("*.png")}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--images", "absent"), "absent does not exist"),
        (("--run", "absent"), "absent holds no checkpoint"),
        (("--images", "images", "--out", "images/out"), "must stand apart"),
        (("--date-pattern", "(x)"), "it must have three groups"),
        (("--max-error-fraction", "2"), "max_error_fraction is 2.0"),
        (("--images", "http://host/a"), "has a scheme this project does not read"),
        (("--images", "s3://nowhere/x", "--endpoint-url", "http://127.0.0.1:9"), "s3://nowhere/x"),
        (("--match", "nothing"), "holds no objects that match 'nothing'"),
        (("--images", "never listed", "--precision", "int8"), "cannot be run in int8: it has no such form"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    arguments: tuple[str, ...], sentence: str, network: Path, tmp_path: Path
) -> None:
    draw_glyphs(tmp_path / "images", ["ab"])
    env = environment(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY=SECRET_KEY, AWS_REGION="us-east-1")
    night = ("--images", "images", "--run", str(network), "--out", "out", *arguments)
    status, _, err = run_job("infer", *night, cwd=tmp_path, env=env)
    assert (status, len(err.splitlines())) == (2, 1), err
    assert sentence in err
    assert SECRET_KEY not in err


def test_a_replaced_network_refuses_to_start(network: Path, tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "images", ["ab"])
    shutil.copytree(network, tmp_path / "run")
    weights = tmp_path / "run/checkpoint/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    status, _, err = run_job("infer", "--images", "images", "--run", "run", "--out", "out", cwd=tmp_path)
    assert (status, "the fingerprint differs" in err) == (2, True)
    assert not (tmp_path / "out").exists()
