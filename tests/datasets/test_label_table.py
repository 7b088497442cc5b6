"""Tables of labels give text, and what is wrong with a row or a table is said with its line or column."""

import datetime
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captcha_ray.datasets.label_table import Row, read_table
from captcha_ray.errors import InputError

NAMES = ["two words.png", "ünï-日本.png", "a%2Fb.png", "#+?&=.png", " lead.png", "no-ending"]


def rows_of(folder: Path, data: bytes, name: str = "t.csv", **columns: str) -> list[tuple[str, str | None, str]]:
    """Return name of the image, label, and problem without the table's name."""
    (folder / name).write_bytes(data)
    found = read_table(str(folder / name), **columns)
    return [(row.uri.removeprefix(f"{folder}/"), row.text, row.problem.replace(f"{folder}/", "")) for row in found]


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
            *((name, name) for name in NAMES),
        ],
    )
    assert [(row.uri, row.text) for row in read_table(table)] == [
        (f"{tmp_path}/7/a.png", "007"),
        ("/elsewhere/b.png", "1e5"),
        ("s3://bucket/c.png", " x "),
        ("/d.png", "NA"),
        (f"{tmp_path}/e.png", None),
        (f"{table}#row-6", None),
        *((f"{tmp_path}/{name}", name) for name in NAMES),
    ]


def test_a_byte_order_mark_and_further_columns_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfpath,note,text\na.png,x,\xc3\xa4\nb.png,y,2\nc.png\n")
    assert [row.text for row in read_table(f"{tmp_path}/t.csv")] == ["ä", "2", None]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"bild,text\na,b\n", "has no column 'path'; it has bild, text; --path-column names another"),
        (b"path\na\n", "has no column 'text'; it has path"),
        (b"", "has no column 'path'; it has none"),
        (b"path,text\n\xe4,b\n", "is not in UTF-8: byte 0xe4 in line 2; convert it, if it is from Windows by iconv"),
        (b"PK\x03\x04 and a workbook", "is a workbook or an archive; save it as CSV"),
        (b'"path\n', "is no readable CSV: a quotation mark that is not closed"),
        (b'[{"path": "a.png", "text": "1"}]', "is a JSON array; write one object a line"),
        (b"path,text,Text\na,b,c\n", "has 2 columns named 'text'"),
        (b"PAR1 and then nothing", "is no readable Parquet"),
    ],
)
def test_a_table_that_is_none_is_refused_by_name(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(InputError, match=f"the table {tmp_path}/t.csv {re.escape(said)}"):
        list(read_table(f"{tmp_path}/t.csv"))


def test_a_parquet_table_without_a_column_is_refused_by_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a"], "inhalt": ["b"]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="has no column 'text'; it has path, inhalt"):
        list(read_table(f"{tmp_path}/t.parquet"))


def test_an_absent_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the table .*/none\.csv cannot be read: No such file"):
        list(read_table(f"{tmp_path}/none.csv"))


def test_an_address_that_nobody_reads_is_a_problem_of_its_row(tmp_path: Path) -> None:
    first, second = read_table(write_table(tmp_path, "csv", [("http://host/a.png", "1"), ("b.png", "2")]))
    assert first.text is None
    assert "line 2 of " in first.problem
    assert "http://host/a.png has a scheme this project does not read" in first.problem
    assert second == Row(f"{tmp_path}/b.png", "2")


def test_a_row_without_a_path_is_listed_with_its_number(tmp_path: Path) -> None:
    assert rows_of(tmp_path, b"path,text\n./a.png,1\n,2\n") == [
        ("a.png", "1", ""), ("t.csv#row-2", None, "the row names no image"),
    ]  # fmt: skip


def test_rows_that_are_cut_wrongly_have_a_line_and_the_others_a_label(tmp_path: Path) -> None:
    data = b'path,text\na.png,12,89\nb.png,"12\nc.png,7\nd.png,"1""2"\n\ne.png,1\x002\nf.png,"5"x\ng.png,5"x\n'
    rows = rows_of(tmp_path, data)
    assert {name: text for name, text, problem in rows if not problem} == {"c.png": "7", "d.png": '1"2', "g.png": '5"x'}
    problems = [problem for _, _, problem in rows if problem]
    assert problems[:3] == [
        "line 2 of t.csv: 3 fields where the header has 2",
        "line 3 of t.csv: a quotation mark that is not closed; a path or a label must stand on one line",
        "line 7 of t.csv: a byte of zero",
    ]
    assert problems[3].startswith("line 8 of t.csv: ")
    assert len(rows) == 7


def test_notes_beside_a_label_may_hold_line_breaks(tmp_path: Path) -> None:
    data = b'path,note,text\na.png,"two\n\nlines, ""one"" mark",12\nb.png,,34\nc.png,"never closed,56\nd.png,,78\n'
    assert rows_of(tmp_path, data) == [
        ("a.png", "12", ""),
        ("b.png", "34", ""),
        ("t.csv#row-3", None, "line 6 of t.csv: a quotation mark that is not closed; a path or a label must stand on "
         "one line"),
        ("d.png", "78", ""),
    ]  # fmt: skip


@pytest.mark.parametrize("label", ['"1\n2"', '"1\nb.png,2"', '"1\nb.png,"2"'])
def test_a_label_of_several_lines_swallows_no_row(tmp_path: Path, label: str) -> None:
    rows = rows_of(tmp_path, f"path,text\na.png,{label}\nc.png,7\n".encode())
    assert rows[-1] == ("c.png", "7", "")
    assert "line 2 of t.csv: a quotation mark that is not closed" in rows[0][2]


def test_a_table_without_a_header_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"it has a\.png, 0317; its first line must name the columns, such as path,text"
    ):
        rows_of(tmp_path, b"a.png,0317\nb.png,12\n")


@pytest.mark.parametrize("line", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_any_delimiter_and_line_in_unicode_is_read(tmp_path: Path, delimiter: str, encoding: str, line: str) -> None:
    rows = [("Path", "note", "TEXT"), ("a.png", "x", "ä1"), ("b.png", "", "007")]
    text = line.join(delimiter.join(fields) for fields in rows)
    assert rows_of(tmp_path, text.encode(encoding), "t.TSV") == [("a.png", "ä1", ""), ("b.png", "007", "")]


def test_a_table_may_be_gzipped(tmp_path: Path) -> None:
    assert rows_of(tmp_path, gzip.compress(b"path,text\na.png,7\n"), "t.csv.gz") == [("a.png", "7", "")]
    with pytest.raises(InputError, match="is no readable gzip file"):
        rows_of(tmp_path, gzip.compress(b"path,text\na.png,7\n")[:-12], "t.csv.gz")


def test_columns_can_be_named(tmp_path: Path) -> None:
    data = b"id;Bild;Inhalt;text\n1;a.png;7;no\n"
    assert rows_of(tmp_path, data, path_column="bild", text_column="Inhalt") == [("a.png", "7", "")]
    with pytest.raises(InputError, match="has no column 'nothing'; it has id, Bild, Inhalt, text; --text-column names"):
        rows_of(tmp_path, data, path_column="bild", text_column="nothing")


@pytest.mark.parametrize("names", [("file_name", "text"), ("path", "label"), ("image", "ground_truth")])
def test_json_lines_are_a_table(tmp_path: Path, names: tuple[str, str]) -> None:
    path, text = names
    values = [
        {path: "a.png", text: "007", "more": {}},
        {path: "b.png", text: None},
        {path: "c.png", text: 7},
        {path: 5},
    ]
    good, bad = [json.dumps(value) for value in values[:2]], [json.dumps(value) for value in values[2:]]
    lines = [*good, "", "{", "[1]", *bad]
    rows = rows_of(tmp_path, "\n".join(lines).encode(), "metadata.JSONL")
    assert rows[:2] == [("a.png", "007", ""), ("b.png", None, "")]
    places = [problem.partition(":")[0] for _, _, problem in rows[2:]]
    assert places == [f"line {n} of metadata.JSONL" for n in (4, 5, 6, 7)]
    assert "leading zeros" in rows[4][2]
    assert rows[4][0] == "c.png"


REFUSED: dict[str, tuple[Any, str]] = {
    "int64": ([7, 10], "numbers lose leading zeros"),
    "double": ([123.0, float("nan")], "numbers lose leading zeros"),
    "list<element: string>": ([["1"]], "it must hold text"),
    "bool": ([True], "it must hold text"),
    "date32[day]": ([datetime.date(2026, 1, 1)], "it must hold text"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_labels_that_are_not_text_are_refused_by_their_type(tmp_path: Path, kind: str) -> None:
    values, why = REFUSED[kind]
    pq.write_table(pa.table({"path": ["a"] * len(values), "text": values}), tmp_path / "t.parquet")
    said = rf"the column 'text' of the table .*t.parquet is of type {re.escape(kind)}: {why}"
    with pytest.raises(InputError, match=said):
        list(read_table(f"{tmp_path}/t.parquet"))


def test_paths_that_are_not_text_are_refused_by_their_type(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": [1, 2], "text": ["a", "b"]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"the column 'path' of the table .* is of type int64: it must hold text"):
        list(read_table(f"{tmp_path}/t.parquet"))


TEXT_TYPES = [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
def test_text_of_every_type_is_text(tmp_path: Path, kind: pa.DataType) -> None:
    labels = pa.array(["0123", None, "é"])
    pq.write_table(pa.table({"path": ["a", "b", "c"], "text": labels.cast(kind)}), tmp_path / "t.parquet")
    assert [row.text for row in read_table(f"{tmp_path}/t.parquet")] == ["0123", None, "é"]


def test_bytes_that_are_no_utf8_are_a_problem_of_their_row(tmp_path: Path) -> None:
    table = pa.table({"path": pa.array([b"a", b"\xff", b"c"]), "text": pa.array([b"1", b"2", b"\xff"])})
    pq.write_table(table, tmp_path / "t.parquet")
    assert list(read_table(f"{tmp_path}/t.parquet")) == [
        Row(f"{tmp_path}/a", "1"),
        Row(f"{tmp_path}/t.parquet#row-2", None, rf"row 2 of {tmp_path}/t.parquet: path b'\xff' is not UTF-8"),
        Row(f"{tmp_path}/c", None, rf"row 3 of {tmp_path}/t.parquet: text b'\xff' is not UTF-8"),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_quoted_headers_and_a_blank_before_a_quotation_mark_are_read(tmp_path: Path, delimiter: str) -> None:
    lines = [f'"path"{delimiter}"text"', f'"a.png"{delimiter} "000"', f'b.png{delimiter}"00;,1"']
    assert rows_of(tmp_path, "\n".join(lines).encode()) == [("a.png", "000", ""), ("b.png", "00;,1", "")]


@pytest.mark.parametrize("start", ["sep=;\n", "\n\n", "\ufeff"])
def test_what_stands_before_the_header_is_passed_over(tmp_path: Path, start: str) -> None:
    assert rows_of(tmp_path, f"{start}path;text\na.png;1\n".encode()) == [("a.png", "1", "")]


def test_a_line_that_is_no_json_or_no_text_is_a_problem_of_its_row(tmp_path: Path) -> None:
    lines = ['{"version": 1}', '{"path": "a.png", "text": "1"}', "[" * 100_000, '{"path": "b.png", "text": "\\ud800"}']
    rows = rows_of(tmp_path, "\n".join(lines).encode(), "t.jsonl")
    assert [text for _, text, _ in rows] == [None, "1", None, None]
    assert rows[2][2].startswith("line 3 of t.jsonl: no JSON, ")
    assert rows[3][2] == "line 4 of t.jsonl: half a surrogate pair, which is no character"


def test_a_parquet_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["1"]), pa.array(["2"])], names=["path", "text", "text"])
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(InputError, match="has 2 columns named 'text'"):
        list(read_table(f"{tmp_path}/t.parquet"))


def test_a_path_that_leads_out_of_the_tables_folder_and_back_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/t.csv").write_text("path,text\n../in/a.png,1\na.png,1\n")
    assert {row.uri for row in read_table(f"{tmp_path}/in/t.csv")} == {f"{tmp_path}/in/a.png"}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_byte_of_zero_is_a_problem_in_every_kind_of_table(tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        pq.write_table(pa.table({"path": ["a", "b"], "text": ["1\0002", "3"]}), tmp_path / "t.parquet")
        data = (tmp_path / "t.parquet").read_bytes()
    else:
        lines = ["path,text", "a,1\0002", "b,3"]
        objects = ['{"path": "a", "text": "1\\u00002"}', '{"path": "b", "text": "3"}']
        text = "\n".join(lines if kind == "csv" else objects)
        data = text.encode()
    first, second = rows_of(tmp_path, data, f"t.{kind}")
    place = {"csv": "line 2", "jsonl": "line 1", "parquet": "row 1"}[kind]
    assert first == ("a", None, f"{place} of t.{kind}: a byte of zero")
    assert second == ("b", "3", "")


def test_text_of_parquet_that_is_no_utf8_is_a_problem_of_its_row(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"ok"]).buffers())
    pq.write_table(pa.table({"path": ["a", "b"], "text": broken}), tmp_path / "t.parquet")
    rows = list(read_table(f"{tmp_path}/t.parquet"))
    assert [row.text for row in rows] == [None, "ok"]
    assert rows[0].problem == rf"row 1 of {tmp_path}/t.parquet: text b'\xff' is not UTF-8"


def test_a_parquet_file_whose_schema_is_damaged_is_no_readable_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a"], "text": ["b"]}), tmp_path / "t.parquet", store_schema=False)
    data = (tmp_path / "t.parquet").read_bytes().replace(b"path", b"p\xfft\xff")
    with pytest.raises(InputError, match="is no readable Parquet"):
        rows_of(tmp_path, data, "t.parquet")
