"""A worker's part of bulk inference, without Ray: whatever is wrong with an object, its row says it in its place."""

import datetime
import io
import math
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from captcha_ray import Recognizer
from captcha_ray.errors import InputError
from captcha_ray.inference import block_decoder, block_plan
from captcha_ray.inference.block import IDLE, BlockTask
from captcha_ray.inference.block_reader import BlockReader
from captcha_ray.models import fingerprint
from captcha_ray.predictions import schema
from captcha_ray.predictions.table import STAGED_SCHEMA, Counts
from captcha_ray.storage import filesystem, parquet, retries
from tests.factories import GLYPHS, draw_glyphs, glyph_texts, save_network
from tests.support.block_tasks import block_task
from tests.support.fault_proxy import Fault, fault_proxy
from tests.support.s3_server import client_of, serve_s3

MAX_BYTES = 20_000
THEN = datetime.datetime(2001, 2, 3, 4, 5, 6, 700_000, datetime.UTC)


def png(width: int = 24, height: int = 16, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """A PNG whose header, checksum and all, claims side x side pixels."""
    data = bytearray(png())
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def bad_checksum() -> bytes:
    """A PNG with a text whose checksum is not its own, and with whole pixels."""
    text = b"tEXtkey\0value"
    chunk = (9).to_bytes(4, "big") + text + (zlib.crc32(text) ^ 1).to_bytes(4, "big")
    data = png()
    return data[:33] + chunk + data[33:]


def flipped() -> bytes:
    """A PNG whose compressed pixels are none."""
    data = bytearray(png())
    data[43:60] = bytes(17)
    return bytes(data)


OBJECTS: dict[str, tuple[bytes | None, str]] = {
    "a.png": (png(seed=1), ""),
    "missing.png": (None, "Missing: there is no such object"),
    "truncated.png": (png()[:-60], "Truncated: OSError: "),
    "empty.png": (b"", "EmptyFile: the file has zero bytes"),
    "ä b.png": (png(seed=2), ""),
    "text.png": (b"this is a text file\n", "NotAnImage: these bytes begin no PNG"),
    "heavy.png": (png() + bytes(MAX_BYTES), f"TooLarge: {MAX_BYTES + len(png())} bytes are more than {MAX_BYTES}"),
    "bomb.png": (bomb(50_000), "TooLarge: the image has more than 16000000 pixels"),
    "large.png": (bomb(5_000), "TooLarge: 5000x5000 pixels are more than 16000000"),
    "long.png": (png(240, 16), "WrongAspect: 240x16 pixels do not fit 24x16"),
    "new\nline.png": (png(seed=3), ""),
    "checksum.png": (bad_checksum(), ""),
    "flipped.png": (flipped(), "Damaged: "),
    "z.jpg": (png(47, 33, seed=4), ""),
}
"""name: (bytes, how its error begins; none for one that is read)."""

GOOD = [name for name, (_, error) in OBJECTS.items() if not error]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_network(tmp_path_factory.mktemp("network") / "run", GLYPHS))


@pytest.fixture
def task(network: str, tmp_path: Path) -> BlockTask:
    _, model_id = fingerprint.load_spec_and_fingerprint(network)
    return block_task(network, tmp_path / "attempt", model_id=model_id, max_bytes=MAX_BYTES)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a client of an S3 server that holds `OBJECTS` in the bucket `images`."""
    folder = tmp_path_factory.mktemp("s3")
    fill(folder / "images")
    with serve_s3(folder) as environment:
        yield environment


@pytest.fixture
def clean_environment(bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """With credentials for the server, and none of its address."""
    with client_of({**bucket, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}):
        yield monkeypatch


def fill(folder: Path) -> Path:
    folder.mkdir()
    for name, (data, _) in OBJECTS.items():
        if data is not None:
            (folder / name).write_bytes(data)
    return folder


def listed(uris: list[str], **given: Any) -> list[dict[str, Any]]:
    return [{"uri": uri, "etag": "", "size": None, "last_modified": None, **given} for uri in uris]


def report() -> dict[str, Any]:
    return {"stage": "", "fetched": 0, "recognized": 0, "seconds": {}}


def read(task: BlockTask, listing: list[dict[str, Any]], block: int = 0) -> list[dict[str, Any]]:
    """The staged rows of one block."""
    rows = pa.Table.from_pylist(listing, schema.LISTING_SCHEMA)
    block_plan.write(task, [rows] * (block + 1))
    said = report()
    rows, errors = BlockReader(task, said).read(block)
    table = parquet.read(task.staged(block))
    assert table.schema.equals(STAGED_SCHEMA)
    found: list[dict[str, Any]] = table.to_pylist()
    assert (rows, errors) == (len(listing), sum(row["status"] == "error" for row in found))
    assert (said["fetched"], said["recognized"]) == (len(listing), rows - errors)
    assert {"fetch", "decode", "write"} <= set(said["seconds"])
    assert said["stage"] == IDLE, "whoever is done is at no stage that could stall"
    return found


def check_rows(rows: list[dict[str, Any]], expected: dict[str, str], task: BlockTask) -> None:
    """Rows in the listing's order, each error of its class with a sentence. expected: URI, how its error begins."""
    assert [row["uri"] for row in rows] == list(expected)
    for row, error in zip(rows, expected.values(), strict=True):
        assert row["model_id"] == task.model_id
        assert row["predicted_at"].tzinfo is not None
        if error:
            assert row["status"] == "error"
            assert row["text"] is row["confidence"] is row["char_confidence"] is None
            assert row["error"].startswith(error), row
            kind, _, sentence = row["error"].partition(": ")
            assert kind.isalpha()
            assert sentence.strip() == sentence
            assert len(sentence) > 10
            assert "\n" not in sentence
        else:
            assert (row["status"], row["error"]) == ("ok", None)
            assert row["confidence"] == pytest.approx(math.prod(row["char_confidence"]), rel=1e-5)
            assert len(row["text"]) == len(row["char_confidence"]) == 2


def check_predictions(rows: list[dict[str, Any]], network: str) -> None:
    """The good rows say what the recognizer says of the same bytes."""
    names = [row["uri"].rpartition("/")[2] for row in rows if row["status"] == "ok"]
    data = [OBJECTS[name][0] or b"" for name in names]
    found = [(row["text"], row["confidence"], tuple(row["char_confidence"])) for row in rows if row["status"] == "ok"]
    said = Recognizer.load(network).predict(data)
    assert found == [(one.text, float(np.float32(one.confidence)), one.char_confidence) for one in said]
    assert len(set(found)) > 1


def test_a_block_of_good_and_broken_files_gives_every_row_in_its_place(
    network: str, task: BlockTask, tmp_path: Path
) -> None:
    folder = fill(tmp_path / "images")
    (folder / "folder.png").mkdir()
    expected = {str(folder / name): error for name, (_, error) in OBJECTS.items()}
    expected |= {
        "http://images/a.png": "UnknownScheme: only paths, s3://, gs:// and az:// are read",
        f"file://{folder}/a.png": "UnknownScheme: ",
        str(folder / "folder.png"): "NotAnImage: Is a directory",
        str(folder / "a.png/b.png"): "StoreError: Not a directory",
        "s3://": "StoreError: ",
        f"{folder}/{'x' * 300}.png": "NotAnImage: File name too long",
        f"{folder}/\\xff.png": "Missing: there is no such object; its name may not be UTF-8",
    }
    rows = read(task, listed(list(expected)))
    check_rows(rows, expected, task)
    check_predictions(rows, network)


def test_folders_among_the_images_take_no_file_numbers(task: BlockTask, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(IsADirectoryError):
            filesystem.fetch(str(tmp_path), MAX_BYTES)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_pipe_among_the_images_is_an_error_and_not_waited_for(task: BlockTask, tmp_path: Path) -> None:
    pipe = str(tmp_path / "pipe.png")
    os.mkfifo(pipe)
    check_rows(read(task, listed([pipe])), {pipe: "NotAnImage: not a regular file"}, task)


def test_a_name_that_holds_a_zero_byte_is_an_error_of_its_own(task: BlockTask) -> None:
    check_rows(read(task, listed(["/a\0b.png"])), {"/a\0b.png": "NotAnImage: embedded null byte"}, task)


def test_what_the_listing_left_out_is_filled_in_and_what_it_said_is_kept(task: BlockTask, tmp_path: Path) -> None:
    folder = fill(tmp_path / "images")
    names = [name for name in OBJECTS if name != "missing.png"]
    rows = read(task, listed([str(folder / name) for name in names]))
    entries = {entry.uri: entry for page in filesystem.list_pages(str(folder)) for entry in page}
    for row in rows:
        entry = entries[row["uri"]]
        assert (row["etag"], row["size"], row["last_modified"]) == (entry.etag, entry.size, entry.last_modified)
        assert row["etag"]
    told = {"etag": "abc", "size": 7, "last_modified": THEN}
    rows = read(task, listed([str(folder / name) for name in OBJECTS], **told), block=1)
    assert {(row["etag"], row["size"], row["last_modified"]) for row in rows} == {("abc", 7, THEN)}
    rows = read(task, listed([str(folder / "missing.png")]), block=2)
    assert [(row["etag"], row["size"], row["last_modified"]) for row in rows] == [("", None, None)]


def test_an_object_that_its_listing_calls_too_large_is_not_fetched(task: BlockTask, tmp_path: Path) -> None:
    folder = fill(tmp_path / "images")
    sizes = {"a.png": MAX_BYTES, "z.jpg": MAX_BYTES + 1, "missing.png": MAX_BYTES + 1}
    rows = read(task, [row for name, size in sizes.items() for row in listed([str(folder / name)], size=size)])
    too_large = f"TooLarge: {MAX_BYTES + 1} bytes are more than {MAX_BYTES}"
    check_rows(rows, dict(zip([str(folder / name) for name in sizes], ["", too_large, too_large], strict=True)), task)


def test_a_block_of_several_batches_keeps_its_order_with_any_number_of_decoders(
    network: str, task: BlockTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = draw_glyphs(tmp_path / "images", glyph_texts(11, 2))
    uris = sorted(str(path) for path in folder.iterdir())
    uris[4:4] = [str(folder / "missing.png")]
    uris[8:12] = uris[:4]  # a whole batch, of what is there already
    expected = {row["uri"]: (row["text"], row["status"]) for row in read(task, listed(uris))}
    monkeypatch.setattr(block_decoder, "BATCH_SIZE", 4)
    for threads in (1, 3):
        several = BlockTask(**{**vars(task), "num_threads": threads})
        rows = read(several, listed(uris), block=threads)
        assert [(row["uri"], row["text"], row["status"]) for row in rows] == [(uri, *expected[uri]) for uri in uris]


def test_a_batch_without_a_single_good_image_is_a_batch_of_errors(task: BlockTask) -> None:
    uris = ["/nowhere/a", "/nowhere/b"]
    check_rows(read(task, listed(uris)), dict.fromkeys(uris, "Missing: "), task)


def test_one_reader_reads_block_after_block(task: BlockTask, tmp_path: Path) -> None:
    folder = fill(tmp_path / "images")
    blocks = [pa.Table.from_pylist(listed([str(folder / name)]), schema.LISTING_SCHEMA) for name in GOOD[:4]]
    block_plan.write(task, blocks)
    said = report()
    one = BlockReader(task, said)
    assert [one.read(block) for block in (2, 0, 3, 1)] == [(1, 0)] * 4
    assert said["recognized"] == 4
    for block, name in enumerate(GOOD[:4]):
        assert parquet.read(task.staged(block))["uri"].to_pylist() == [str(folder / name)]


def test_a_network_that_was_replaced_since_the_job_began_is_refused(task: BlockTask, tmp_path: Path) -> None:
    run = shutil.copytree(task.model, tmp_path / "run")
    mine = BlockTask(**{**vars(task), "model": str(run)})
    BlockReader(mine, report())
    save_network(run, GLYPHS, seed=1)
    with pytest.raises(InputError, match="is not the network it was when this job began"):
        BlockReader(mine, report())


def test_a_bucket_gives_the_rows_that_a_folder_gives_and_a_denied_object_is_one_row(
    network: str, task: BlockTask, bucket: dict[str, str], clean_environment: pytest.MonkeyPatch
) -> None:
    """All in batches of four, so that one is fetched while the one before is read."""
    clean_environment.setattr(block_decoder, "BATCH_SIZE", 4)
    clean_environment.setattr(retries, "BACKOFF_S", 0.001)

    def plan(_: str, path: str, __: int) -> Fault | None:
        return {"/images/denied.png": Fault.DENIED, "/images/lost.png": Fault.INTERNAL}.get(path)

    # rclone has no room for a newline; test_objectstore.py reads such keys from another server
    errors = {name: error for name, (_, error) in OBJECTS.items() if "\n" not in name}
    errors |= {"denied.png": "Denied: ", "lost.png": "StoreError: "}
    expected = {f"s3://images/{name}": error for name, error in errors.items()}
    expected["s3://no-such-bucket/a.png"] = "Missing: "
    with fault_proxy(bucket["AWS_ENDPOINT_URL"], plan) as proxy:
        remote = BlockTask(**{**vars(task), "endpoint_url": proxy.url})
        rows = read(remote, listed(list(expected)))
        requests = proxy.requests
    check_rows(rows, expected, task)
    check_predictions_by_uri(rows, network)
    assert requests["GET", "/images/a.png"] == 1
    assert requests["GET", "/images/denied.png"] == 1
    assert requests["GET", "/images/lost.png"] == retries.ATTEMPTS
    for row in rows:
        if row["status"] == "ok":
            data = OBJECTS[row["uri"].removeprefix("s3://images/")][0]
            assert (row["size"], bool(row["etag"])) == (len(data or b""), True)
            assert row["last_modified"].tzinfo is not None


def check_predictions_by_uri(rows: list[dict[str, Any]], network: str) -> None:
    """Check as `check_predictions` does, of batches that are not the recognizer's own: the last digits may differ."""
    recognizer = Recognizer.load(network)
    for row in rows:
        if row["status"] == "ok":
            prediction = recognizer.predict(OBJECTS[row["uri"].removeprefix("s3://images/")][0] or b"")
            assert row["text"] == prediction.text
            assert row["char_confidence"] == pytest.approx(prediction.char_confidence, rel=1e-3)


def test_an_object_that_its_listing_calls_too_large_is_not_asked_for(
    task: BlockTask, bucket: dict[str, str], clean_environment: pytest.MonkeyPatch
) -> None:
    with fault_proxy(bucket["AWS_ENDPOINT_URL"], lambda *_: None) as proxy:
        remote = BlockTask(**{**vars(task), "endpoint_url": proxy.url})
        rows = read(remote, listed(["s3://images/a.png"], size=MAX_BYTES + 1))
        assert not proxy.requests
    check_rows(rows, {"s3://images/a.png": "TooLarge: "}, task)


def test_predictions_of_less_confidence_than_asked_for_are_uncertain(task: BlockTask, tmp_path: Path) -> None:
    folder = fill(tmp_path / "images")
    uris = [str(folder / name) for name in OBJECTS]
    confidences = sorted(row["confidence"] for row in read(task, listed(uris)) if row["status"] == "ok")
    assert len(confidences) == len(GOOD)
    middle = confidences[len(confidences) // 2]
    rows = read(BlockTask(**{**vars(task), "min_confidence": middle}), listed(uris), block=1)
    status = {row["uri"]: row["status"] for row in rows}
    assert sorted(status.values()) == sorted(
        ["ok" if c >= middle else "uncertain" for c in confidences] + ["error"] * (len(OBJECTS) - len(GOOD))
    )
    counts = Counts.of(pa.Table.from_pylist(rows))
    assert (counts.ok, counts.uncertain) == (len(GOOD) - len(GOOD) // 2, len(GOOD) // 2)
    assert counts.total == len(OBJECTS)
    for row in rows:
        assert (row["text"] is None) == (row["status"] == "error")
