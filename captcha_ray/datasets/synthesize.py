"""Draw a synthetic corpus on all cores of a cluster. `synthetic` knows what the pictures look like."""

import dataclasses
import functools

import pyarrow as pa
import ray.data

from captcha_ray import console
from captcha_ray.datasets import synthetic
from captcha_ray.datasets.config import SynthesizeConfig
from captcha_ray.errors import InputError
from captcha_ray.runs.directory import read_json, to_json
from captcha_ray.storage import filesystem

BLOCK_IMAGES = 256
"""Images that one task draws: about a second of work."""


STARTED = ".synthesis.json"
"""Holds the config that a corpus is drawn by; a hidden file, so no label rule takes it for an image."""


def synthesize(config: SynthesizeConfig) -> str:
    """Draw the files that are missing and return the corpus' URI. The same config draws the same files anywhere.

    Needs a connected Ray. Raises InputError if `config.out` holds anything else.
    """
    out = filesystem.absolute(config.out)
    config = dataclasses.replace(config, out=out)
    present = _claim(config)
    planned = synthetic.plan(config.scheme, config.seed, config.num_images)
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
        if read_json(marker) != config.to_dict():
            raise InputError(f"{config.out} holds a corpus drawn with other settings; name another --out")
        return set(filesystem.list_files(config.out))
    if not filesystem.is_empty(config.out):
        raise InputError(f"{config.out} is not empty; name another --out")
    filesystem.write(marker, to_json(config.to_dict()))
    return set()


def _draw(planned: pa.Table, *, config: SynthesizeConfig) -> pa.Table:
    for row in planned.to_pylist():
        png = synthetic.render(config.scheme, config.seed, row["index"], row["text"])
        filesystem.write(filesystem.join(config.out, row["path"]), png)
    return planned.select(["index"])
