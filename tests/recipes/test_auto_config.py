"""What follows from a manifest where a config leaves it open."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from captcha_ray.datasets.schema import Manifest
from captcha_ray.images.spec import ImageSpec
from captcha_ray.models.fingerprint import load_spec
from captcha_ray.models.networks import build_model, num_columns
from captcha_ray.models.spec import BUILTIN, ModelSpec
from captcha_ray.recipes import auto_config
from captcha_ray.recipes.catalog import get
from captcha_ray.training.trainer import model_spec
from tests import factories


def manifest(num_images: int = 685, charset: str = "2345678bcdefgmnpwxy", length: int = 5, **other: Any) -> Manifest:
    values: dict[str, Any] = {
        "image": {"height": 50, "width": 200, "channels": 1},
        "charset": charset,
        "min_length": length,
        "max_length": length,
        "num_images": {"train": num_images, "val": 0, "test": 0},
    }
    return factories.manifest(**(values | other))


def test_what_a_config_names_stays() -> None:
    for name in ("wmail", "isfahan", "demo-digits", "demo-text5"):
        assert auto_config.resolve(get(name), manifest()) == get(name)
    requested = dataclasses.replace(get("auto"), epochs=3, batch_size=7)
    resolved = auto_config.resolve(requested, manifest(min_length=2))
    assert (resolved.epochs, resolved.max_epochs, resolved.batch_size) == (3, 3, 7)


@pytest.mark.parametrize(("max_epochs", "resolved"), [(0, (24, 96)), (30, (24, 30)), (5, (5, 5))])
def test_a_training_whose_length_nobody_named_may_take_four_times_what_is_chosen(
    max_epochs: int, resolved: tuple[int, int]
) -> None:
    found = auto_config.resolve(dataclasses.replace(get("auto"), max_epochs=max_epochs), manifest())
    assert (found.epochs, found.max_epochs) == resolved


def test_only_one_schedule_has_a_limit_of_its_own() -> None:
    requested = dataclasses.replace(get("auto"), schedule="one_cycle")
    assert auto_config.resolve(requested, manifest()).max_epochs == 0


@pytest.mark.parametrize(
    ("num_images", "batch_size"),
    [(1, 16), (50, 16), (2047, 16), (2048, 32), (8191, 32), (8192, 64), (131_072, 256), (10_000_000, 256)],
)
def test_batches_grow_with_the_square_root_of_the_images(num_images: int, batch_size: int) -> None:
    assert auto_config.batch_size(num_images) == batch_size


@pytest.mark.parametrize(
    ("num_images", "epochs"), [(10, 400), (50, 320), (200, 80), (685, 24), (5_424, 14), (100_000, 7), (10_000_000, 3)]
)
def test_epochs_fall_with_the_images_and_what_is_seen_grows(num_images: int, epochs: int) -> None:
    assert auto_config.epochs(manifest(num_images)) == epochs


@pytest.mark.parametrize(("num_workers", "batch_size"), [(1, 64), (4, 16), ("1:4", 16), (8, 8), (64, 2)])
def test_workers_share_the_batch(num_workers: int | str, batch_size: int) -> None:
    config = dataclasses.replace(get("auto"), num_workers=num_workers)
    assert auto_config.resolve(config, manifest(10_000)).batch_size == batch_size


def test_more_characters_and_fewer_of_them_in_an_image_take_more_epochs() -> None:
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 100)))
    assert auto_config.epochs(manifest(685, many)) == -(-4000 * 100 // 5 // 685)
    assert auto_config.epochs(manifest(685, many[:50], length=1)) == -(-4000 * 50 // 685)


def test_auto_reads_what_the_labels_are() -> None:
    auto = get("auto")
    fixed, varying = auto_config.resolve(auto, manifest()), auto_config.resolve(auto, manifest(min_length=2))
    single = auto_config.resolve(auto, manifest(length=1, charset="0123456789"))
    assert (fixed.network, fixed.variable_length, varying.variable_length) == ("column_cnn", False, True)
    for resolved, name in ((fixed, "text"), (varying, "text-ctc"), (single, "glyph")):
        shards = manifest(length=1, charset="0123456789") if name == "glyph" else manifest()
        named = auto_config.resolve(get(name), shards)
        different = {k for k, v in vars(resolved).items() if v != getattr(named, k)}
        assert different <= {"recipe", "max_length"}


def test_no_lines_over_single_characters() -> None:
    assert auto_config.resolve(get("text"), manifest()).lines_fraction == 0.5
    assert auto_config.resolve(get("glyph"), manifest(length=1)).lines_fraction == 0.0


@pytest.mark.parametrize(
    ("width", "height", "length"),
    [(200, 50, 5), (70, 30, 4), (152, 42, 4), (80, 25, 5), (15, 30, 1), (36, 44, 1), (400, 64, 12), (100, 32, 10)],
)
def test_any_size_gives_every_character_columns_enough_and_a_small_network(
    width: int, height: int, length: int
) -> None:
    image = {"height": height, "width": width, "channels": 3}
    shards = manifest(length=length, image=image)
    spec = model_spec(auto_config.resolve(get("auto"), shards), shards)
    assert num_columns(spec.image, length) >= 3 * length
    assert sum(parameter.numel() for parameter in build_model(spec).parameters()) <= 500_000


@pytest.mark.parametrize(
    ("num_images", "change", "rate"),
    [
        (38, {}, 3e-3),  # ten of each of 19 characters, five an image
        (19, {}, 1.5e-3),
        (10, {}, 3e-3 * 50 / 190),
        (2, {}, 5e-4),
        (10, {"learning_rate": 2e-3}, 2e-3),
        (10, {"from_scratch": True}, 3e-3),
        (10, {"filters": 32}, 3e-3),
        (10, {"init": "runs/old", "head": "light"}, 3e-3 * 50 / 190),
    ],
)
def test_few_images_change_weights_to_begin_with_more_slowly(num_images: int, change: Any, rate: float) -> None:
    shown = manifest(num_images)
    counts = dict.fromkeys(shown.charset, num_images * 5 / 19)
    shown = dataclasses.replace(shown, num_characters={**shown.num_characters, "train": counts})  # type: ignore[dict-item]
    config = dataclasses.replace(get("auto"), **change)
    assert auto_config.resolve(config, shown).learning_rate == pytest.approx(rate)
    more = dataclasses.replace(shown, charset=shown.charset + "XYZ")  # which no image shows
    assert auto_config.resolve(config, more).learning_rate == pytest.approx(rate)


def test_the_head_is_that_of_the_weights_to_begin_with(tmp_path: Path) -> None:
    spec = ModelSpec(network="column_cnn", image=ImageSpec(height=24, width=48), charset="ab", max_length=2, filters=16)
    run = str(factories.save_network(tmp_path / "old", spec))

    def head(**changes: Any) -> str:
        return auto_config.resolve(dataclasses.replace(get("auto"), **changes), manifest()).head

    assert head(init=run) == "light"
    assert head(init=run, head="deep") == "deep"
    assert head() == load_spec(BUILTIN).head
    assert head(from_scratch=True) == head(filters=32) == "deep"
    assert head(network="multi_head_cnn", init="") == "auto"
