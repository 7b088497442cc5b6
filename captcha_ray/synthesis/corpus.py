"""Draw a synthetic corpus on all cores of a cluster. `schemes` and `varied_text` know what the pictures look like."""

import dataclasses
import functools
from pathlib import Path

import pyarrow as pa
import ray.data

from captcha_ray import console
from captcha_ray.errors import InputError
from captcha_ray.runs.directory import read_json, to_json
from captcha_ray.storage import filesystem, parquet
from captcha_ray.synthesis import schemes, varied_text
from captcha_ray.synthesis.config import SynthesizeConfig

BLOCK_IMAGES = 256
"""Images that one task draws: about a second of work."""


LABELS = "labels.parquet"
"""Table of the labels of a corpus whose names do not tell them, with columns path and text."""

STARTED = ".synthesis.json"
"""Holds the config that a corpus is drawn by; a hidden file, so no label rule takes it for an image."""


def synthesize(config: SynthesizeConfig) -> str:
    """Draw the files that are missing and return the corpus' URI. The same config draws the same files anywhere.

    Needs a connected Ray. Raises InputError if `config.out` holds anything else.
    """
    out = filesystem.absolute(config.out)
    config = dataclasses.replace(config, out=out, fonts=filesystem.absolute(config.fonts) if config.fonts else "")
    present = _claim(config)
    planned = _plan(config)
    rows = [
        {"index": index, "path": item.path, "text": item.text}
        for index, item in enumerate(planned)
        if filesystem.join(out, item.path) not in present
    ]
    if not rows:
        console.say(f"{out} is finished already; nothing to do")
        return out
    table = pa.Table.from_pylist(rows)
    blocks = [table.slice(start, BLOCK_IMAGES) for start in range(0, len(table), BLOCK_IMAGES)]
    dataset = ray.data.from_arrow(blocks).map_batches(
        functools.partial(_draw, config=config), batch_size=None, batch_format="pyarrow"
    )
    with console.progress(f"draw {config.scheme}", len(table), "images") as advance:
        for drawn in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            advance(len(drawn))
    return out


def _claim(config: SynthesizeConfig) -> set[str]:
    """Mark the folder and return the URIs that an interrupted job has drawn in it."""
    marker = filesystem.join(config.out, STARTED)
    if filesystem.exists(marker):
        if SynthesizeConfig.from_dict(read_json(marker)) != config:  # an older one may lack fields
            raise InputError(f"{config.out} holds a corpus drawn with other settings; name another --out")
        return set(filesystem.list_files(config.out))
    if not filesystem.is_empty(config.out):
        raise InputError(f"{config.out} is not empty; name another --out")
    filesystem.write(marker, to_json(config.to_dict()))
    return set()


def _plan(config: SynthesizeConfig) -> list[schemes.Planned]:
    """Return what to draw, and write the table of labels where names do not tell them."""
    if config.scheme != "varied":
        return schemes.plan(config.scheme, config.seed, config.num_images)
    _fonts(config)  # a folder without fonts is told before anything is written
    planned = varied_text.plan(config.seed, config.num_images)
    table = pa.table({"path": [item.path for item in planned], "text": [item.text for item in planned]})
    parquet.write(filesystem.join(config.out, LABELS), table)
    return planned


def _fonts(config: SynthesizeConfig) -> varied_text.Families:
    if config.fonts:
        return varied_text.find_fonts(config.fonts)
    import matplotlib as mpl  # noqa: PLC0415 -- it looks for a folder to write to

    # Others that Matplotlib brings have mathematical signs in the place of letters.
    return varied_text.find_fonts(str(Path(mpl.get_data_path(), "fonts", "ttf")), "DejaVuS*")


def _render(config: SynthesizeConfig, index: int, text: str) -> bytes:
    if config.scheme == "varied":
        return varied_text.render(_fonts(config), config.seed, index, text)
    return schemes.render(config.scheme, config.seed, index, text)


def _draw(planned: pa.Table, *, config: SynthesizeConfig) -> pa.Table:
    for row in planned.to_pylist():
        png = _render(config, row["index"], row["text"])
        filesystem.write(filesystem.join(config.out, row["path"]), png)
    return planned.select(["index"])
