"""Labels come from folders, names or tables as text, and what no rule names has none."""

import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captcha_ray.datasets.labels import LabelRule, Listing, label_of, list_corpus, read_table
from captcha_ray.errors import InputError
from captcha_ray.storage.filesystem import is_hidden

ODD_NAMES = ["two words.png", "ünï-日本.png", "line\nfeed.png", "a%2Fb.png", "#+?&=.png", " lead.png", "no-ending"]
HIDDEN_FILES = [
    ".DS_Store",
    "7/Thumbs.db",
    "7/THUMBS.DB",
    "7/desktop.ini",
    "__MACOSX/7/._a.png",
    ".hidden/7/a.png",
    "7/.a.png",
]


def fill(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return str(folder)


def found(listing: Listing, corpus: str) -> dict[str, str | None]:
    names = [uri.removeprefix(f"{corpus}/") for uri in listing.uris]
    return dict(zip(names, listing.texts, strict=True))


def test_by_folder_the_label_is_the_parent_folders_name(tmp_path: Path) -> None:
    corpus = fill(tmp_path / "all", "7/a.png", "7/b.png", "x/007/c.png")
    assert found(list_corpus(corpus, LabelRule("folder")), corpus) == {
        "7/a.png": "7",
        "7/b.png": "7",
        "x/007/c.png": "007",
    }


def test_by_name_the_label_is_all_before_the_last_dot(tmp_path: Path) -> None:
    corpus = fill(tmp_path, "007.png", "a.b.png", "sub/x1.jpeg", "bare")
    listing = list_corpus(corpus, LabelRule("filename"))
    assert found(listing, corpus) == {"007.png": "007", "a.b.png": "a.b", "sub/x1.jpeg": "x1", "bare": "bare"}


@pytest.mark.parametrize(
    ("pattern", "name", "label"),
    [
        (r"^([^-]+)", "ab12c-0001.png", "ab12c"),
        (r"[0-9]+", "img_042_x.png", "042"),
        (r"_([a-z])([a-z])", "0_xy.png", "x"),
        (r"^(?:img_)(\d+)$", "img_7.png", "7"),
        (r"[0-9]+", "letters.png", None),
        (r"x*", "abc.png", None),
        (r"^(x)?abc", "abc.png", None),
        (r"png", "a.png", None),
    ],
)
def test_a_pattern_gives_its_first_group_or_all_it_matches_or_nothing(
    pattern: str, name: str, label: str | None
) -> None:
    assert label_of(f"/corpus/9/{name}", "/corpus", "filename", re.compile(pattern)) == label


def test_files_without_a_label_stay_listed(tmp_path: Path) -> None:
    corpus = fill(tmp_path, "a-1.png", "1.png")
    assert found(list_corpus(corpus, LabelRule("filename", "^[a-z]+")), corpus) == {"a-1.png": "a", "1.png": None}


def test_what_operating_systems_leave_is_counted_and_not_listed(tmp_path: Path) -> None:
    corpus = fill(tmp_path, "7/a.png", *HIDDEN_FILES)
    listing = list_corpus(corpus, LabelRule("folder"))
    assert found(listing, corpus) == {"7/a.png": "7"}
    assert listing.num_hidden == len(HIDDEN_FILES)


def test_a_hidden_folder_above_the_corpus_hides_nothing(tmp_path: Path) -> None:
    corpus = fill(tmp_path / ".cache" / "__MACOSX", "7/a.png")
    assert found(list_corpus(corpus, LabelRule("folder")), corpus) == {"7/a.png": "7"}


@pytest.mark.parametrize("uri", ["s3://b/c/.DS_Store", "s3://b/c/7/Thumbs.db", "s3://b/c/__MACOSX/7/a.png"])
def test_junk_in_a_bucket_is_junk(uri: str) -> None:
    assert is_hidden(uri, "s3://b/c")
    assert not is_hidden("s3://b/c/7/a.png", "s3://b/c")


def test_a_corpus_of_one_file_is_that_file(tmp_path: Path) -> None:
    fill(tmp_path, "7/a.png")
    assert list_corpus(f"{tmp_path}/7/a.png", LabelRule("folder")) == Listing([f"{tmp_path}/7/a.png"], ["7"], 0)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_listed_and_labeled_as_they_are(tmp_path: Path, name: str) -> None:
    corpus = fill(tmp_path, f"{name}/{name}")
    assert found(list_corpus(corpus, LabelRule("folder")), corpus) == {f"{name}/{name}": name}
    stem = name.removesuffix(".png")
    assert found(list_corpus(corpus, LabelRule("filename")), corpus) == {f"{name}/{name}": stem}


def test_an_absent_corpus_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        list_corpus(f"{tmp_path}/nowhere", LabelRule("folder"))


def write_table(folder: Path, kind: str, rows: list[tuple[str | None, str | None]]) -> str:
    path = folder / f"labels.{kind}"
    if kind == "csv":
        lines = [f'"{path or ""}","{text or ""}"\r\n' for path, text in rows]
        path.write_bytes("".join(["path,text\r\n", *lines]).encode())
    else:
        pq.write_table(pa.table({"path": [p for p, _ in rows], "text": [t for _, t in rows]}), path)
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_gives_labels_as_text_and_paths_relative_to_itself(tmp_path: Path, kind: str) -> None:
    table = write_table(
        tmp_path,
        kind,
        [
            ("7/a.png", "007"),
            ("/elsewhere/b.png", "1e5"),
            ("s3://bucket/c.png", " x "),
            ("file:///d.png", "NA"),
            ("e.png", None),
            (None, "lost"),
            *((name, name) for name in ODD_NAMES),
        ],
    )
    assert list(read_table(table)) == [
        (f"{tmp_path}/7/a.png", "007"),
        ("/elsewhere/b.png", "1e5"),
        ("s3://bucket/c.png", " x "),
        ("/d.png", "NA"),
        (f"{tmp_path}/e.png", None),
        (f"{table}#row-6", None),
        *((f"{tmp_path}/{name}", name) for name in ODD_NAMES),
    ]


def test_a_tables_rows_are_the_corpus_in_their_order(tmp_path: Path) -> None:
    table = write_table(tmp_path, "csv", [("b.png", "2"), ("a.png", "1"), (".hidden.png", "3")])
    listing = list_corpus("/not/looked/at", LabelRule("table", table=table))
    assert found(listing, str(tmp_path)) == {"b.png": "2", "a.png": "1", ".hidden.png": "3"}
    assert listing.num_hidden == 0


def test_numbers_in_a_parquet_table_become_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [7, 10], "path": ["a", "b"], "more": [0, 0]}), tmp_path / "t")
    assert [text for _, text in read_table(f"{tmp_path}/t")] == ["7", "10"]


def test_a_byte_order_mark_and_further_columns_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfpath,note,text\na.png,x,\xc3\xa4\nb.png,y,2,z\nc.png\n")
    assert [text for _, text in read_table(f"{tmp_path}/t.csv")] == ["ä", "2", None]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"file,text\na,b\n", "has no column 'path'; it has file, text"),
        (b"path;text\na;b\n", "has no column 'path'; it has path;text"),
        (b"path\na\n", "has no column 'text'; it has path"),
        (b"", "has no column 'path'; it has none"),
        (b"path,text\n\xff\xfe,b\n", "is neither Parquet nor CSV in UTF-8"),
        (b"path,text\na," + b"x" * 200_000, "is no readable CSV: field larger"),
        (b"PAR1 and then nothing", "is no readable Parquet"),
    ],
)
def test_a_table_that_is_none_is_refused_by_name(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(InputError, match=f"the table {tmp_path}/t.csv {re.escape(said)}"):
        list(read_table(f"{tmp_path}/t.csv"))


def test_a_parquet_table_without_a_column_is_refused_by_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a"], "label": ["b"]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="has no column 'text'; it has path, label"):
        list(read_table(f"{tmp_path}/t.parquet"))


def test_an_absent_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the table .*/none\.csv cannot be read: No such file"):
        list(read_table(f"{tmp_path}/none.csv"))


def test_a_table_with_an_address_nobody_reads_is_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path, "csv", [("http://host/a.png", "1")])
    with pytest.raises(InputError, match=r"http://host/a\.png has a scheme this project does not read"):
        list(read_table(table))


def test_an_image_beside_the_class_folders_has_no_label(tmp_path: Path) -> None:
    for name in ("7/a.png", "b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    listing = list_corpus(str(tmp_path), LabelRule("folder"))
    assert dict(zip(listing.uris, listing.texts, strict=True)) == {
        str(tmp_path / "7/a.png"): "7",
        str(tmp_path / "b.png"): None,
    }


def test_a_linked_class_folder_is_read_and_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.png").write_bytes(b"x")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/8").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus/round").symlink_to(tmp_path / "corpus")
    listing = list_corpus(str(tmp_path / "corpus"), LabelRule("folder"))
    assert (listing.uris, listing.texts) == ([str(tmp_path / "corpus/8/a.png")], ["8"])


def test_a_name_that_is_not_utf8_is_listed_escaped_and_without_a_label(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as file:
        file.write(b"x")
    listing = list_corpus(str(tmp_path), LabelRule("filename"))
    assert listing.texts == [None]
    assert listing.uris == [f"{tmp_path}/caf\\udce9.png"]


def test_a_row_without_a_path_is_listed_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,text\n./a.png,1\n,2\n")
    rows = list(read_table(str(tmp_path / "labels.csv")))
    assert rows == [(str(tmp_path / "a.png"), "1"), (f"{tmp_path}/labels.csv#row-2", None)]
