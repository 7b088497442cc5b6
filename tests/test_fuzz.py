"""Damaged files of every kind give a result or a reason, however they are damaged.

`FUZZ_TRIES` says how often; 700,000 take about ten minutes on a core.
"""

import contextlib
import gzip
import io
import json
import os
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from captcha_ray.datasets.label_table import read_table
from captcha_ray.datasets.labels import clean
from captcha_ray.errors import InputError
from captcha_ray.images.decoder import Appearance, Unreadable, decode, inspect
from captcha_ray.images.spec import ImageSpec
from captcha_ray.inference import listing
from captcha_ray.inference.source import Source
from captcha_ray.text.visual_order import canonical, in_visual_order
from tests.support.image_files import MODES

TRIES = int(os.environ.get("FUZZ_TRIES", "20000"))
SPECS = [ImageSpec(height=8, width=16), ImageSpec(height=8, width=16, channels=3, denoise=3)]
INTERESTING = [struct.pack(">I", n) for n in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFF, 0x80000000)]

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def image_files() -> list[bytes]:
    Image.init()
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    made = []
    for kind, modes in (MODES | {"PPM": ["1", "L", "RGB"]}).items():
        for mode in modes:
            color = Image.fromarray(rng.integers(0, 256, (9, 17, 3), np.uint8))
            image = color.convert("L" if mode[0] in "IF" else mode)
            image = Image.fromarray(np.asarray(image).astype(np.uint16)) if mode == "I;16" else image.convert(mode)
            for options in ({}, {"exif": exif}, {"save_all": True, "append_images": [image.copy()]}):
                if "save_all" in options and kind not in Image.SAVE_ALL:
                    continue
                buffer = io.BytesIO()
                image.save(buffer, kind, **options)
                made.append(buffer.getvalue())
    return made


def table_files() -> list[bytes]:
    rows = [("a.png", "0317"), ("b c.png", 'x"y'), ("s3://b/c.png", "é\u200b"), ("", "")]
    text = "path,text\n" + "".join(f'"{a}","{b}"\n' for a, b in rows)
    lines = "".join(json.dumps({"file_name": a, "label": b}) + "\n" for a, b in rows)
    buffer = io.BytesIO()
    pq.write_table(pa.table({"path": [a for a, _ in rows], "text": [b for _, b in rows]}), buffer)
    plain = [text.encode(), text.encode("utf-16"), text.replace(",", ";").encode("cp1252", "replace"), lines.encode()]
    return [*plain, buffer.getvalue(), gzip.compress(text.encode(), mtime=0)]


def damaged(data: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    """Return the file after one to eight changes: bytes, numbers, pieces cut out, doubled or from another file."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        at = int(rng.integers(0, len(changed) + 1))
        length = int(rng.integers(1, 33))
        other = others[rng.integers(0, len(others))]
        start = int(rng.integers(0, len(other)))
        change = rng.integers(0, 6)
        if change == 0 and at < len(changed):
            changed[at] = rng.integers(0, 256)
        elif change == 1:
            changed[at : at + 4] = INTERESTING[rng.integers(0, len(INTERESTING))]
        elif change == 2:
            del changed[at : at + length]
        elif change == 3:
            changed[at:at] = changed[at : at + length]
        elif change == 4:
            changed[at:at] = other[start : start + length]
        elif rng.integers(0, 20) == 0:
            del changed[at:]
    return bytes(changed)


def test_images() -> None:
    seeds, rng = image_files(), np.random.default_rng(1)
    for _ in range(TRIES):
        data = damaged(seeds[rng.integers(0, len(seeds))], seeds, rng)
        for spec in SPECS:
            found = decode(data, spec, max_pixels=100_000, max_stretch=4.0)
            assert found.reason if isinstance(found, Unreadable) else found.shape == spec.shape
        assert isinstance(inspect(data, max_pixels=100_000), Unreadable | Appearance)


def test_tables(tmp_path: Path) -> None:
    seeds, rng = table_files(), np.random.default_rng(2)
    path = tmp_path / "t.csv"
    for _ in range(TRIES // 10):
        path.write_bytes(damaged(seeds[rng.integers(0, len(seeds))], seeds, rng))
        with contextlib.suppress(InputError):
            for row in read_table(str(path)):
                assert row.uri
                assert row.text is None or isinstance(row.text, str)


def test_labels() -> None:
    rng = np.random.default_rng(3)
    ranges = [
        (32, 127),
        (0, 256),
        (0x300, 0x600),
        (0x600, 0x700),
        (0x2000, 0x2100),
        (0xFE00, 0xFF00),
        (0x1F300, 0x1F700),
    ]
    for _ in range(TRIES):
        parts = [ranges[k] for k in rng.integers(0, len(ranges), rng.integers(0, 12))]
        text = "".join(chr(rng.integers(low, high)) for low, high in parts)
        shown = clean(text)
        assert clean(shown) == shown
        assert sorted(in_visual_order(shown)) == sorted(shown)
        assert in_visual_order(canonical(shown)) == in_visual_order(shown)


def test_listings(tmp_path: Path) -> None:
    seeds, rng = table_files(), np.random.default_rng(4)
    for _ in range(TRIES // 500):
        path = tmp_path / "list.csv"
        path.write_bytes(damaged(seeds[rng.integers(0, len(seeds))], seeds, rng))
        with contextlib.suppress(InputError):
            listing.write_listing(Source((str(path),)), tmp_path / "listed.parquet", lambda _: None)
