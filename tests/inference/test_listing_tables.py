"""Tables and inventories of objects become one Parquet file, and what is wrong with them one sentence."""

import datetime
import gzip
import json
import re
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pytest

from captcha_ray.errors import InputError
from captcha_ray.inference import listing
from captcha_ray.storage import filesystem
from tests.support.listings import DAYS, fill, parquet, uris

# --- tables


NAMES = ["uri", "path", "url", "URI", "Path"]
ETAGS = ["etag", "e_tag", "ETag"]
SIZES = ["size", "size_bytes", "Size"]
TIMES = ["last_modified", "last_modified_date", "Last_Modified"]


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".parquet", ".CSV", ".Csv.GZ", ".PARQUET"])
@pytest.mark.parametrize("number", range(5))
def test_columns_bear_any_of_their_names(place: Path, write: Callable[..., Any], ending: str, number: int) -> None:
    name, etag, size, modified = (names[number % len(names)] for names in (NAMES, ETAGS, SIZES, TIMES))
    if ending.lower() == ".parquet":
        columns = {
            name: ["a.png", "b.png"],
            etag: ['"q"', None],
            size: [1, None],
            modified: pa.array([DAYS[0], None], pa.timestamp("ms", "UTC")),
            "note": ["x", "y"],
        }
        data = parquet(**dict(reversed(columns.items())))
    else:
        data = (
            f'note,{modified},{size},{etag},{name}\nx,2026-01-01T12:00:00.000Z,1,"""q""",a.png\ny,,,,b.png\n'.encode()
        )
        data = gzip.compress(data) if ending.lower() == ".csv.gz" else data
    (place / f"table{ending}").write_bytes(data)
    assert write(place / f"table{ending}") == [
        {"uri": f"{place}/a.png", "etag": "q", "size": 1, "last_modified": DAYS[0]},
        {"uri": f"{place}/b.png", "etag": "", "size": None, "last_modified": None},
    ]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_bucket_and_key_make_a_uri_whatever_the_key(place: Path, write: Callable[..., Any], ending: str) -> None:
    keys = ["/lead", "/etc/passwd", "../x", "a b", "a//b", 'quo"te', "line\nfeed", "x://y", "日本", "007", "NULL"]
    if ending == ".csv":
        quoted = (key.replace('"', '""') for key in keys)
        data = ("Bucket,Key\n" + "".join(f'bucket,"{key}"\n' for key in quoted)).encode()
    else:
        data = parquet(bucket=["bucket"] * len(keys), key=pa.array(keys).dictionary_encode())
    (place / f"table{ending}").write_bytes(data)
    assert uris(write(place / f"table{ending}")) == sorted(f"s3://bucket/{key}" for key in keys)


PATHS = ["a.png", "sub/b.png", "../up.png", "/etc/passwd", "s3://other/x//y", "gs://other/x", " sp ace ", "#x"]


def test_paths_of_a_local_table_stand_beside_it_or_are_whole(place: Path, write: Callable[..., Any]) -> None:
    (place / 'it\'s a "table".csv').write_text("\n".join(["path", *PATHS, '"quo""te"', '"com,ma"', '""', ""]))
    whole = {"/etc/passwd", "s3://other/x//y", "gs://other/x"}
    expected = [path if path in whole else f"{place}/{path}" for path in [*PATHS, 'quo"te', "com,ma"]]
    assert uris(write(place / 'it\'s a "table".csv')) == sorted(expected)


def test_paths_of_a_table_in_a_bucket_name_no_local_file(bucket: str, write: Callable[..., Any]) -> None:
    filesystem.write(f"{bucket}/table.csv", "\n".join(["path", *PATHS, ""]).encode())
    elsewhere = {"s3://other/x//y", "gs://other/x"}
    expected = [path if path in elsewhere else f"{bucket}/{path}" for path in PATHS]
    assert uris(write(f"{bucket}/table.csv")) == sorted(expected)
    assert all(filesystem.is_remote(uri) for uri in expected)


def test_a_uri_that_stands_twice_is_listed_once_as_it_was_last(place: Path, write: Callable[..., Any]) -> None:
    rows = [("a", "none", None), ("a", "first", DAYS[0]), ("a", "last", DAYS[2]), ("a", "middle", DAYS[1])]
    rows += [(f"x{k}", f"{k}-{day}", DAYS[day]) for k in range(3000) for day in (k % 3, 3, (k + 1) % 3)]
    paths, etags, times = zip(*rows, strict=True)
    (place / "table.parquet").write_bytes(parquet(path=paths, etag=etags, last_modified=times))
    found = {row["uri"].removeprefix(f"{place}/"): row["etag"] for row in write(place / "table.parquet")}
    assert found == {"a": "last", **{f"x{k}": f"{k}-3" for k in range(3000)}}


def test_rows_without_a_path_are_no_objects(place: Path, write: Callable[..., Any]) -> None:
    (place / "table.parquet").write_bytes(parquet(path=["a", None, ""], size=[1, 2, 3]))
    assert uris(write(place / "table.parquet")) == [f"{place}/a"]
    (place / "table.csv").write_text("path,size\n")
    assert write(place / "table.csv") == []


@pytest.mark.parametrize("match", ["it's", r"2026/\w+\.png$"])
def test_a_pattern_is_searched_in_a_tables_uris(place: Path, write: Callable[..., Any], match: str) -> None:
    (place / "table.csv").write_text("uri\ns3://b/it's/2026/a.png\ns3://b/2025/a.png\ns3://b/2026/a.gif\n")
    assert uris(write(place / "table.csv", match=match)) == ["s3://b/it's/2026/a.png"]


def test_a_pattern_is_of_one_kind_for_folders_and_tables(place: Path, write: Callable[..., Any]) -> None:
    match = r"/(?!thumb)[^/]*\.png$"
    fill(place / "images", "thumb-a.png", "a.png")
    assert uris(write(place / "images", match=match)) == [f"{place}/images/a.png"]
    (place / "table.csv").write_text("path\nimages/thumb-a.png\nimages/a.png\n")
    assert uris(write(place / "table.csv", match=match)) == [f"{place}/images/a.png"]


def test_what_is_no_number_or_time_is_left_open(place: Path, write: Callable[..., Any]) -> None:
    (place / "table.csv").write_text('path,size,last_modified,etag\na,big,yesterday,W/"q"\n')
    (row,) = write(place / "table.csv")
    assert row == {"uri": f"{place}/a", "etag": "q", "size": None, "last_modified": None}


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_time_that_does_not_say_where_is_utc(
    place: Path, write: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    naive = DAYS[0].replace(tzinfo=None)
    data = parquet(path=["a"], last_modified=[naive]) if ending == ".parquet" else f"path,last_modified\na,{naive}\n"
    (place / f"table{ending}").write_bytes(data if isinstance(data, bytes) else data.encode())
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        (row,) = write(place / f"table{ending}")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert row["last_modified"] == DAYS[0]


@pytest.mark.parametrize(
    "text",
    [
        "url\na;1.png\nb;2.png\n",
        "url\na|1.png\nb|2.png\n",
        "url\n" + "".join(f"{k}.png\n" for k in range(30_000)) + '"quo""te"\n',
        "url\n'a'\n'b'\n",
        "url\r\na.png\r\nb c.png\r\n",
        "\ufeffurl\nü.png\n",
        'url\n"line\nfeed"\n',
        "url\n#a.png\n#b.png\n",
        "url\n1.50\n2.50\n",
    ],
    ids=["semicolon", "bar", "late quotes", "apostrophes", "crlf", "byte order mark", "line feed", "hash", "numbers"],
)
def test_a_csv_is_read_as_it_is_written(place: Path, write: Callable[..., Any], text: str) -> None:
    (place / "table.csv").write_bytes(text.encode())
    body = text.removeprefix("\ufeff").removeprefix("url").strip().replace("\r", "")
    names = [body.strip('"')] if "\n" not in body or '"line' in body else body.split("\n")
    expected = [name.strip('"').replace('""', '"') for name in names]
    assert uris(write(place / "table.csv")) == sorted(f"{place}/{name}" for name in expected)


@pytest.mark.parametrize("text", ["path,size\n#a.png\nb.png,2\n", "path\n a , b\n", "path,size\na,1\n# b\nc,2\n"])
def test_a_csv_whose_rows_are_of_unequal_length_is_refused(place: Path, write: Callable[..., Any], text: str) -> None:
    (place / "table.csv").write_text(text)
    with pytest.raises(InputError, match="cannot be read: "):
        write(place / "table.csv")


GOOD = gzip.compress(("path\n" + "".join(f"{zlib.crc32(b'%d' % k):x}\n" for k in range(2000))).encode(), mtime=0)


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("columns.csv", b"name,text\na,b\n", "has no column uri, path, or bucket and key; it has name, text"),
        ("columns.parquet", parquet(**{'na"me': ["a"], "key": ["b"]}), 'has no column .*; it has na"me, key'),
        ("bytes.csv", b"path\n\xff\xfe.png\n", "cannot be read: "),
        ("empty.csv", b"", "has no column "),
        ("empty.parquet", b"", "cannot be read: "),
        ("cut.parquet", parquet(path=["a"])[:-9], "cannot be read: "),
        ("no.parquet", b"PAR1, it says, and nothing more PAR1", "cannot be read: "),
        ("rows.csv", b"path,size\na,1\nb,2,3,4\n", "cannot be read: |has no column "),
        ("no.csv.gz", b"path\na\n", "cannot be read: "),
        ("cut.csv.gz", GOOD[:-20], "cannot be read: "),
        ("broken.csv.gz", GOOD[:99] + bytes(99) + GOOD[198:], "cannot be read: "),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_a_table_that_cannot_be_used_is_one_sentence(
    place: Path, write: Callable[..., Any], name: str, data: bytes, sentence: str
) -> None:
    (place / name).write_bytes(data)
    with pytest.raises(InputError, match=f"^the listing {re.escape(str(place / name))} ({sentence})") as caught:
        write(place / name)
    assert "\n" not in str(caught.value)
    assert not list(place.parent.rglob("source*"))


def test_an_absent_table_is_one_sentence(place: Path, bucket: str, write: Callable[..., Any]) -> None:
    (place / "folder.csv").mkdir()
    for table, reason in {
        f"{place}/none.csv": "No such file or directory",
        f"{place}/folder.csv": "Is a directory",
        f"{bucket}/none.parquet": f"{bucket}/none.parquet or its bucket does not exist",
    }.items():
        with pytest.raises(InputError, match=f"^the listing {re.escape(table)} cannot be read: {re.escape(reason)}$"):
            write(table)


# --- inventories of Amazon S3


KEYS = [
    "a b.png",
    "plus+.png",
    "50%.png",
    "q?x#y%2Fz.png",
    'quo"te,comma.png',
    "line\nfeed.png",
    "日本.png",
    "../x//y.png",
]
SCHEMA = [
    "Bucket",
    "Key",
    "VersionId",
    "IsLatest",
    "IsDeleteMarker",
    "Size",
    "LastModifiedDate",
    "ETag",
    "StorageClass",
]


def inventory(place: str, form: str) -> str:
    """Writes what Amazon writes for a bucket with versions, in two tables; returns the URI of its manifest."""
    rows = [["b", key, "v2", "true", "false", "7", "2026-01-01T12:00:00.000Z", "q", "STANDARD"] for key in KEYS]
    rows += [["b", key, "v1", "false", "false", "6", "2026-01-02T12:00:00.000Z", "old", "STANDARD"] for key in KEYS]
    rows += [["b", "deleted.png", "v2", "true", "true", "", "2026-01-02T12:00:00.000Z", "", ""]]
    rows += [["b", "deleted.png", "v1", "false", "false", "5", "2026-01-01T12:00:00.000Z", "p", "STANDARD"]]
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    files = []
    for number, part in enumerate((rows[::2], rows[1::2])):
        if form == "CSV":
            lines = [",".join(f'"{field}"' for field in [row[0], quote_plus(row[1]), *row[2:]]) for row in part]
            name, data = f"{prefix}/data/{number}.csv.gz", gzip.compress("\n".join([*lines, ""]).encode())
        else:
            snake = [re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower().replace("etag", "e_tag") for name in SCHEMA]
            columns: dict[str, Any] = dict(zip(snake, map(list, zip(*part, strict=True)), strict=True))
            columns |= {
                name: [value == "true" for value in columns[name]] for name in ("is_latest", "is_delete_marker")
            }
            columns["size"] = [int(size) if size else None for size in columns["size"]]
            times = [datetime.datetime.fromisoformat(time) for time in columns["last_modified_date"]]
            columns["last_modified_date"] = pa.array(times, pa.timestamp("ms", "UTC"))
            name, data = f"{prefix}/data/{number}.parquet", parquet(**columns)
        filesystem.write(f"s3://{bucket}/{name}", data)
        files.append({"key": name, "size": len(data), "MD5checksum": ""})
    manifest = {
        "sourceBucket": "b",
        "destinationBucket": f"arn:aws:s3:::{bucket}",
        "fileFormat": form,
        "fileSchema": ", ".join(SCHEMA) if form == "CSV" else "message s3.inventory { required binary bucket (UTF8); }",
        "files": files,
    }
    filesystem.write(f"{place}/2026-01-03T01-00Z/manifest.json", json.dumps(manifest).encode())
    return f"{place}/2026-01-03T01-00Z/manifest.json"


@pytest.mark.parametrize("form", ["CSV", "Parquet"])
def test_an_inventory_lists_the_objects_of_today(bucket: str, write: Callable[..., Any], form: str) -> None:
    manifest = inventory(bucket, form)
    expected = [{"uri": f"s3://b/{key}", "etag": "q", "size": 7, "last_modified": DAYS[0]} for key in sorted(KEYS)]
    assert write(manifest) == expected
    assert write(manifest, match=r"\+") == [row for row in expected if "+" in row["uri"]]


def test_names_of_an_inventory_are_data(bucket: str, write: Callable[..., Any]) -> None:
    """A quote in one would end the literal it stands in."""
    filesystem.write(f"{bucket}/data/1.csv.gz", gzip.compress(b'"b","k.png","x"\n'))
    odd = "a'\"b"
    manifest = GOOD_MANIFEST | {
        "destinationBucket": f"arn:aws:s3:::{bucket.removeprefix('s3://')}",
        "fileSchema": f"Bucket, Key, {odd}",
        "files": [{"key": "data/1.csv.gz"}],
    }
    filesystem.write(f"{bucket}/odd/manifest.json", json.dumps(manifest).encode())
    assert [row["uri"] for row in write(f"{bucket}/odd/manifest.json")] == ["s3://b/k.png"]


def test_a_table_of_an_inventory_that_is_gone_is_one_sentence(bucket: str, write: Callable[..., Any]) -> None:
    manifest = inventory(bucket, "CSV")
    gone = f"{bucket}/data/1.csv.gz"
    filesystem.delete(gone)
    with pytest.raises(InputError, match=f"^the listing {gone} cannot be read: {gone} or its bucket does not exist$"):
        write(manifest)


GOOD_MANIFEST = {"destinationBucket": "arn:aws:s3:::b", "fileFormat": "CSV", "fileSchema": "Bucket, Key", "files": []}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is no manifest of an S3 inventory: JSONDecodeError"),
        (b"\xff", "is no manifest of an S3 inventory: UnicodeDecodeError"),
        (b"[]", "is no manifest of an S3 inventory: TypeError"),
        (b'{"files": []}', "is no manifest of an S3 inventory: KeyError: 'destinationBucket'"),
        (json.dumps(GOOD_MANIFEST | {"files": ["x"]}).encode(), "is no manifest of an S3 inventory: TypeError"),
        (json.dumps(GOOD_MANIFEST | {"fileSchema": 7}).encode(), "is no manifest of an S3 inventory: AttributeError"),
        (json.dumps(GOOD_MANIFEST | {"fileFormat": "ORC"}).encode(), "is in ORC; only CSV and Parquet are read"),
    ],
    ids=["empty", "bytes", "list", "other", "files", "schema", "orc"],
)
def test_what_is_no_manifest_is_one_sentence(
    tmp_path: Path, write: Callable[..., Any], data: bytes, sentence: str
) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes(data)
    with pytest.raises(InputError, match=f"{re.escape(str(manifest))} {re.escape(sentence)}") as caught:
        write(manifest)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.tsv", b"size\tfile_name\n1\ta.png\n2\tb;c.png\n"),
        ("t.csv", b'size;image\n1;a.png\n2;"b;c.png"\n'),
        ("t.csv", b"size|file|x,y\n1|a.png|3\n2|b;c.png|4\n"),
        ("t.csv", b'path,"a;b;c"\na.png,1\nb;c.png,2\n'),
        ("t.csv", b"\n\npath,x\na.png,1\nb;c.png,2\n"),
        ("t.csv", b'sep=;\npath;x\na.png;1\n"b;c.png";2\n'),
        ("t.jsonl", b'{"size": 1, "path": "a.png"}\n{"path": "b;c.png", "size": 2, "more": [1]}\n'),
        ("T.NDJSON.gz", gzip.compress(b'{"path": "a.png"}\n{"path": "b;c.png"}\n', mtime=0)),
    ],
)
def test_tables_of_other_kinds_list_images_too(place: Path, write: Callable[..., Any], name: str, data: bytes) -> None:
    (place / name).write_bytes(data)
    assert listing.is_table(str(place / name))
    assert {row["uri"] for row in write(place / name)} == {f"{place}/a.png", f"{place}/b;c.png"}


def test_paths_in_parquet_may_be_bytes_and_nothing_but_text(place: Path, write: Callable[..., Any]) -> None:
    (place / "t.parquet").write_bytes(parquet(path=["é7.png".encode(), b"007.png"]))
    assert {row["uri"] for row in write(place / "t.parquet")} == {f"{place}/é7.png", f"{place}/007.png"}
    for column, kind in (([8.0], "DOUBLE"), ([["a.png"]], "VARCHAR[]"), ([{"path": "a"}], "STRUCT")):
        (place / "t.parquet").write_bytes(parquet(path=column))
        with pytest.raises(
            InputError, match=rf"the column 'path' of the listing .* is of type {re.escape(kind)}.*: it must"
        ):
            write(place / "t.parquet")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("path\na.png\n".encode("utf-16"), r"t\.csv is in utf-16; convert it by iconv -f utf-16 -t utf-8"),
        ("path\na.png\n".encode("utf-16-le"), r"t\.csv is in utf-16-le; convert it"),
        ("path\nä.png\n".encode("cp1252") * 3, r"t\.csv cannot be read: it is not in UTF-8; convert it; if it is from"),
        (b'path,text\na.png,1\nb.png,"2\n', r"the listing .*t\.csv cannot be read: (?!.*(source\.csv|UTF-8))"),
        (b"path\na.png,extra\nb.png\n", r"the listing .*t\.csv cannot be read: (?!.*(source\.csv|UTF-8))"),
    ],
)
def test_what_is_wrong_with_a_listing_is_said_of_the_table_itself(
    place: Path, write: Callable[..., Any], data: bytes, sentence: str
) -> None:
    (place / "t.csv").write_bytes(data)
    with pytest.raises(InputError, match=sentence):
        write(place / "t.csv")


def test_paths_in_json_lines_are_text_whatever_they_look_like(place: Path, write: Callable[..., Any]) -> None:
    names = ["550E8400-e29b-41d4-a716-446655440000", "2026-11-01", "12:30:01", "007", "1e5"]
    (place / "t.jsonl").write_text("".join(json.dumps({"uri": name, "etag": "q"}) + "\n" for name in names))
    assert {row["uri"] for row in write(place / "t.jsonl")} == {f"{place}/{name}" for name in names}
