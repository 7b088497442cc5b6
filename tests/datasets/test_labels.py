"""Labels come from folders, names or tables as text, and what no rule names has none."""

import os
import re
from pathlib import Path

import pytest

from captcha_ray.datasets.config import LabelRule
from captcha_ray.datasets.labels import Listing, clean, label_of, list_corpus
from captcha_ray.errors import InputError
from captcha_ray.storage.filesystem import is_hidden

ODD_NAMES = ["two words.png", "ünï-日本.png", "line\nfeed.png", "a%2Fb.png", "#+?&=.png", " lead.png", "no-ending"]
HIDDEN_FILES = [
    *("7/@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", "#recycle/7/a.png", "@Recycle/a.png", "$RECYCLE.BIN/S-1-5/a.png"),
    *("System Volume Information/WPSettings.dat", "lost+found/#123", "7/a.png:Zone.Identifier", "7_$folder$"),
    *("_SUCCESS", "_temporary/0/a.png", "7/a.png.crdownload", "7/b.png.part", "7/a.png~", ".Trash-1000/files/a.png"),
    *("Recycle Bin/7/a.png", "~snapshot/hourly.0/7/a.png", "FOUND.007/a.png", "7/Thumbs.db:encryptable"),
    *("7/a.png@SynoEAStream", "7/.a.png.crc", "7/a.png.crc", "_committed_123"),
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


@pytest.mark.parametrize(
    "uri",
    [
        "s3://b/c/.DS_Store",
        "s3://b/c/7/Thumbs.db",
        "s3://b/c/__MACOSX/7/a.png",
        "s3://b/c/7_$folder$",
        "s3://b/c/_SUCCESS",
        "s3://b/c/_temporary/0/x",
        "s3://b/c/@EADIR/x",
    ],
)
def test_junk_in_a_bucket_is_junk(uri: str) -> None:
    assert is_hidden(uri, "s3://b/c")
    assert not is_hidden("s3://b/c/7/a.png", "s3://b/c")


def test_a_corpus_of_one_file_is_that_file(tmp_path: Path) -> None:
    fill(tmp_path, "7/a.png")
    assert list_corpus(f"{tmp_path}/7/a.png", LabelRule("folder")) == Listing([f"{tmp_path}/7/a.png"], ["7"], 0)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_listed_and_labeled_as_they_are(tmp_path: Path, name: str) -> None:
    corpus = fill(tmp_path, f"{name}/{name}")
    assert found(list_corpus(corpus, LabelRule("folder", keep_blanks=True)), corpus) == {f"{name}/{name}": name}
    stem = name.removesuffix(".png")
    assert found(list_corpus(corpus, LabelRule("filename", keep_blanks=True)), corpus) == {f"{name}/{name}": stem}


def test_an_absent_corpus_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        list_corpus(f"{tmp_path}/nowhere", LabelRule("folder"))


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


def test_a_tables_rows_are_the_corpus_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,text\nb.png,2\na.png,1\n.hidden.png,3\nc.png,4,5\n")
    listing = list_corpus("/not/looked/at", LabelRule("table", table=f"{tmp_path}/t.csv"))
    assert found(listing, str(tmp_path)) == {"b.png": "2", "a.png": "1", ".hidden.png": "3", "c.png": None}
    assert listing.num_hidden == 0
    assert listing.problems == {3: f"line 5 of {tmp_path}/t.csv: 3 fields where the header has 2"}


SEEN = {
    " 0317": "0317", "0317 ": "0317", "\u00a00317": "0317", "03\u200b17": "0317", "\u200f0317\u200e": "0317",
    "\ufeff0317": "0317", "03\u00ad17": "0317", "e\u0301e\u0301": "éé", "0\ufe0f3": "03", "\u31643": "3", "\u2800": "",
    "a b": "a b", "\t7\n": "7", "\x7f7": "7", "か\u3099": "が", "7\u00a054": "7 54", "a\nb": "a b",
    "\u06dd\u0661": "\u06dd\u0661", "می\u200cخواهم": "می\u200cخواهم", "0\u200d3": "03", "x": "x", "日本": "日本",
    "\u2066abc\u2069": "abc",
}  # fmt: skip


@pytest.mark.parametrize("text", SEEN)
def test_a_label_is_what_is_seen(text: str) -> None:
    assert clean(text) == SEEN[text]
    assert clean(clean(text)) == clean(text)


def test_cleaned_labels_are_counted_and_blanks_can_be_kept(tmp_path: Path) -> None:
    corpus = fill(tmp_path, " 7 .png", "e\u0301.png", "8.png", "\u200b.png")
    listing = list_corpus(corpus, LabelRule("filename"))
    assert set(listing.texts) == {"7", "é", "8", None}
    assert listing.num_cleaned == 3
    kept = list_corpus(corpus, LabelRule("filename", keep_blanks=True))
    assert set(kept.texts) == {" 7 ", "e\u0301", "8", "\u200b"}
    assert kept.num_cleaned == 0


@pytest.mark.parametrize("pattern", ["^(.{4})", "^([a-zé]+)", r"^(\w+)-"])
def test_a_pattern_sees_the_names_of_a_mac_as_those_of_others(tmp_path: Path, pattern: str) -> None:
    for name in ("café-0.png", "cafe\u0301-1.png"):
        (tmp_path / name).write_bytes(b"")
    assert set(list_corpus(str(tmp_path), LabelRule("filename", pattern)).texts) == {"café"}


@pytest.mark.parametrize("text", ["0123\u180b", "\u180f12", "\u5b57\u200c\u4eac", "\u0416\u200d\u0431", "a\u200db"])
def test_what_no_script_shows_is_no_character(text: str) -> None:
    assert not set(clean(text)) & set("\u180b\u180f\u200c\u200d")


@pytest.mark.parametrize("text", ["\u0646\u200c\u0647", "\u0915\u094d\u200d\u0937", "\U0001f468\u200d\U0001f469"])
def test_joiners_stay_where_they_shape_what_is_seen(text: str) -> None:
    assert clean(text) == text
