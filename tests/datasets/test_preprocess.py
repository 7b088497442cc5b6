"""A corpus becomes shards: every file is accounted for once, for any cluster, and bad input costs a row, not a job."""

import dataclasses
import hashlib
import json
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from PIL import Image

from captcha_ray.datasets import decoding, preprocess, schema
from captcha_ray.datasets.shards import Shards
from captcha_ray.datasets.splits import SPLITS, split_of
from captcha_ray.errors import InputError
from captcha_ray.images.spec import ImageSpec
from captcha_ray.runs.directory import to_json
from tests.factories import config_for, draw_glyphs, glyph_texts

SMALL = ImageSpec(height=50, width=200)

pytestmark = pytest.mark.usefixtures("ray_cluster")


def shard_rows(out: str | Path) -> list[dict[str, Any]]:
    """All rows of all splits, read by DuckDB."""
    query = (
        f"SELECT image, text, uri, sha256, split FROM read_parquet('{out}/split=*/*.parquet', hive_partitioning=true)"
    )
    columns = ("image", "text", "uri", "sha256", "split")
    return [dict(zip(columns, row, strict=True)) for row in duckdb.sql(query).fetchall()]


def quarantine(out: str | Path) -> dict[str, tuple[str, str]]:
    """name of the file -> (reason, detail)."""
    table = pq.read_table(f"{out}/quarantine")
    return {row["uri"].rpartition("/")[2]: (row["reason"], row["detail"]) for row in table.to_pylist()}


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_every_file_is_in_the_shards_or_the_quarantine_exactly_once(tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "corpus", glyph_texts(60, 2))
    (tmp_path / "corpus/ab-empty.png").write_bytes(b"")
    shutil.copy(next((tmp_path / "corpus").glob("*-0.png")), tmp_path / "corpus/dd-other.png")
    manifest = preprocess.preprocess(config_for(tmp_path))
    rows = shard_rows(tmp_path / "shards")
    named = [row["uri"] for row in rows] + pq.read_table(tmp_path / "shards/quarantine")["uri"].to_pylist()
    assert sorted(named) == sorted(str(p) for p in (tmp_path / "corpus").iterdir())
    assert len(rows) == sum(manifest.num_images.values())
    for row in rows:
        pixels = np.asarray(Image.open(row["uri"]).convert("L")).tobytes()
        assert row["image"] == pixels
        assert row["sha256"] == hashlib.sha256(pixels).digest()
        assert row["split"] == split_of(row["sha256"], 0, (0.8, 0.1, 0.1))
        assert row["text"] == Path(row["uri"]).name.partition("-")[0]


def test_the_blocks_that_tasks_take_do_not_change_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_glyphs(tmp_path / "corpus", glyph_texts(50, 2))
    shutil.copy(next((tmp_path / "corpus").glob("*-0.png")), tmp_path / "corpus/zz-copy.png")
    preprocess.preprocess(config_for(tmp_path))
    monkeypatch.setattr(decoding, "block_rows", lambda files, image: 7)
    manifest = preprocess.preprocess(config_for(tmp_path, out=str(tmp_path / "many")))
    assert sum(len(parts) for parts in manifest.parts.values()) > 8
    key = lambda row: (row["uri"], row["split"], row["image"], row["text"])  # noqa: E731
    assert sorted(map(key, shard_rows(tmp_path / "shards"))) == sorted(map(key, shard_rows(tmp_path / "many")))
    assert quarantine(tmp_path / "shards") == quarantine(tmp_path / "many")


OPEN = {"height": 0, "width": 0}


def test_without_a_size_images_keep_the_median_one_of_the_corpus(tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "corpus", glyph_texts(30, 2), size=(120, 40))
    draw_glyphs(tmp_path / "corpus", glyph_texts(9, 2, seed=1), seed=1, size=(30, 50))
    (tmp_path / "corpus/ab-broken.png").write_bytes(b"broken")
    manifest = preprocess.preprocess(config_for(tmp_path, **OPEN))
    assert manifest.image_spec == ImageSpec(height=40, width=120)
    assert manifest.config["height"] == 0
    assert preprocess.preprocess(config_for(tmp_path, **OPEN)) == manifest  # finished already
    half = preprocess.preprocess(config_for(tmp_path, height=20, width=0, out=str(tmp_path / "half")))
    assert half.image_spec == ImageSpec(height=20, width=60)


@pytest.mark.parametrize(("size", "expected"), [((20, 10), (64, 32)), ((600, 200), (192, 64)), ((90, 50), (90, 50))])
def test_small_images_are_enlarged_and_large_ones_made_smaller(
    size: tuple[int, int], expected: tuple[int, int], tmp_path: Path
) -> None:
    draw_glyphs(tmp_path / "corpus", ["ab", "cd"], size=size)
    image = preprocess.preprocess(config_for(tmp_path, **OPEN)).image_spec
    assert (image.width, image.height) == expected


@pytest.mark.parametrize(("num_colored", "channels"), [(0, 1), (2, 1), (5, 3), (20, 3)])
def test_shards_are_in_color_where_the_corpus_is(num_colored: int, channels: int, tmp_path: Path) -> None:
    folder = draw_glyphs(tmp_path / "corpus", glyph_texts(20, 2))
    for path in sorted(folder.iterdir())[:num_colored]:
        gray = np.asarray(Image.open(path))
        Image.fromarray(np.stack([gray, 255 - gray, gray], 2)).save(path)
    for path in sorted(folder.iterdir())[num_colored:]:
        Image.open(path).convert("RGBA").save(path)
    assert preprocess.preprocess(config_for(tmp_path)).image_spec.channels == channels
    binary = config_for(tmp_path, binarize=True, out=str(tmp_path / "binary"))
    assert preprocess.preprocess(binary).image_spec.channels == 1


def test_a_corpus_of_no_images_at_all_has_no_size(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/ab.png").write_bytes(b"broken")
    with pytest.raises(InputError, match="holds no image that can be used: 1 not_an_image"):
        preprocess.preprocess(config_for(tmp_path, **OPEN))
    assert not (tmp_path / "shards").exists()


def test_a_block_gives_the_same_plain_and_through_ray(tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "corpus", glyph_texts(20, 2))
    config = config_for(tmp_path)
    preprocess.preprocess(config)
    files = sorted(str(p) for p in (tmp_path / "corpus").iterdir())
    block = pa.table({"uri": files, "text": [Path(f).name[:2] for f in files], "block": [0] * len(files)})
    image = ImageSpec(height=16, width=24)
    preprocess.write_block(block, config=dataclasses.replace(config, out=str(tmp_path / "plain")), image=image)
    for part in (tmp_path / "shards").glob("split=*/*.parquet"):
        plain = tmp_path / "plain" / part.relative_to(tmp_path / "shards")
        assert pq.read_table(plain).equals(pq.read_table(part))


def test_images_keep_their_split_when_others_are_added_and_leave_it_with_another_seed(tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "corpus", glyph_texts(40, 2))
    preprocess.preprocess(config_for(tmp_path))
    draw_glyphs(tmp_path / "corpus", glyph_texts(90, 2, seed=1), seed=1)
    preprocess.preprocess(config_for(tmp_path, out=str(tmp_path / "more")))
    preprocess.preprocess(config_for(tmp_path, out=str(tmp_path / "other"), split_seed=1))
    first, more, other = (
        {r["sha256"]: r["split"] for r in shard_rows(tmp_path / d)} for d in ("shards", "more", "other")
    )
    common = first.keys() & more.keys()
    assert len(common) >= 35
    assert all(first[h] == more[h] for h in common)
    assert any(more[h] != other[h] for h in more)


def test_files_that_cannot_be_read_are_quarantined_with_the_right_reason(tmp_path: Path) -> None:
    folder = draw_glyphs(tmp_path / "corpus", glyph_texts(30, 2))
    whole = (folder / next(folder.glob("*-3.png")).name).read_bytes()
    (folder / "ab-zero.png").write_bytes(b"")
    (folder / "ab-text.png").write_bytes(b"this is a text, not an image")
    (folder / "ab-truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "ab-bomb.png").write_bytes(bomb(40_000))
    (folder / "ab-wide.png").write_bytes(bomb(1001))
    (folder / "ab-gone.png").symlink_to(folder / "nowhere.png")
    preprocess.preprocess(config_for(tmp_path, max_pixels=1_000_000))
    found = {name: reason for name, (reason, _) in quarantine(tmp_path / "shards").items()}
    assert found == {
        "ab-zero.png": "empty_file",
        "ab-text.png": "not_an_image",
        "ab-truncated.png": "truncated",
        "ab-bomb.png": "too_large",
        "ab-wide.png": "too_large",
        "ab-gone.png": "missing",
    }
    assert len(shard_rows(tmp_path / "shards")) == 30


def bomb(side: int) -> bytes:
    """A 1-bit PNG of side x side pixels whose rows compress to almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    compressor = zlib.compressobj(1)
    row = bytes(1 + (side + 7) // 8)
    data = b"".join(compressor.compress(row) for _ in range(side)) + compressor.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_the_same_pixels_are_kept_once_and_not_at_all_under_two_labels(tmp_path: Path) -> None:
    folder = draw_glyphs(tmp_path / "corpus", glyph_texts(30, 2))
    one, two = next(folder.glob("*-1.png")), next(folder.glob("*-2.png"))
    text = one.name[:2]
    Image.open(one).convert("RGB").save(folder / f"{text}-zcopy.bmp")
    shutil.copy(two, folder / ("dd-conflict.png" if two.name[:2] != "dd" else "aa-conflict.png"))
    manifest = preprocess.preprocess(config_for(tmp_path))
    found = quarantine(tmp_path / "shards")
    assert found[f"{text}-zcopy.bmp"] == ("duplicate", f"same pixels and label as {one}")
    conflicts = [name for name, (reason, _) in found.items() if reason == "conflicting_labels"]
    assert sorted(conflicts) == sorted([two.name, next(folder.glob("*-conflict.png")).name])
    assert manifest.num_quarantined == {"duplicate": 1, "conflicting_labels": 2}
    hashes = [row["sha256"] for row in shard_rows(tmp_path / "shards")]
    assert len(hashes) == len(set(hashes)) == 29


def test_junk_is_passed_over_and_counted_but_unknown_files_are_not(tmp_path: Path) -> None:
    folder = draw_glyphs(tmp_path / "corpus", glyph_texts(20, 2))
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (folder / name).write_bytes(b"hidden")
    (folder / "xx.txt").write_text("not hidden, and not an image")
    manifest = preprocess.preprocess(config_for(tmp_path))
    assert manifest.num_hidden == 3
    assert manifest.num_quarantined == {"not_an_image": 1}


def test_a_finished_job_run_again_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_glyphs(tmp_path / "corpus", glyph_texts(20, 2))
    first = preprocess.preprocess(config_for(tmp_path))
    example = sorted((tmp_path / "corpus").iterdir())[0]
    text = example.name.partition("-")[0]
    assert f"20 labels by --labels filename, such as '{text}' of {example}" in capsys.readouterr().out
    before = snapshot(tmp_path / "shards")
    draw_glyphs(tmp_path / "corpus", glyph_texts(5, 2, seed=9), seed=9)
    assert preprocess.preprocess(config_for(tmp_path)) == first
    assert "finished already" in capsys.readouterr().out
    assert snapshot(tmp_path / "shards") == before


def test_finished_shards_refuse_other_settings(tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "corpus", glyph_texts(20, 2))
    preprocess.preprocess(config_for(tmp_path))
    before = snapshot(tmp_path / "shards")
    with pytest.raises(InputError, match="made with height 16, not 20"):
        preprocess.preprocess(config_for(tmp_path, height=20))
    assert snapshot(tmp_path / "shards") == before


def test_an_interrupted_job_starts_over_and_leaves_no_part_of_the_first_try(tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "corpus", glyph_texts(20, 2))
    preprocess.preprocess(config_for(tmp_path, out=str(tmp_path / "undisturbed")))
    out = tmp_path / "shards"
    for part in ("split=train/part-00000.parquet", "split=train/part-00077.parquet", "quarantine/part-00000.parquet"):
        (out / part).parent.mkdir(parents=True, exist_ok=True)
        (out / part).write_bytes(b"half a file")
    started = to_json(preprocess._absolute(config_for(tmp_path)).to_dict())
    (out / preprocess.STARTED).write_bytes(started)
    preprocess.preprocess(config_for(tmp_path))
    names = lambda folder: sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())  # noqa: E731
    assert names(out) == names(tmp_path / "undisturbed")
    assert shard_rows(out) == shard_rows(tmp_path / "undisturbed")


def test_a_folder_with_anything_else_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "corpus", glyph_texts(20, 2))
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/thesis.doc").write_text("years of work")
    with pytest.raises(InputError, match="is not empty"):
        preprocess.preprocess(config_for(tmp_path))
    assert [p.name for p in (tmp_path / "shards").iterdir()] == ["thesis.doc"]


def test_a_corpus_without_anything_to_learn_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"corpus does not exist$"):
        preprocess.preprocess(config_for(tmp_path))
    (tmp_path / "corpus").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        preprocess.preprocess(config_for(tmp_path))
    (tmp_path / "corpus/ab-0.png").write_bytes(b"")
    with pytest.raises(InputError, match="no image that can be used: 1 empty_file"):
        preprocess.preprocess(config_for(tmp_path))
    draw_glyphs(tmp_path / "corpus", ["ab"] * 5)
    with pytest.raises(InputError, match="one class: every label is 'ab'"):
        preprocess.preprocess(config_for(tmp_path))
    assert not (tmp_path / "shards/_SUCCESS").exists()


def test_bad_labels_are_quarantined_or_refused_by_choice(tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "corpus", [*glyph_texts(20, 2), "abc", "d"])
    config = config_for(tmp_path, charset="abc", length=2)
    with pytest.raises(InputError, match=r"labels are refused; the first, of .*: label"):
        preprocess.preprocess(dataclasses.replace(config, bad_labels="refuse"))
    assert not (tmp_path / "shards").exists()
    manifest = preprocess.preprocess(config)
    reasons = {reason for reason, _ in quarantine(tmp_path / "shards").values()}
    assert reasons == {"unknown_character", "wrong_length"}
    assert manifest.charset == "abc"
    assert (manifest.min_length, manifest.max_length) == (2, 2)
    assert all(set(row["text"]) <= set("abc") for row in shard_rows(tmp_path / "shards"))


def test_a_charset_is_found_in_what_is_kept(tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "corpus", ["ab", "ba", "aa", "bb"])
    (tmp_path / "corpus/zz-broken.png").write_bytes(b"broken")
    manifest = preprocess.preprocess(config_for(tmp_path))
    assert manifest.charset == "ab"
    counted = {c: sum(manifest.num_characters[s][c] for s in SPLITS) for c in "ab"}
    assert counted == {"a": 4, "b": 4}


def test_a_table_row_without_its_file_is_quarantined(tmp_path: Path) -> None:
    folder = draw_glyphs(tmp_path / "corpus", ["ab", "ba", "cd"])
    names = sorted(p.name for p in folder.iterdir())
    rows = "".join(f"{name},{name[:2]}\n" for name in names)
    (folder / "labels.csv").write_text(f"path,text\n{rows}gone.png,dd\n{names[0]},{names[0][:2]}\n")
    config = config_for(tmp_path, labels="table", label_pattern="", table=str(folder / "labels.csv"))
    manifest = preprocess.preprocess(config)
    assert quarantine(tmp_path / "shards") == {"gone.png": ("missing", "there is no such file")}
    assert sorted(Path(r["uri"]).name for r in shard_rows(tmp_path / "shards")) == names
    assert manifest.label_rule == {"labels": "table", "label_pattern": "", "table": str(folder / "labels.csv")}


def test_other_readers_see_splits_as_partitions_and_pixels_in_shape(glyph_shards: Shards) -> None:
    table = pyarrow.dataset.dataset(glyph_shards.uri, partitioning="hive", exclude_invalid_files=True).to_table()
    assert set(table["split"].to_pylist()) == {"train", "val", "test"}
    part = pq.read_table(f"{glyph_shards.uri}/{glyph_shards.manifest.parts['train'][0]}", partitioning=None)
    assert json.loads(part.schema.field("image").metadata[b"shape"]) == [16, 24, 1]
    pixels = schema.unpack_images(part["image"], glyph_shards.manifest.image_spec)
    assert (pixels.shape, pixels.dtype) == ((len(part), 16, 24, 1), np.uint8)
    assert pixels[0].tobytes() == part["image"][0].as_py()


def test_parts_do_not_depend_on_the_cluster_and_stay_of_moderate_number() -> None:
    assert [decoding.block_rows(n, SMALL) for n in (1, 20_000, 1_000_000, 100_000_000)] == [2048, 2048, 15_625, 16_384]
    assert decoding.block_rows(10, ImageSpec(height=4096, width=4096, channels=3)) == 5


def test_names_and_paths_that_no_file_can_have_cost_a_row(tmp_path: Path) -> None:
    folder = draw_glyphs(tmp_path / "corpus", ["ab", "ba", "cd"])
    with open(os.fsencode(folder) + b"/caf\xe9.png", "wb") as file:
        file.write(b"x")
    preprocess.preprocess(config_for(tmp_path))
    assert quarantine(tmp_path / "shards")["caf\\udce9.png"][0] == "no_label"
    names = sorted(p.name for p in folder.glob("*-*.png"))
    rows = pa.table({"path": [*names, "a\0b.png"], "text": [*(n[:2] for n in names), "ab"]})
    pq.write_table(rows, folder / "labels.parquet")
    table = str(folder / "labels.parquet")
    config = config_for(tmp_path, labels="table", label_pattern="", table=table, out=str(tmp_path / "other"))
    manifest = preprocess.preprocess(config)
    assert manifest.num_quarantined == {"bad_row": 1}
    assert sum(manifest.num_images.values()) == 3


def test_a_job_killed_between_its_last_two_files_is_finished(tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "corpus", glyph_texts(20, 2))
    manifest = preprocess.preprocess(config_for(tmp_path))
    shutil.copy(tmp_path / "shards/manifest.json", tmp_path / "shards" / preprocess.STARTED)
    assert preprocess.preprocess(config_for(tmp_path)) == manifest


def test_shards_begun_with_other_settings_are_left_to_the_job_that_began_them(tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "corpus", glyph_texts(20, 2))
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / preprocess.STARTED).write_bytes(to_json({"height": 99}))
    with pytest.raises(InputError, match="begun with other settings"):
        preprocess.preprocess(config_for(tmp_path))


def test_a_corpus_without_labels_is_refused_with_the_rule_and_an_example(
    tmp_path: Path,
) -> None:
    draw_glyphs(tmp_path / "corpus", ["ab", "cd"])
    with pytest.raises(InputError, match=r"none of the 2 files of .* has a label that can be used .*; .*ab-0.png: the"):
        preprocess.preprocess(config_for(tmp_path, labels="folder", label_pattern=""))
    assert not (tmp_path / "shards").exists()


def test_texts_whose_images_have_widths_of_their_own_are_padded_and_not_stretched(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    for number in range(40):
        length = 1 + number % 4
        texts = glyph_texts(1, length, seed=number)
        draw_glyphs(folder / str(number), texts, seed=number, size=(12 * length, 32))
    image = preprocess.preprocess(config_for(tmp_path, height=0, width=0)).image_spec
    assert (image.height, image.width, image.pad) == (32, 48, True)
    for fit, width in (("stretch", 30), ("pad", 48)):
        config = config_for(tmp_path, height=0, width=0, fit=fit, out=str(tmp_path / fit))
        other = preprocess.preprocess(config).image_spec
        assert (other.width, other.pad) == (width, fit == "pad")


def test_an_image_whose_label_is_put_aside_does_not_widen_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    for number in range(24):
        length = 1 + number % 4
        draw_glyphs(folder / str(number), glyph_texts(1, length, seed=number), seed=number, size=(12 * length, 32))
    draw_glyphs(folder / "banner", ["abcd" * 6], size=(1200, 32))
    manifest = preprocess.preprocess(config_for(tmp_path, height=0, width=0))
    assert manifest.num_quarantined["too_long"] == 1
    assert (manifest.image_spec.width, manifest.image_spec.pad) == (48, True)
