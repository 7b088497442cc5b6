"""Checkpoints: what goes in comes out, and nothing else is ever taken for a network."""

import dataclasses
import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from captcha_ray.errors import InputError
from captcha_ray.images.spec import ImageSpec
from captcha_ray.models import checkpoint, fingerprint
from captcha_ray.models.networks import build_model
from captcha_ray.models.spec import ModelSpec

TINY = ModelSpec(
    network="multi_head_cnn", image=ImageSpec(height=10, width=12, channels=3), charset="abc", max_length=2
)
GLYPH = ModelSpec(network="glyph_vgg", image=ImageSpec(height=8, width=9), charset="0123", max_length=1)


def trained_model(spec: ModelSpec, seed: int = 0) -> nn.Module:
    """With running statistics of its own, channels last, as training leaves it."""
    torch.manual_seed(seed)
    model = build_model(spec).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for _ in range(3):
        model(torch.rand(4, spec.image.channels, spec.image.height, spec.image.width))
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint.save_model(str(tmp_path / "run" / "checkpoint"), trained_model(TINY), TINY)
    return tmp_path / "run" / "checkpoint"


def edit(folder: Path, change: Callable[[Any], object]) -> None:
    """Changes the description in place."""
    path = folder / "model.json"
    description = json.loads(path.read_bytes())
    change(description)
    path.write_text(json.dumps(description))


def refusal(folder: Path) -> str:
    """The one sentence that loading fails with."""
    with pytest.raises(InputError) as caught:
        checkpoint.load_model(str(folder))
    sentence = str(caught.value)
    assert sentence
    assert "\n" not in sentence
    assert len(sentence) < 600
    return sentence


@pytest.mark.parametrize("spec", [TINY, GLYPH], ids=lambda spec: spec.network)
def test_a_network_comes_back_with_identical_outputs_and_spec(spec: ModelSpec, tmp_path: Path) -> None:
    model = trained_model(spec)
    images = torch.rand(5, spec.image.channels, spec.image.height, spec.image.width)
    checkpoint.save_model(str(tmp_path), model, spec)
    loaded, its_spec, _ = checkpoint.load_model(str(tmp_path))
    assert its_spec == spec == fingerprint.load_spec(str(tmp_path))
    assert not loaded.training
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    contiguous = build_model(spec).eval()
    contiguous.load_state_dict(model.state_dict())
    assert torch.equal(loaded(images), contiguous(images))


def test_a_checkpoint_is_found_in_its_run_and_in_its_own_folder(folder: Path) -> None:
    assert fingerprint.load_spec(str(folder)) == fingerprint.load_spec(str(folder.parent)) == TINY
    assert fingerprint.find_checkpoint(f"{folder.parent}/") == str(folder)


def test_a_run_is_read_from_a_relative_path_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent.parent)
    assert checkpoint.load_model("run")[1] == TINY


def test_a_checkpoint_is_two_files_and_neither_is_a_pickle(folder: Path) -> None:
    """safetensors: the header's length in 8 bytes, then JSON. A pickle is refused by both readers."""
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
    data = (folder / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert {entry["dtype"] for entry in header.values()} == {"F32", "I64"}
    assert json.loads((folder / "model.json").read_bytes())["model"] == TINY.to_dict()


def test_a_new_save_takes_the_place_of_the_old_one(folder: Path) -> None:
    other = trained_model(TINY, seed=1)
    checkpoint.save_model(str(folder), other, TINY)
    loaded, _, _ = checkpoint.load_model(str(folder))
    assert torch.equal(next(loaded.parameters()), next(other.parameters()))


def test_no_checkpoint_is_said_to_be_none(tmp_path: Path) -> None:
    assert "holds no checkpoint" in refusal(tmp_path)
    assert "holds no checkpoint" in refusal(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no checkpoint"):
        fingerprint.load_spec(str(tmp_path))


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors" in refusal(folder)


def test_weights_without_a_description_are_no_checkpoint(folder: Path) -> None:
    (folder / "model.json").unlink()
    assert "holds no checkpoint" in refusal(folder)


def flip_a_bit(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


@pytest.mark.parametrize(
    "damage",
    [flip_a_bit, lambda data: data[: len(data) // 2], lambda data: data + b"\0", lambda data: b""],
    ids=["one bit", "half", "longer", "empty"],
)
def test_damaged_weights_are_refused(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert "the fingerprint differs" in refusal(folder)


def test_weights_of_another_network_of_the_same_shape_are_refused(folder: Path, tmp_path: Path) -> None:
    checkpoint.save_model(str(tmp_path / "other"), trained_model(TINY, seed=1), TINY)
    (tmp_path / "other" / "model.safetensors").replace(folder / "model.safetensors")
    assert "the fingerprint differs" in refusal(folder)


def describe_anew(folder: Path) -> None:
    """Makes the description vouch for whatever the weights file holds."""
    spec = ModelSpec.from_dict(json.loads((folder / "model.json").read_bytes())["model"])
    digest = fingerprint.fingerprint(spec, (folder / "model.safetensors").read_bytes())
    edit(folder, lambda d: d.update(fingerprint=digest))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\xff" * 64, b"{}"], ids=["empty", "zip", "noise", "json"])
def test_a_described_file_that_is_no_safetensors_is_refused(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)
    describe_anew(folder)
    assert "does not fit the described multi_head_cnn" in refusal(folder)


class Trap:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (Path(self.path),)


def test_a_pickle_in_place_of_weights_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    for write in (
        lambda path: path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung"))),
        lambda path: torch.save({"weights": Trap(tmp_path / "sprung")}, path),
    ):
        write(folder / "model.safetensors")
        describe_anew(folder)
        assert "does not fit" in refusal(folder)
        assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists(), "the trap is one"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d["model"].update(charset="abcd"), "size mismatch"),
        (lambda d: d["model"].update(max_length=3), "Missing key"),
        (lambda d: d["model"].update(max_length=1), "Unexpected key"),
        (lambda d: d["model"]["image"].update(height=20), "size mismatch"),
        (lambda d: d["model"]["image"].update(channels=1), "size mismatch"),
        (lambda d: d["model"].update(network="glyph_vgg"), "recognizes one character an image, not 2"),
        (lambda d: d["model"].update(network="glyph_vgg", max_length=1), "Missing key|at least"),
    ],
    ids=["charset", "more slots", "fewer slots", "height", "channels", "network", "network and slots"],
)
def test_a_description_of_another_shape_does_not_fit(
    folder: Path, change: Callable[[Any], object], sentence: str
) -> None:
    edit(folder, change)
    describe_anew(folder)
    with pytest.raises(InputError, match=sentence):
        checkpoint.load_model(str(folder))
    refusal(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["model"].update(charset=d["model"]["charset"][::-1]),
        lambda d: d["model"]["image"].update(denoise=3),
    ],
    ids=["order of the charset", "preprocessing"],
)
def test_an_edit_that_fits_the_weights_but_changes_what_is_read_is_refused(
    folder: Path, change: Callable[[Any], object]
) -> None:
    edit(folder, change)
    assert "the fingerprint differs" in refusal(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["model"].update(network="resnet"),
        lambda d: d["model"].update(charset=""),
        lambda d: d["model"].update(charset="aab"),
        lambda d: d["model"].update(charset=7),
        lambda d: d["model"].update(max_length=0),
        lambda d: d["model"].update(max_length="2"),
        lambda d: d["model"].update(dropout=2),
        lambda d: d["model"].update(color="red"),
        lambda d: d["model"].pop("max_length"),
        lambda d: d["model"].update(image=None),
        lambda d: d["model"]["image"].update(height="10"),
        lambda d: d["model"]["image"].update(height=-1),
        lambda d: d["model"]["image"].pop("width"),
        lambda d: d.update(model="resnet"),
        lambda d: d.update(model=[1]),
        lambda d: d.pop("model"),
        lambda d: d.pop("fingerprint"),
    ],
)
def test_an_edited_description_of_no_network_is_refused(folder: Path, change: Callable[[Any], object]) -> None:
    edit(folder, change)
    assert "model.json describes no model: " in refusal(folder)


@pytest.mark.parametrize("text", ["[]", '"text"', "null", "3", '{"license": "MIT"}'])
def test_foreign_json_is_refused(folder: Path, text: str) -> None:
    (folder / "model.json").write_text(text)
    assert "model.json describes no model: " in refusal(folder)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"\x80\x04}."], ids=["empty", "half", "noise", "pickle"])
def test_a_description_that_is_not_json_is_refused(folder: Path, data: bytes) -> None:
    (folder / "model.json").write_bytes(data)
    assert "cannot be read as JSON" in refusal(folder)


def test_dropout_is_no_part_of_the_weights(folder: Path) -> None:
    edit(folder, lambda d: d["model"].update(dropout=0.25))
    assert checkpoint.load_model(str(folder))[1] == dataclasses.replace(TINY, dropout=0.25)


def test_networks_from_before_a_field_was_added_keep_their_fingerprint() -> None:
    spec = ModelSpec(network="column_cnn", image=ImageSpec(height=50, width=200), charset="0123", max_length=5)
    assert (
        fingerprint.fingerprint(spec, b"weights") == "12022ef77d93c3d249c0fba5ee2a6cae226bcb08e27841e62230e4b0fa383510"
    )
    padded = dataclasses.replace(spec, image=ImageSpec(height=50, width=200, pad=True))
    cropped = dataclasses.replace(spec, image=ImageSpec(height=50, width=200, crop=(0.0, 0.4, 1.0, 0.6)))
    parted = dataclasses.replace(spec, image=ImageSpec(height=50, width=200, two_lines=1.5))
    assert len({fingerprint.fingerprint(one, b"weights") for one in (spec, padded, cropped, parted)}) == 4


def test_networks_whose_description_has_earlier_names_keep_their_fingerprint(folder: Path) -> None:
    described = json.loads((folder / "model.json").read_bytes())["model"]
    earlier = {name: described[name] for name in ("network", "charset", "dropout")} | {
        "image": {"height": 10, "width": 12, "channels": 3, "denoise": 0, "binarize": False},
        "slots": described["max_length"],
        "variable": False,
        "temperature": 1.5,
    }
    decisive = {name: value for name, value in earlier.items() if name not in ("dropout", "variable")}
    data = json.dumps(decisive, sort_keys=True).encode()
    weights = (folder / "model.safetensors").read_bytes()
    digest = hashlib.sha256(len(data).to_bytes(8, "big") + data + weights).hexdigest()
    edit(folder, lambda d: d.update(model=earlier, fingerprint=digest))
    spec, model_id = fingerprint.load_spec_and_fingerprint(str(folder))
    assert (spec.max_length, spec.temperature, model_id) == (described["max_length"], 1.5, digest)
    assert checkpoint.load_model(str(folder))[1] == spec
    edit(folder, lambda d: d["model"].update(slots=described["max_length"] + 1))
    assert "the fingerprint differs" in refusal(folder)
