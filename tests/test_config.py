"""What jobs can be told is checked before any work, in sentences that name the field and its value."""

import ast
import dataclasses
import inspect
import itertools
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captcha_ray.config import Config
from captcha_ray.datasets.config import PreprocessConfig
from captcha_ray.datasets.schema import Manifest
from captcha_ray.errors import InputError
from captcha_ray.evaluation.config import EvaluateConfig
from captcha_ray.images.spec import ImageSpec
from captcha_ray.inference.config import InferConfig
from captcha_ray.recipes import config
from captcha_ray.recipes.catalog import RECIPES, get
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.synthesis.config import SynthesizeConfig
from captcha_ray.tuning.config import TuneConfig

CONFIGS: list[type[Config]] = [ImageSpec, SynthesizeConfig, PreprocessConfig, TrainConfig, EvaluateConfig, InferConfig]
NAN, INF = float("nan"), float("inf")

BAD: list[tuple[type[Config], dict[str, Any]]] = [
    *((ImageSpec, {name: value}) for name in ("height", "width") for value in (-1, 0, 3, 4097)),
    *((ImageSpec, {"channels": value}) for value in (0, 2, 4)),
    *((ImageSpec, {"denoise": value}) for value in (-1, 1, 2, 4, 17)),
    (SynthesizeConfig, {"scheme": "letters"}),
    (SynthesizeConfig, {"num_images": 0}),
    (EvaluateConfig, {"shards": "s", "labels": "table", "table": "t.csv"}),
    (EvaluateConfig, {"folds": 5, "engine": "openvino"}),
    (EvaluateConfig, {"precision": "int8"}),
    (EvaluateConfig, {"use_gpu": True, "num_workers": 1, "engine": "openvino"}),
    (SynthesizeConfig, {"seed": -1}),
    (PreprocessConfig, {"labels": "folders"}),
    (PreprocessConfig, {"labels": "table"}),
    (PreprocessConfig, {"table": "x.csv"}),
    (PreprocessConfig, {"labels": "filename", "label_pattern": "(ab"}),
    (PreprocessConfig, {"labels": "folder", "label_pattern": "a"}),
    (PreprocessConfig, {"height": 3}),
    (PreprocessConfig, {"width": 5000}),
    (PreprocessConfig, {"channels": 2}),
    (PreprocessConfig, {"denoise": 2}),
    *(
        (PreprocessConfig, {"splits": value})
        for value in ((0.8, 0.1, 0.2), (1.2, -0.1, -0.1), (0.0, 0.5, 0.5), (NAN, 0.5, 0.5))
    ),
    *((PreprocessConfig, {"split_seed": value}) for value in (-1, 2**64)),
    (PreprocessConfig, {"charset": "01210"}),
    (PreprocessConfig, {"length": -1}),
    (PreprocessConfig, {"bad_labels": "ignore"}),
    (PreprocessConfig, {"max_pixels": 0}),
    (TrainConfig, {"network": "resnet"}),
    (TrainConfig, {"optimizer": "Adam"}),
    (TrainConfig, {"schedule": "cosine"}),
    (TrainConfig, {"precision": "fp16"}),
    *((TrainConfig, {name: 0}) for name in ("num_workers", "cpus_per_worker")),
    *((TrainConfig, {"num_workers": value}) for value in ("4:1", "0:2", "1:2:3", "1:", "all", "-1", "1:4.5")),
    (TrainConfig, {"epochs": -1}),
    (TrainConfig, {"max_epochs": 5}),
    (TrainConfig, {"schedule": "warmup_stable_decay", "epochs": 6, "max_epochs": 5}),
    (TrainConfig, {"batch_size": 1}),
    *((TrainConfig, {name: -1}) for name in ("height", "width", "max_length", "patience", "seed", "max_failures")),
    *(
        (TrainConfig, {name: value})
        for name in ("momentum", "weight_decay", "rotation_degrees", "shift_fraction", "shear_degrees")
        for value in (-0.1, NAN, INF)
    ),
    *((TrainConfig, {name: value}) for name in ("learning_rate", "checkpoint_every_s") for value in (-1.0, NAN, INF)),
    *((TrainConfig, {name: value}) for name in ("dropout", "zoom_fraction") for value in (-0.1, 1.0, NAN)),
    (TrainConfig, {"shear_degrees": 90.0}),
    *((TrainConfig, {"label_smoothing": value}) for value in (-0.1, 1.0, NAN)),
    *((TuneConfig, {name: 0}) for name in ("num_trials", "workers_per_trial", "cpus_per_worker")),
    *((TuneConfig, {name: -1}) for name in ("epochs", "final_seeds", "max_concurrent", "seed")),
    *((TuneConfig, {"gpus_per_trial": value}) for value in (-1.0, 1.5, 2.0, NAN, INF)),
    (TuneConfig, {"workers_per_trial": 3, "gpus_per_trial": 2.0}),
    (TuneConfig, {"search": "bayes"}),
    (TuneConfig, {"scheduler": "pbt"}),
    (EvaluateConfig, {"split": "testing"}),
    (EvaluateConfig, {"labels": "name"}),
    (EvaluateConfig, {"labels": "table"}),
    (EvaluateConfig, {"table": "x.csv"}),
    (EvaluateConfig, {"labels": "filename", "label_pattern": "(ab"}),
    (EvaluateConfig, {"label_pattern": "a"}),
    (EvaluateConfig, {"shards": "a", "corpus": "b"}),
    (EvaluateConfig, {"num_workers": -1}),
    (InferConfig, {"skip": "all"}),
    *((InferConfig, {name: "(ab"}) for name in ("match", "date_pattern")),
    *((InferConfig, {"date_pattern": value}) for value in ("x", "(20..)-(..)", "(a)(b)(c)(d)")),
    *((InferConfig, {"max_error_fraction": value}) for value in (-0.1, 1.1, NAN)),
    *((InferConfig, {"stall_timeout_s": value}) for value in (0.0, -1.0, NAN, INF)),
    *(
        (InferConfig, {name: value})
        for name in ("objects_per_run", "max_bytes", "cpus_per_worker")
        for value in (0, -1)
    ),
    *((InferConfig, {"max_pixels": value}) for value in (0, 178_956_971)),
    *((InferConfig, {"max_stretch": value}) for value in (0.99, -1.0, NAN)),
    (InferConfig, {"num_workers": -1}),
    *((InferConfig, {"endpoint_url": value}) for value in ("127.0.0.1:9000", "s3://bucket", "ftp://host")),
]


def test_credentials_in_an_address_are_refused_without_being_repeated() -> None:
    with pytest.raises(InputError, match="endpoint_url must hold no credentials") as caught:
        InferConfig(endpoint_url="https://key:secret@store.example")
    assert "secret" not in str(caught.value)


def made(kind: type[Config], values: dict[str, Any]) -> Config:
    return kind(**{**({"height": 60, "width": 18} if kind is ImageSpec else {}), **values})


@pytest.mark.parametrize(("kind", "values"), BAD, ids=lambda x: x.__name__ if isinstance(x, type) else str(x))
def test_a_bad_value_is_refused_in_a_sentence_that_names_field_and_value(
    kind: type[Config], values: dict[str, Any]
) -> None:
    with pytest.raises(InputError) as caught:
        made(kind, values)
    sentence = str(caught.value)
    assert "\n" not in sentence
    name, value = list(values.items())[-1]
    assert name in sentence
    assert str(value) in sentence


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (ImageSpec, {"channels": 3, "binarize": True}, "binarize"),
        (PreprocessConfig, {"channels": 3, "binarize": True}, "binarize"),
        (PreprocessConfig, {"corpus": ""}, "corpus"),
        (PreprocessConfig, {"out": ""}, "out"),
        (TrainConfig, {"shards": ""}, "shards"),
        (TrainConfig, {"run": ""}, "run"),
        (EvaluateConfig, {"run": ""}, "run"),
        (EvaluateConfig, {"use_gpu": True}, "--num-workers"),
        *((InferConfig, {name: ""}, name) for name in ("images", "run", "out")),
        *((InferConfig, {"price_per_core_hour": value}, "price_per_core_hour") for value in (-0.01, NAN)),
        *(
            (InferConfig, {"retry_errors": True, "skip": s}, "--retry-errors and --skip")
            for s in ("never", "any-model")
        ),
    ],
)
def test_an_empty_place_or_a_flag_that_lacks_its_partner_is_refused_by_name(
    kind: type[Config], values: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        made(kind, values)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        *((ImageSpec, {name: value}) for name in ("height", "width") for value in (4, 4096)),
        *((ImageSpec, {"denoise": value}) for value in (0, 3, 15)),
        (ImageSpec, {"channels": 3}),
        (ImageSpec, {"binarize": True}),
        (PreprocessConfig, {"splits": (1.0, 0.0, 0.0), "split_seed": 2**64 - 1}),
        (PreprocessConfig, {"labels": "filename", "label_pattern": "^([^-]+)"}),
        (PreprocessConfig, {"labels": "table", "table": "x.csv"}),
        (TrainConfig, {"dropout": 0.0, "zoom_fraction": 0.99, "shear_degrees": 89.0, "batch_size": 2}),
        (EvaluateConfig, {"use_gpu": True, "num_workers": 1}),
        *((InferConfig, {"max_error_fraction": value}) for value in (0.0, 1.0)),
        *((InferConfig, {"max_pixels": value}) for value in (1, 178_956_970)),
        (InferConfig, {"max_stretch": 1.0, "price_per_core_hour": 0.0, "num_workers": 0, "use_gpu": True}),
        (InferConfig, {"date_pattern": r"(\d{4})/(\d\d)/(\d\d)", "match": r"\.png$", "retry_errors": True}),
        *((InferConfig, {"endpoint_url": value}) for value in ("http://127.0.0.1:9000", "https://store.example")),
    ],
)
def test_the_last_allowed_values_are_allowed(kind: type[Config], values: dict[str, Any]) -> None:
    assert made(kind, values).to_dict().items() >= json.loads(json.dumps(values)).items()


def test_an_unknown_field_names_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown field of TrainConfig 'epoch'; did you mean 'epochs'"):
        TrainConfig.from_dict({"epoch": 3})


def test_an_unknown_field_near_to_none_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'zzz'; known are scheme, num_images, seed, fonts, out\."):
        SynthesizeConfig.from_dict({"zzz": 3})


CHANGED: list[Config] = [
    ImageSpec(height=60, width=18, channels=3, denoise=3),
    SynthesizeConfig(scheme="text5", num_images=7, seed=3, out="s3://b/x"),
    PreprocessConfig(splits=(0.5, 0.25, 0.25), labels="filename", label_pattern=r"^(\w+)", charset="äé∅"),
    TrainConfig(learning_rate=1 / 3, resume=True, network="multi_head_cnn"),
    EvaluateConfig(run="r", corpus="c", labels="table", table="t.csv"),
    InferConfig(images="s3://b/i", skip="never", date_pattern="(.)(.)(.)", max_stretch=1.5, objects_per_run=7),
]


@pytest.mark.parametrize("value", CHANGED, ids=lambda value: type(value).__name__)
def test_a_config_comes_back_from_json_as_it_was(value: Config) -> None:
    text = json.dumps(value.to_dict())
    assert type(value).from_dict(json.loads(text)) == value
    assert {type(value) for value in CHANGED} == set(CONFIGS)


@given(st.floats(1e-9, 1e3), st.integers(0, 2**70), st.sampled_from(["sgd", "rmsprop", "adam", "adamw"]))
@settings(deadline=None)
def test_numbers_keep_every_digit_through_json(rate: float, seed: int, optimizer: config.Optimizer) -> None:
    value = TrainConfig(learning_rate=rate, seed=seed, optimizer=optimizer)
    assert TrainConfig.from_dict(json.loads(json.dumps(value.to_dict()))) == value


@pytest.mark.parametrize("kind", [*CONFIGS, Manifest], ids=lambda kind: kind.__name__)
def test_every_field_has_a_sentence_under_it(kind: type[Config]) -> None:
    body = ast.parse(inspect.getsource(kind)).body[0].body  # type: ignore[attr-defined]
    documented = set()
    for field, below in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and re.match(r"(?s)\S.*\.$", str(below.value.value))
        ):
            documented.add(field.target.id)  # type: ignore[union-attr]
    assert {field.name for field in dataclasses.fields(kind)} == documented  # type: ignore[arg-type]


def test_a_config_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 0  # type: ignore[misc]


def test_an_image_is_named_width_by_height_by_channels() -> None:
    image = ImageSpec(height=50, width=200, channels=3)
    assert (image.shape, str(image)) == ((50, 200, 3), "200x50x3")


def test_wmail_has_the_numbers_of_its_project() -> None:
    found = get("wmail")
    assert (found.network, found.width, found.height, found.max_length) == ("glyph_vgg", 18, 60, 1)
    assert (found.optimizer, found.learning_rate, found.momentum, found.schedule) == ("sgd", 0.01, 0.0, "constant")
    assert (found.batch_size, found.epochs, found.patience, found.num_workers) == (32, 75, 0, 1)
    assert min(found.rotation_degrees, found.shift_fraction, found.shear_degrees, found.zoom_fraction) > 0


def test_isfahan_has_the_numbers_of_its_project() -> None:
    found = get("isfahan")
    assert (found.network, found.width, found.height, found.max_length) == ("multi_head_cnn", 200, 50, 5)
    assert (found.optimizer, found.learning_rate, found.schedule) == ("adam", 1e-3, "constant")
    assert (found.batch_size, found.epochs, found.patience, found.dropout) == (32, 60, 0, 0.5)
    assert (found.weight_decay, found.num_workers) == (0.0, 1)
    assert (found.rotation_degrees, found.shift_fraction, found.shear_degrees, found.zoom_fraction) == (0, 0, 0, 0)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_bears_its_own_name_and_takes_what_the_shards_have(name: str) -> None:
    assert get(name).recipe == name
    assert (get(name).charset, get(name).resume) == ("", False)


def test_the_default_recipe_exists_and_reads_what_the_default_jobs_write() -> None:
    found = get(TrainConfig().recipe)
    assert found.shards == PreprocessConfig().out
    assert found.run == EvaluateConfig().run
    assert PreprocessConfig().corpus == SynthesizeConfig().out


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown recipe 'isfahn'; did you mean 'isfahan'"):
        get("isfahn")


@pytest.mark.parametrize(("given", "workers"), [(1, (1, 1)), (4, (4, 4)), ("4", (4, 4)), ("1:4", (1, 4))])
def test_workers_are_a_number_or_a_range(given: int | str, workers: tuple[int, int]) -> None:
    assert TrainConfig(num_workers=given).workers == workers
