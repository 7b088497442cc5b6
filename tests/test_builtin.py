"""The network that comes with the package: what it recognizes without a label, and who begins with it."""

import dataclasses
import json
import shutil
from pathlib import Path

import matplotlib
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load

import captcha_ray
from captcha_ray import Recognizer
from captcha_ray.errors import InputError
from captcha_ray.evaluation.config import EvaluateConfig
from captcha_ray.inference.config import InferConfig
from captcha_ray.models import checkpoint, fingerprint
from captcha_ray.models.spec import BUILTIN
from captcha_ray.recipes.auto_config import resolve
from captcha_ray.recipes.catalog import get
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.runtime import ray_session
from tests.factories import config_for, draw_glyphs, glyph_texts, manifest

FOLDER = Path(captcha_ray.__file__).parent / "models" / "builtin"
FONT = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


def picture(text: str, size: int = 30, margin: int = 12) -> Image.Image:
    font = ImageFont.truetype(FONT, size)
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("L", (round(right - left) + 2 * margin, round(bottom - top) + 2 * margin), 235)
    ImageDraw.Draw(image).text((margin - left, margin - top), text, fill=30, font=font)
    return image


def test_it_is_small_and_whole() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 4_000_000
    assert {path.name for path in FOLDER.iterdir()} >= {"model.safetensors", "model.json", "model.onnx"}
    spec, model_id = fingerprint.load_spec_and_fingerprint(BUILTIN)
    assert (spec.network, spec.image.pad, spec.max_length, spec.variable) == ("column_cnn", True, 10, True)
    assert json.loads((FOLDER / "model.json").read_bytes())["fingerprint"] == model_id


@pytest.mark.parametrize("engine", ["torch", "openvino", "onnxruntime"])
def test_it_recognizes_plain_text_of_any_size_without_a_label(engine: str) -> None:
    recognizer = Recognizer.load(BUILTIN, engine=engine)  # type: ignore[arg-type]
    texts = ["4827", "36+21", "garden", "7", "ABCDEF", "2468135792"]
    for size in (20, 60):
        assert [one.text for one in recognizer.predict([picture(text, size) for text in texts])] == texts


def test_what_is_known_of_the_texts_helps() -> None:
    digits = Recognizer.load(BUILTIN, charset="0123456789", length=4)
    prediction = digits.predict(picture("0120"))
    assert (prediction.text, len(prediction.char_confidence)) == ("0120", 4)
    assert digits.model_id != Recognizer.load(BUILTIN).model_id


def test_a_night_needs_no_run_and_keeps_restricted_networks_apart(
    ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    (tmp_path / "inbox").mkdir()
    texts = ["4071", "2365", "9988"]
    for text in texts:
        picture(text).save(tmp_path / "inbox" / f"{text}.png")
    config = InferConfig(images=str(tmp_path / "inbox"), run=BUILTIN, out=str(tmp_path / "table"))
    restricted = dataclasses.replace(config, charset="0123456789", length=4)
    for one, recognized in ((restricted, 3), (restricted, 0), (config, 3)):
        assert captcha_ray.infer(one).committed.counts.total == recognized
    rows = pq.read_table(tmp_path / "table").to_pylist()
    assert len(rows) == 6
    assert len({row["model_id"] for row in rows}) == 2
    mine = Recognizer.load(BUILTIN, charset="0123456789", length=4).model_id
    assert sorted(row["text"] for row in rows if row["model_id"] == mine) == sorted(texts)


def test_it_is_measured_on_labeled_images_and_left_as_it_is(
    ray_cluster: ray_session.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    for text in ("4071", "2365", "9988"):
        picture(text).save(tmp_path / "corpus" / f"{text}.png")
    before = {path: path.read_bytes() for path in FOLDER.iterdir()}
    config = EvaluateConfig(run=BUILTIN, corpus="corpus", labels="filename", charset="0123456789", length=4)
    measured = captcha_ray.evaluate(config)
    assert measured.results["corpus"]["exact_match"] == 1.0
    assert {path: path.read_bytes() for path in FOLDER.iterdir()} == before
    assert not (tmp_path / BUILTIN).exists()


def test_trainings_begin_with_it_unless_they_say_otherwise_or_it_does_not_fit() -> None:
    def init(charset: str = "abcd", **changes: object) -> str:
        return resolve(dataclasses.replace(get("auto"), **changes), manifest(charset=charset)).init  # type: ignore[arg-type]

    assert init() == BUILTIN
    assert init("abcЖ") == BUILTIN
    assert init("aЖЙЩ") == ""
    assert init(filters=32) == ""
    assert init(from_scratch=True) == ""
    assert init(network="multi_head_cnn") == ""
    other = "light" if fingerprint.load_spec(BUILTIN).head == "deep" else "deep"
    assert init(head=other) == ""
    assert init(init="runs/old", filters=32, head="light") == "runs/old"
    assert resolve(get("isfahan"), manifest()).init == ""
    with pytest.raises(InputError, match="run is 'builtin', the name of the network of this package"):
        TrainConfig(run=BUILTIN)


def test_a_run_begins_with_another_ones_weights_and_goes_on_without_it(
    ray_cluster: ray_session.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_glyphs(tmp_path / "corpus", glyph_texts(200, 2))
    captcha_ray.preprocess(config_for(tmp_path, splits=(0.6, 0.2, 0.2)))
    base = TrainConfig(
        shards="shards", run="first", filters=4, network="column_cnn", epochs=2, batch_size=16, learning_rate=3e-3
    )
    captcha_ray.train(dataclasses.replace(base, epochs=25))
    fresh = captcha_ray.train(dataclasses.replace(base, run="fresh"))
    begun = captcha_ray.train(dataclasses.replace(base, run="begun", init="first"))
    assert begun.results["test"]["loss"] < 0.5 * fresh.results["test"]["loss"]
    with pytest.raises(InputError, match="pass --filters 4"):
        captcha_ray.train(dataclasses.replace(base, run="other", init="first", filters=8))
    corpus = EvaluateConfig(run="begun", corpus="corpus", labels="filename", label_pattern="^([^-]+)", charset="ab")
    before = Path("begun/results.json").read_bytes()
    assert captcha_ray.evaluate(corpus).report == ""  # figures of a restricted network are not the run's
    assert Path("begun/results.json").read_bytes() == before
    shutil.rmtree("first")
    Path("begun/_SUCCESS").unlink()
    again = captcha_ray.train(dataclasses.replace(base, run="begun", init="first", resume=True))
    assert again.results["num_epochs"] == 2


@pytest.mark.parametrize("num_workers", ["1", "2"])
def test_a_character_that_no_image_shows_keeps_the_weights_it_came_with(
    num_workers: str, ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    draw_glyphs(tmp_path / "corpus", glyph_texts(60, 2))
    made = config_for(tmp_path, charset="abcdeЖ", splits=(0.8, 0.2, 0.0))
    captcha_ray.preprocess(made)
    changes = {"weight_decay": 0.0, "epochs": 2, "max_epochs": 2, "batch_size": 8, "num_workers": num_workers}
    config = captcha_ray.load_recipe("auto", shards=made.out, run=str(tmp_path / "run"), **changes)
    run = captcha_ray.train(config).run
    _, spec, _ = checkpoint.load_model(BUILTIN)
    given, learned = (
        load(fingerprint.load_verified(fingerprint.find_checkpoint(uri))[2])["columns.7.weight"].flatten(1)
        for uri in (BUILTIN, run)
    )
    same = [bool((learned[k] == given[spec.charset.index(c)]).all()) for k, c in enumerate("abcde")]
    assert same == [False, False, False, False, True]
