"""Labels as the world has them: what does not fit is put aside by name, and a check says so beforehand."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from captcha_ray import api, cli
from captcha_ray.datasets import advice, preprocess
from captcha_ray.datasets.config import PreprocessConfig
from captcha_ray.datasets.shards import open_shards
from captcha_ray.errors import InputError
from tests.factories import config_for, draw_glyphs, glyph_texts

pytestmark = pytest.mark.usefixtures("ray_cluster")


def reasons(out: str) -> dict[str, str]:
    rows = pq.read_table(f"{out}/quarantine").to_pylist()
    return {row["uri"].rpartition("/")[2]: f"{row['reason']}: {row['detail']}" for row in rows}


def add(folder: Path, name: str, seed: int = 1000) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 24), np.uint8)).save(folder / name)


def test_one_label_far_longer_than_all_others_is_put_aside_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_glyphs(tmp_path / "corpus", glyph_texts(200, 2))
    add(tmp_path / "corpus", f"{'screenshot' * 3}-1.png")
    config = config_for(tmp_path, height=0, width=0)
    manifest = preprocess.preprocess(config)
    assert (manifest.max_length, manifest.image_spec.width) == (2, 48)
    assert reasons(config.out)[f"{'screenshot' * 3}-1.png"] == (
        "too_long: label 'screenshotscreenshotscreenshot' has 30 characters, all but a few have at most 2"
    )
    said = capsys.readouterr().err
    assert "1 labels are more than twice as long as the others" in said
    assert "screenshot" in said
    assert "--max-length 30" in said


def test_a_label_far_longer_is_put_aside_though_the_images_would_hold_it(tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "corpus", glyph_texts(100, 2))
    for text, seed in (("abcdabcd", 1), ("dcbadcba", 2)):
        add(tmp_path / "corpus", f"{text}-{seed}.png", seed)
    manifest = preprocess.preprocess(config_for(tmp_path, height=0, width=0))
    assert manifest.max_length == 2
    assert manifest.num_quarantined == {"too_long": 2}


def test_lengths_that_vary_are_no_reason_to_put_labels_aside(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for k in range(120):
        add(tmp_path / "corpus", f"{'abcd'[k % 4] * (1 + k % 12)}-{k}.png", seed=k)
    manifest = preprocess.preprocess(config_for(tmp_path, height=0, width=0))
    assert (manifest.min_length, manifest.max_length) == (1, 12)


def test_a_charset_is_taken_in_the_form_that_labels_have(tmp_path: Path) -> None:
    folder = draw_glyphs(tmp_path / "corpus", glyph_texts(40, 2))
    for path in folder.iterdir():
        path.rename(folder / path.name.replace("a", "\u00e9"))
    assert preprocess.preprocess(config_for(tmp_path, charset="e\u0301bcd")).charset == "\u00e9bcd"


def test_images_are_made_wide_enough_for_their_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_glyphs(tmp_path / "corpus", glyph_texts(60, 12))
    manifest = preprocess.preprocess(config_for(tmp_path, height=0, width=0))
    assert manifest.image_spec.width == 48, "twice the 24 pixels that a height of 32 makes of them"
    draw_glyphs(tmp_path / "more/corpus", glyph_texts(60, 20), size=(24, 16))
    longer = preprocess.preprocess(config_for(tmp_path / "more", height=0, width=0))
    assert longer.image_spec.width == 4 * 20 - 2
    assert "images are 78 instead of 48 pixels wide, to hold 20 characters" in capsys.readouterr().out


def test_a_longest_label_that_is_named_is_kept_and_a_longer_one_is_not(tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "corpus", glyph_texts(120, 2))
    for text, seed in (("abcdabcdabcd", 1), ("abcdabcdabcdabcd", 2)):
        add(tmp_path / "corpus", f"{text}-{seed}.png", seed)
    config = config_for(tmp_path, height=0, width=0, max_length=12)
    assert preprocess.preprocess(config).max_length == 12
    assert reasons(config.out)["abcdabcdabcdabcd-2.png"].endswith("has 16 characters, more than 12")


def test_characters_without_a_training_image_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_glyphs(tmp_path / "corpus", glyph_texts(60, 2))
    preprocess.preprocess(config_for(tmp_path, charset="abcdxyz"))
    assert "3 of 7 characters have no training image: 'x', 'y', 'z'" in capsys.readouterr().err


def test_the_same_picture_under_two_labels_names_the_other(tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "corpus", glyph_texts(60, 2))
    for text in ("aa", "bb"):
        add(tmp_path / "corpus", f"{text}-copy.png")
    config = config_for(tmp_path)
    preprocess.preprocess(config)
    assert reasons(config.out)["aa-copy.png"] == (
        f"conflicting_labels: labeled 'aa', but {tmp_path}/corpus/bb-copy.png with the same pixels 'bb'"
    )


def test_labels_with_invisible_characters_and_accents_apart_make_one_alphabet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = draw_glyphs(tmp_path / "corpus", glyph_texts(80, 2))
    names = sorted(path.name for path in folder.iterdir())
    odd = ["e\u0301", "\u00e9", " x", "x\u200b"]
    lines = [f"corpus/{name}\t{odd[k % 4]}" for k, name in enumerate(names)]
    (tmp_path / "labels.tsv").write_text("file_name\tlabel\n" + "\n".join(lines))
    config = PreprocessConfig(labels="table", table=str(tmp_path / "labels.tsv"), out=str(tmp_path / "shards"))
    assert preprocess.preprocess(config).charset == "x\u00e9"
    assert "60 labels had blanks at their ends" in capsys.readouterr().err
    kept = dataclasses.replace(config, keep_blanks=True, out=str(tmp_path / "kept"))
    assert preprocess.preprocess(kept).charset == " ex\u00e9\u0301\u200b"


def test_a_bad_row_is_quarantined_or_refused_by_its_line(tmp_path: Path) -> None:
    folder = draw_glyphs(tmp_path / "corpus", glyph_texts(80, 2))
    names = sorted(path.name for path in folder.iterdir())
    lines = [f"corpus/{name},{name[:2]}" for name in names]
    (tmp_path / "labels.csv").write_text("path,text\n" + "\n".join([*lines[:70], f"{lines[70]},x", *lines[71:]]))
    config = PreprocessConfig(labels="table", table=str(tmp_path / "labels.csv"), out=str(tmp_path / "shards"))
    with pytest.raises(InputError, match=rf"labels are refused; .*line 72 of {tmp_path}/labels.csv: 3 fields"):
        preprocess.preprocess(dataclasses.replace(config, bad_labels="refuse"))
    assert preprocess.preprocess(config).num_quarantined == {"bad_row": 1}


def test_files_that_are_missing_come_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,text\na\\b.png,1\nc\\d.png,2\n")
    config = PreprocessConfig(labels="table", table=str(tmp_path / "labels.csv"), out=str(tmp_path / "shards"))
    with pytest.raises(InputError, match=r"2 missing; .*a\\b\.png: there is no such file; its path has backslashes"):
        preprocess.preprocess(config)
    (tmp_path / "labels.csv").write_text("path,text\n17,1\n18,2\n")
    with pytest.raises(InputError, match=r"its name has no ending, such as \.png"):
        preprocess.preprocess(config)


def test_a_check_says_what_would_be_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = draw_glyphs(tmp_path / "corpus", glyph_texts(150, 2))
    (folder / "ab-broken.png").write_bytes(b"no image")
    add(folder, "aA-1.png")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    flags = ["--corpus", "corpus", "--labels", "filename", "--label-pattern", "^([^-]+)", "--out", "shards"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["preprocess", *flags, "--check"])
    cli.preprocess()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    out, err = capsys.readouterr()
    assert "151 images of 48x32 pixels: " in out
    assert "not_an_image: 1 files, such as " in out
    assert "labels by length: 151 of 2" in out
    assert "1 letters are upper case, 301 lower: look at the few" in err
    last = out.splitlines()[-1]
    assert last.startswith("nothing was written; this makes the shards: captcha-ray preprocess --corpus ")
    monkeypatch.setattr(
        "sys.argv", ["preprocess", *last.partition("captcha-ray preprocess ")[2].replace("'", "").split()]
    )
    cli.preprocess()
    assert sum(open_shards("shards").manifest.num_images.values()) == 151


def test_a_check_of_the_demo_corpus_draws_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="demo/corpus/digits does not exist"):
        api.preprocess(PreprocessConfig(check=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["0123"] * 100 + ["O123"], "labels hold '0' 100 times, 'O' 1 times: look whether the rare one is a mistake"),
        (["abc"] * 100 + ["aBc"], "1 letters are upper case, 302 lower: look at the few"),
    ],
)
def test_rare_characters_that_look_alike_are_named(texts: list[str], said: str) -> None:
    assert said in advice.suspicions(texts)


def test_an_alphabet_of_both_cases_and_all_digits_is_not_suspected() -> None:
    assert advice.suspicions(["aAbB", "0O1l"] * 20) == []


def test_right_to_left_labels_that_would_not_be_given_back_are_put_aside(tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "corpus", glyph_texts(22, 2))
    given = [f"\u0646{number}50%" for number in range(2)] + ["\u0646\u0628", "\u0628\u0646"] * 10
    for path, text in zip(sorted((tmp_path / "corpus").iterdir()), given, strict=True):
        path.rename(path.with_name(f"{text}_{path.name}"))
    manifest = preprocess.preprocess(config_for(tmp_path, label_pattern="^([^-_]+)"))
    assert manifest.num_quarantined.get("right_to_left") == 2
    rows = pq.read_table(tmp_path / "shards/quarantine").to_pylist()
    assert all("is also" in row["detail"] for row in rows if row["reason"] == "right_to_left")


def test_a_width_that_holds_too_few_characters_is_warned_of_with_file_label_and_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_glyphs(tmp_path / "corpus", [*glyph_texts(60, 4), "abcdabcd"])
    preprocess.preprocess(config_for(tmp_path, height=48, width=20))
    said = capsys.readouterr().err
    assert "images of 20 pixels are too narrow for column_cnn, which wants 30: 1 of 61 labels have more than 5" in said
    assert "such as 'abcdabcd' of " in said
    assert "--max-length 5 puts them aside" in said
