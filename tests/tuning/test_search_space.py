"""The space of a search: what words and files mean, and what is refused in a sentence."""

import dataclasses
from pathlib import Path

import pytest

from captcha_ray.errors import InputError
from captcha_ray.recipes.catalog import RECIPES, get
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.tuning import search_space
from captcha_ray.tuning.search_space import Choice, Range

RECIPE = get("isfahan")
OFF = [f"{name}=off" for name in search_space.DEFAULT]


def test_the_default_space_is_declared_in_one_place() -> None:
    built = search_space.build(RECIPE, "", ())
    assert built == {
        "learning_rate": Range(1e-4, 1e-1, log=True),
        "batch_size": Choice((16, 32, 64)),
        "dropout": Range(0.0, 0.7),
        "schedule": Choice(("constant", "one_cycle", "warmup_stable_decay")),
        "augmentation": Range(0.0, 1.0),
    }


@pytest.mark.parametrize(
    ("word", "name", "parameter"),
    [
        ("optimizer", "optimizer", Choice(("sgd", "rmsprop", "adam", "adamw"))),
        ("learning_rate=1e-5..1:log", "learning_rate", Range(1e-5, 1.0, log=True)),
        ("learning-rate=0.5", "learning_rate", Choice((0.5,))),
        ("dropout=0..0.25", "dropout", Range(0.0, 0.25)),
        ("batch_size=8..64:log", "batch_size", Range(8, 64, log=True, whole=True)),
        ("batch_size=8, 8,64", "batch_size", Choice((8, 64))),
        ("optimizer=sgd,adam", "optimizer", Choice(("sgd", "adam"))),
        ("augmentation", "augmentation", Range(0.0, 1.0)),
    ],
)
def test_a_word_narrows_widens_or_adds_a_parameter(word: str, name: str, parameter: search_space.Parameter) -> None:
    built = search_space.build(RECIPE, "", [word])
    assert built[name] == parameter
    assert list(built)[:3] == ["learning_rate", "batch_size", "dropout"]


def test_only_what_is_named_is_varied_where_that_is_asked_for() -> None:
    assert list(search_space.build(RECIPE, "", ["optimizer", "dropout"], only=True)) == ["optimizer", "dropout"]
    with pytest.raises(InputError, match="the space is empty"):
        search_space.build(RECIPE, "", [], only=True)


def test_momentum_is_searched_where_an_optimizer_has_it() -> None:
    built = search_space.build(RECIPE, "", ["momentum=0,0.9", "optimizer=sgd,adam"])
    assert built["momentum"] == Choice((0.0, 0.9))


def test_a_file_comes_first_and_words_after_it(tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    path.write_text(
        "dropout = false\n"
        "batch_size = [8, 16]\n"
        'optimizer = "off"\n'
        "weight_decay = true\n"
        "learning_rate = { low = 1e-3, high = 1e-2, log = true }\n"
    )
    built = search_space.build(
        RECIPE, str(path), ["batch_size=4", "learning_rate=off", "schedule=off", "augmentation=off"]
    )
    assert built == {"batch_size": Choice((4,)), "weight_decay": Range(1e-6, 1e-1, log=True)}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["learnin_rate"], "unknown parameter of a search 'learnin_rate'; did you mean 'learning_rate'?"),
        (["epochs=1,2"], "unknown parameter of a search 'epochs'"),
        ([f"{name}=off" for name in search_space.DEFAULT], "the space is empty"),
        (["dropout=0..1"], "dropout=0..1 cannot be searched: dropout is 1.0; it must be 0 to below 1"),
        (["batch_size=1,2"], "batch_size=1,2 cannot be searched: batch_size is 1"),
        (["learning_rate=0..1:log"], "learning_rate is 0..1:log; a logarithmic range begins above 0"),
        (["learning_rate=1..0.1"], "low must be below high"),
        (["learning_rate=1..2:exp"], "only :log may stand there"),
        (["learning_rate=a,b"], "'a' is no value of learning_rate, which takes a number"),
        (["learning_rate=nan"], "'nan' is no value of learning_rate"),
        (["batch_size=8.5"], "'8.5' is no value of batch_size, which takes a whole number"),
        (["optimizer=adagrad"], "'adagrad' is no value of optimizer, which takes sgd, rmsprop, adam, adamw"),
        (["momentum"], "momentum means nothing to adam"),
        (["momentum", "optimizer=adam,adamw"], "momentum means nothing to adam and adamw"),
        (["optimizer=1..2"], "optimizer has no range"),
        (["learning_rate="], "'' is no value of learning_rate"),
        (["shear_degrees"], "augmentation sets shear_degrees too"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_a_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        search_space.build(RECIPE, "", words)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("dropout = ", "cannot be read as TOML"),
        ("dropout = []", "dropout has no values"),
        ("dropout = { low = 0.1 }", "dropout lacks 'high'"),
        ("dropout = { low = 0.1, high = 0.2, lug = true }", "unknown key of dropout 'lug'; did you mean 'log'?"),
        ("dropout = { low = 0.1, high = 0.2, log = 1 }", "log of dropout is 1; it must be true or false"),
        ("dropout = [true]", "True is no value of dropout, which takes a number"),
        ('[search]\ndropout = "off"', "unknown parameter of a search 'search'"),
    ],
)
def test_a_broken_file_is_refused_in_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "space.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        search_space.build(RECIPE, str(path), ())
    assert sentence in str(caught.value)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.toml does not exist"):
        search_space.build(RECIPE, str(tmp_path / "nowhere.toml"), ())


def test_every_parameter_on_offer_fits_every_recipe() -> None:
    singles = [name for name in search_space.OFFERED if name not in (*search_space.FULL_AUGMENTATION, "setting")]
    for name in RECIPES:
        assert set(search_space.build(get(name), "", singles)) == set(singles)
    assert set(search_space.build(RECIPE, "", ["augmentation=off", *search_space.FULL_AUGMENTATION])) >= set(
        search_space.FULL_AUGMENTATION
    )


def test_settings_are_not_searched_beside_what_they_change() -> None:
    with pytest.raises(InputError, match="setting changes learning_rate, dropout, augmentation too; vary it"):
        search_space.build(RECIPE, "", ["setting"])
    assert set(search_space.build(RECIPE, "", ["setting=rules,slow", "batch_size"], only=True)) == {
        "setting",
        "batch_size",
    }
    assert search_space.apply(RECIPE, {"setting": "slow"}).learning_rate == pytest.approx(RECIPE.learning_rate / 3)


def test_values_become_fields_and_augmentation_becomes_four_of_them() -> None:
    config = search_space.apply(RECIPE, {"learning_rate": 0.5, "optimizer": "sgd", "augmentation": 0.5})
    assert config == dataclasses.replace(
        RECIPE,
        learning_rate=0.5,
        optimizer="sgd",
        rotation_degrees=2.5,
        shift_fraction=0.025,
        shear_degrees=2.5,
        zoom_fraction=0.05,
    )


def test_a_recipe_stands_in_the_space_with_its_own_values() -> None:
    built = search_space.build(RECIPE, "", ["optimizer"])
    values = search_space.values_of(RECIPE, built)
    assert values == {
        "learning_rate": 1e-3, "batch_size": 32, "dropout": 0.5, "schedule": "constant", "augmentation": 0.0,
        "optimizer": "adam",
    }  # fmt: skip
    assert search_space.apply(RECIPE, values) == RECIPE
    assert "augmentation" not in search_space.values_of(get("wmail"), built)


def test_a_grid_has_the_ends_and_the_middle_of_ranges_and_every_choice() -> None:
    built = search_space.build(
        TrainConfig(), "", [*OFF, "learning_rate=1e-4..1e-2:log", "batch_size=10..20", "optimizer=sgd,adam"]
    )
    grid = list(search_space.grid(built))
    assert len(grid) == 3 * 3 * 2
    assert sorted({row["learning_rate"] for row in grid}) == pytest.approx([1e-4, 1e-3, 1e-2])
    assert sorted({row["batch_size"] for row in grid}) == [10, 15, 20]
    assert [row["optimizer"] for row in grid[:4]] == ["sgd", "adam", "sgd", "adam"]


def test_a_parameter_is_said_as_it_is_given() -> None:
    words = ["batch_size=8..64:log", "optimizer=sgd", "learning_rate=0.001,0.1"]
    assert [f"{name}={one}" for name, one in search_space.build(RECIPE, "", words, only=True).items()] == words
