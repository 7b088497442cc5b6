"""Every form of an image that a recognizer takes, alone and with others, and what it refuses."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pytest
from PIL import Image

from captcha_ray import Recognizer

FORMS: dict[str, Callable[[Path], Any]] = {
    "path": lambda path: path,
    "string": str,
    "numpy string": np.str_,
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "numpy bytes": lambda path: np.bytes_(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "Pillow": lambda path: Image.open(io.BytesIO(path.read_bytes())),
    "array": lambda path: np.asarray(Image.open(io.BytesIO(path.read_bytes()))),
    "Arrow string": lambda path: pa.scalar(str(path)),
    "Arrow bytes": lambda path: pa.scalar(path.read_bytes()),
}
"""Make of a file each form in which its image is taken."""


@pytest.mark.parametrize("form", FORMS)
def test_an_image_in_any_form_is_recognized_alone_and_in_a_list(
    recognizer: Recognizer, tmp_path: Path, form: str
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20), np.uint8)).save(path)
    expected = recognizer.predict(str(path))
    assert recognizer.predict(FORMS[form](path)) == expected
    assert recognizer.predict([FORMS[form](path)]) == [expected]
    several: Any = iter([FORMS[form](path)])
    assert recognizer.predict(several) == [expected]
    with path.open("rb") as file:
        assert recognizer.predict(file) == expected


def test_columns_of_paths_or_bytes_are_several_images(recognizer: Recognizer, tmp_path: Path) -> None:
    paths = []
    for seed in range(3):
        paths.append(str(tmp_path / f"{seed}.png"))
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 20), np.uint8)).save(paths[-1])
    expected = recognizer.predict(paths)
    data: Any = [Path(path).read_bytes() for path in paths]
    for several in (pa.array(paths), pa.array(data), np.array(paths), np.array(data, object), tuple(data)):
        assert recognizer.predict(several) == expected
    assert recognizer.predict([np.array("a.png")])[0].error == "Missing: a.png does not exist"


@pytest.mark.parametrize(
    "value", [137, 1.5, None, [137], [None], np.int64(3), [["a.png"]], {"a": 1}.values()], ids=repr
)
def test_what_is_no_image_is_a_type_error_that_names_what_is_taken(recognizer: Recognizer, value: Any) -> None:
    with pytest.raises(TypeError, match="an image is a path, URI, bytes, file open for reading bytes"):
        recognizer.predict(value)


def test_a_file_open_for_text_is_a_type_error(recognizer: Recognizer, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("x")
    with (tmp_path / "a.png").open() as file, pytest.raises(TypeError, match="open for reading bytes, by mode 'rb'"):
        recognizer.predict(file)  # type: ignore[call-overload]


def test_a_photograph_that_pillow_opened_is_turned_as_it_is_to_be_seen(recognizer: Recognizer, tmp_path: Path) -> None:
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    assert recognizer.predict(Image.open(tmp_path / "a.png")) == recognizer.predict(upright)


@pytest.mark.parametrize("kind", ["no pixels", "cut off"])
def test_a_pillow_image_that_cannot_be_read_is_an_error_of_its_own(recognizer: Recognizer, kind: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20), np.uint8)).save(stream, "PNG")
    bad = Image.new("L", (0, 0)) if kind == "no pixels" else Image.open(io.BytesIO(stream.getvalue()[:-60]))
    first, second = recognizer.predict([bad, stream.getvalue()])
    assert (first.error or "").startswith(("Damaged: ", "Truncated: "))
    assert second.error is None


def test_a_file_that_was_just_written_is_read_from_its_start_and_a_closed_one_is_an_error(
    recognizer: Recognizer,
) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20), np.uint8))
    stream, closed = io.BytesIO(), io.BytesIO()
    image.save(stream, "PNG")
    closed.close()
    assert recognizer.predict(stream) == recognizer.predict(image)
    assert "closed file" in (recognizer.predict([closed])[0].error or "")


@pytest.mark.parametrize("value", [{"bytes": b"", "path": "a.png"}, pandas.DataFrame({"path": ["a.png"]})])
def test_a_table_is_no_list_of_images(recognizer: Recognizer, value: Any) -> None:
    with pytest.raises(TypeError, match="an image is a path"):
        recognizer.predict(value)
