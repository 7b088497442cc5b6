"""Open what a network is measured on: a split of shards, or a labeled corpus decoded on the fly."""

import dataclasses
import functools

import pyarrow as pa

from captcha_ray.datasets import decoding, labels
from captcha_ray.datasets.config import LabelRule
from captcha_ray.datasets.shards import Labeled, in_blocks, map_tables, open_shards
from captcha_ray.errors import InputError
from captcha_ray.evaluation.config import EvaluateConfig
from captcha_ray.images import decoder
from captcha_ray.images.spec import ImageSpec
from captcha_ray.models.spec import ModelSpec
from captcha_ray.storage import filesystem
from captcha_ray.text.charset import Charset


def open_labeled(config: EvaluateConfig, own_shards: str, spec: ModelSpec) -> Labeled:
    """Open a split of shards or the images of `config.corpus`.

    Args:
        config: Of the job.
        own_shards: URI of the shards that the network was trained on, the default; "" if unknown. Splits of other
            shards are named "shards".
        spec: Of the network.

    Raises:
        InputError: There is nothing to read, or the network cannot take such shards.
    """
    if config.corpus or config.table:
        return read_corpus(config.corpus, config.label_rule, spec.image)
    if not config.shards and not own_shards:
        raise InputError("there is no run to tell which shards to measure on; name --shards or --corpus")
    shards = open_shards(config.shards or own_shards)
    manifest = shards.manifest
    if out_of_charset := Charset(spec.charset).unknown_in(manifest.charset):
        raise InputError(
            f"labels of {shards.uri} hold {out_of_charset!r}, which the network's charset {spec.charset!r} lacks"
        )
    if not spec.fits(manifest.min_length, manifest.max_length):
        lengths = f"{manifest.min_length} to {manifest.max_length}"
        raise InputError(
            f"labels of {shards.uri} have {lengths} characters, the network recognizes {spec.length_range}"
        )
    if manifest.image_spec != spec.image:
        raise InputError(f"{shards.uri} holds images of {manifest.image_spec}, the network takes {spec.image}")
    labeled = shards.labeled(config.split)
    return labeled if shards.uri == own_shards else dataclasses.replace(labeled, name="shards")


def read_corpus(corpus: str, rule: LabelRule, spec: ImageSpec) -> Labeled:
    """Decode a labeled corpus on the fly. Raises InputError if it is absent or holds no labeled file."""
    listing = labels.list_corpus(filesystem.absolute(corpus), rule)
    corpus = rule.table or corpus
    labeled = ((u, t) for u, t in zip(listing.uris, listing.texts, strict=True) if t is not None)
    files = list(dict.fromkeys(labeled))  # a table may name a file twice
    if not files:
        raise InputError(f"{corpus} holds no labeled images")
    table = pa.table({"uri": [uri for uri, _ in files], "text": [text for _, text in files]})
    decoded = map_tables(in_blocks(table, spec), functools.partial(_decode_only, spec=spec))
    return Labeled("corpus", filesystem.absolute(corpus), decoded, len(files), listing.texts.count(None))


def _decode_only(files: pa.Table, *, spec: ImageSpec) -> pa.Table:
    read, unreadable, _ = decoding.decode_files(files, spec, decoder.MAX_PIXELS)
    rows = pa.concat_tables([read, unreadable.select(["uri", "reason"])], promote_options="default")
    return rows.cast(pa.schema([field.with_nullable(True) for field in rows.schema]))
