"""What a network is trained and measured on: splits of shards in a fixed order, or a corpus as it lies there."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from captcha_ray.datasets import preprocess
from captcha_ray.datasets.config import LabelRule
from captcha_ray.datasets.shards import Shards, open_shards
from captcha_ray.errors import InputError
from captcha_ray.evaluation import sources
from captcha_ray.evaluation.config import EvaluateConfig
from captcha_ray.images import decoder
from captcha_ray.images.spec import ImageSpec
from captcha_ray.models.spec import ModelSpec
from tests.factories import config_for, draw_glyphs, glyph_texts

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_dataset_holds_the_split_in_a_fixed_order(glyph_shards: Shards) -> None:
    uris = [[row["uri"] for row in glyph_shards.read("train").take_all()] for _ in range(2)]
    assert uris[0] == uris[1]
    assert len(uris[0]) == glyph_shards.manifest.num_images["train"]


def test_unfinished_shards_and_empty_splits_are_one_sentence(tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "corpus", glyph_texts(20, 2))
    with pytest.raises(InputError, match="holds no finished shards"):
        open_shards(str(tmp_path / "shards"))
    preprocess.preprocess(config_for(tmp_path, splits=(1.0, 0.0, 0.0)))
    with pytest.raises(InputError, match=r"the val split of .* is empty"):
        open_shards(str(tmp_path / "shards")).read("val")


def test_a_labeled_corpus_is_read_without_shards(tmp_path: Path) -> None:
    folder = draw_glyphs(tmp_path / "corpus", glyph_texts(12, 2))
    (folder / "ab-broken.png").write_bytes(b"broken")
    (folder / "-unlabeled.png").write_bytes(b"broken")
    spec = ImageSpec(height=16, width=24)
    source = sources.read_corpus(str(folder), LabelRule("filename", "^([^-]+)"), spec)
    rows = source.dataset.take_all()
    assert (source.num_files, source.num_unlabeled, len(rows)) == (13, 1, 13)
    (unreadable,) = [row for row in rows if row["reason"]]
    assert (unreadable["uri"], unreadable["image"]) == (str(folder / "ab-broken.png"), None)
    rows.remove(unreadable)
    pixels = decoder.decode(Path(rows[0]["uri"]).read_bytes(), spec)
    assert isinstance(pixels, np.ndarray)
    assert rows[0]["image"] == pixels.tobytes()


def test_a_network_is_only_measured_on_shards_it_could_read(glyph_shards: Shards, tmp_path: Path) -> None:
    image = glyph_shards.manifest.image_spec
    spec = ModelSpec(network="column_cnn", image=image, charset="abcd", max_length=2)
    config = EvaluateConfig(run="unused", shards=glyph_shards.uri)
    assert sources.open_labeled(config, glyph_shards.uri, spec).name == "test"
    assert sources.open_labeled(config, "/other/shards", spec).name == "shards"
    assert sources.open_labeled(config, "", dataclasses.replace(spec, max_length=5, variable=True)).name == "shards"
    for change, sentence in (
        ({"charset": "abc"}, "hold 'd', which the network's charset 'abc' lacks"),
        ({"max_length": 5}, "have 2 to 2 characters, the network recognizes 5"),
        ({"max_length": 1, "variable": True}, "have 2 to 2 characters, the network recognizes 1 to 1"),
        ({"image": dataclasses.replace(image, denoise=3)}, "the network takes"),
    ):
        with pytest.raises(InputError, match=sentence):
            sources.open_labeled(config, "", dataclasses.replace(spec, **change))
    with pytest.raises(InputError, match="name --shards or --corpus"):
        sources.open_labeled(EvaluateConfig(run="unused"), "", spec)
