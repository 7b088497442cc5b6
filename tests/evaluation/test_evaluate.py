"""Measuring a network: files that cannot be read, samples, and confidence that means what it says."""

import dataclasses
from pathlib import Path

import pytest

from captcha_ray.datasets.config import LabelRule
from captcha_ray.datasets.shards import Labeled, Shards
from captcha_ray.errors import InputError
from captcha_ray.evaluation import evaluate, sources
from captcha_ray.models import fingerprint
from captcha_ray.models.spec import ModelSpec
from captcha_ray.runtime import ray_session
from tests import factories
from tests.support.trainings import config_for, fit


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("spec", [factories.GLYPHS, factories.COLUMNS], ids=lambda spec: spec.network)
def test_files_that_cannot_be_read_are_counted_with_their_reasons(
    spec: ModelSpec, num_workers: int, ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    folder, model = tmp_path / "corpus", factories.save_network(tmp_path / "run", spec)
    folder.mkdir()
    for name in ("ab-1.png", "ab-2.png", "-unlabeled.png"):
        (folder / name).write_bytes(b"broken")

    def labeled() -> Labeled:
        rule = LabelRule("filename", "^([^-]+)")
        return sources.read_corpus(str(folder), rule, fingerprint.load_spec(str(model)).image)

    with pytest.raises(InputError, match=r"no image of .* can be read: 2 not_an_image, 1 no_label"):
        evaluate.evaluate(labeled(), str(model), num_workers)
    factories.draw_glyphs(folder, factories.glyph_texts(12, 2))
    found = evaluate.evaluate(labeled(), str(model), num_workers).summary()
    assert (found["num_images"], found["unreadable"]) == (12, {"not_an_image": 2, "no_label": 1})


def test_mistakes_that_are_alike_do_not_stop_an_evaluation(glyph_shards: Shards, tmp_path: Path) -> None:
    untrained = str(factories.save_network(tmp_path / "run", factories.GLYPHS))
    val = glyph_shards.labeled("val")
    twice = dataclasses.replace(val, dataset=val.dataset.union(val.dataset), num_files=2 * val.num_files)
    found = evaluate.evaluate(twice, untrained)
    assert found.counts.num_images == 2 * val.num_files
    assert len(found.mistakes) > 1


def test_a_sample_is_of_the_size_asked_for_and_not_the_first_rows(glyph_shards: Shards) -> None:
    train = glyph_shards.labeled("train")
    uris = [row["uri"] for row in train.dataset.take_all()]
    few = train.sample(30)["uri"].to_pylist()
    assert 15 <= len(few) <= 45
    assert [uri for uri in uris if uri in few] == few
    assert few != uris[: len(few)]
    assert max(uris.index(uri) for uri in few) > len(uris) // 2
    assert train.sample(1000)["uri"].to_pylist() == uris


def test_calibration_makes_confidence_mean_what_it_says(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    config = config_for(glyph_shards, tmp_path / "run", epochs=4)
    fit(config, glyph_shards, ray_cluster)
    val, trained = glyph_shards.labeled("val"), config.run
    before = evaluate.evaluate(val, trained).summary()
    temperature = evaluate.calibrate(val.sample(2000), trained)
    after = evaluate.evaluate(val, trained).summary()
    assert fingerprint.load_spec(trained).temperature == temperature != 1.0
    assert after["loss"] < before["loss"]
    assert after["num_exact_match"] == before["num_exact_match"]
    again = evaluate.calibrate(val.sample(2000), trained)
    assert again == pytest.approx(temperature, abs=2e-4), "it is of what the network says itself; kept are four digits"
