"""Every engine recognizes what the network does, and one that cannot says why."""

import dataclasses
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
import torch
from PIL import Image

from captcha_ray import Recognizer
from captcha_ray.datasets import schema
from captcha_ray.engines import choice, openvino_engine
from captcha_ray.engines.quantize import to_int8
from captcha_ray.errors import InputError
from captcha_ray.evaluation import exporting
from captcha_ray.images.spec import ImageSpec
from captcha_ray.models import checkpoint, exports, fingerprint
from captcha_ray.models.networks import build_model
from captcha_ray.models.spec import ModelSpec
from captcha_ray.storage import filesystem

PAGE = Path(__file__).parents[2] / "docs/inference.md"

SPECS = [
    ModelSpec(network="glyph_vgg", image=ImageSpec(height=16, width=24), charset="0123456789", max_length=1),
    ModelSpec(network="multi_head_cnn", image=ImageSpec(height=12, width=20), charset="abcdé", max_length=3),
    ModelSpec(network="column_cnn", image=ImageSpec(height=16, width=40, channels=3), charset="abc", max_length=3),
    ModelSpec(
        network="column_cnn", image=ImageSpec(height=16, width=24), charset="abcdef", max_length=4, variable=True,
        filters=8, temperature=1.7,
    ),
]  # fmt: skip


def pictures(spec: ModelSpec, n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *spec.image.shape), np.uint8)


def save_opinionated(folder: Path, spec: ModelSpec) -> str:
    """Save an untrained network whose weights are large enough for outputs that differ from image to image."""
    torch.manual_seed(0)
    model = build_model(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2)
    checkpoint.save_model(str(folder), model.eval(), spec)
    return str(folder)


@pytest.fixture(params=SPECS, ids=lambda spec: f"{spec.network}-{spec.image}")
def run(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return save_opinionated(tmp_path / "run", request.param)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_an_engine_has_the_probabilities_of_torch(run: str, engine: Any) -> None:
    expected = Recognizer.load(run, precision="fp32", engine="torch")
    found = Recognizer.load(run, precision="fp32", engine=engine)
    assert found.engine.name == f"{engine} fp32"
    assert (found.spec, found.model_id) == (expected.spec, expected.model_id)
    for n in (1, 7, 1):
        images = pictures(expected.spec, n)
        np.testing.assert_allclose(
            np.exp(found.log_probabilities(images)), np.exp(expected.log_probabilities(images)), atol=1e-4
        )


def test_outputs_of_one_batch_outlive_the_next(run: str) -> None:
    recognizer = Recognizer.load(run, precision="fp32")
    images = pictures(recognizer.spec, 8)
    first = recognizer.engine.log_probabilities(images[:4])
    kept = first.copy()
    recognizer.engine.log_probabilities(images[4:])
    np.testing.assert_array_equal(first, kept)


def test_bf16_is_near(run: str) -> None:
    expected, found = (Recognizer.load(run, precision=precision) for precision in ("fp32", "bf16"))
    assert found.engine.name == "openvino bf16"
    images = pictures(expected.spec, 7)
    difference = np.exp(found.log_probabilities(images)) - np.exp(expected.log_probabilities(images))
    assert np.abs(difference).mean() < 0.02


def test_int8_is_near_and_runs_on_both_engines(run: str) -> None:
    spec = fingerprint.load_spec(run)
    images = pictures(spec, 40)
    fp32 = choice.export(run)
    exports.save(run, {"fp32": fp32, "int8": to_int8(fp32, images)}, {})
    expected = np.exp(Recognizer.load(run, precision="fp32").log_probabilities(images))
    engines: tuple[Any, ...] = ("openvino", "onnxruntime")
    for engine in engines:
        recognizer = Recognizer.load(run, precision="int8", engine=engine)
        assert recognizer.engine.name == f"{engine} int8"
        assert np.abs(np.exp(recognizer.log_probabilities(images)) - expected).mean() < 0.05


def test_auto_takes_the_fastest_that_loses_nothing(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fp32 = choice.export(run)
    int8 = to_int8(fp32, pictures(fingerprint.load_spec(run), 4))
    seen = {"num_images": 99, "torch": {"right": 99}, "bf16": {"right": 99}}
    worse = {**seen, "bf16": {"right": 98}}
    for flags, capabilities, forms, measured, expected in (
        ({"avx512_vnni"}, ["BF16"], {"int8": int8}, seen, "openvino int8"),
        ({"avx2"}, ["BF16"], {"int8": int8}, seen, "openvino bf16"),
        ({"avx512_vnni"}, ["BF16"], {}, {}, "openvino bf16"),
        ({"avx512_vnni"}, ["BF16"], {}, worse, "openvino fp32"),
        ({"avx512_vnni"}, ["FP32"], {}, seen, "openvino fp32"),
    ):
        monkeypatch.setattr(openvino_engine, "_cpu_flags", lambda flags=flags: flags)
        monkeypatch.setattr(openvino_engine, "_capabilities", lambda capabilities=capabilities: capabilities)
        exports.save(run, {"fp32": fp32, **forms}, measured)  # type: ignore[dict-item]
        assert Recognizer.load(run).engine.name == expected
    assert Recognizer.load(run, engine="onnxruntime").engine.name == "onnxruntime fp32"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"engine": "torch", "precision": "int8"}, "engine torch computes in fp32 or bf16"),
        ({"engine": "onnxruntime", "precision": "bf16"}, "engine onnxruntime computes in fp32 or int8"),
        ({"engine": "openvino", "device": "cuda"}, "engine openvino computes on the CPU; use torch on cuda"),
        ({"engine": "torch", "device": "gpu"}, "device is 'gpu'; it must be cpu, cuda, or cuda: and a number"),
        ({"engine": "torch", "device": "mps"}, "device is 'mps'; it must be cpu"),
        ({"engine": "torch", "device": "cuda:99"}, "device is 'cuda:99'; torch sees [0-9]+ GPUs here"),
        ({"precision": "int8"}, "cannot be run in int8: it has no such form; a training with at least 50"),
    ],
)
def test_what_an_engine_cannot_do_is_said(tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Recognizer.load(save_opinionated(tmp_path, SPECS[0]), **arguments)


def test_an_engine_that_is_not_installed_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = save_opinionated(tmp_path, SPECS[0])
    monkeypatch.delitem(sys.modules, "captcha_ray.engines.onnxruntime_engine", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"onnxruntime cannot be loaded .*; pip install onnxruntime, or use torch"):
        Recognizer.load(run, engine="onnxruntime")


def test_a_model_of_other_weights_is_not_run(tmp_path: Path) -> None:
    run = save_opinionated(tmp_path, SPECS[0])
    choice.export(run)
    (tmp_path / "model.onnx").write_bytes(b"another")
    with pytest.raises(InputError, match=r"model\.onnx is not the model that model\.json names"):
        Recognizer.load(run)


def test_another_temperature_needs_another_model(tmp_path: Path) -> None:
    run = save_opinionated(tmp_path, SPECS[1])
    choice.export(run)
    checkpoint.set_temperature(run, 2.5)
    assert not exports.has(run, "fp32")
    expected = Recognizer.load(run, precision="fp32", engine="torch")
    images = pictures(expected.spec, 5)
    found = Recognizer.load(run, precision="fp32").log_probabilities(images)
    np.testing.assert_allclose(found, expected.log_probabilities(images), atol=1e-3)
    assert exports.has(run, "fp32")


def test_a_model_that_is_lost_is_made_anew_and_the_others_stay(tmp_path: Path) -> None:
    run = save_opinionated(tmp_path, SPECS[0])
    fp32 = choice.export(run)
    seen = {"num_images": 60, "torch": {"right": 60}, "int8": {"right": 60}}
    exports.save(run, {"fp32": fp32, "int8": to_int8(fp32, pictures(SPECS[0], 4))}, seen)
    (tmp_path / "model.onnx").unlink()
    assert Recognizer.load(run, precision="fp32").engine.name == "openvino fp32"
    assert exports.has(run, "fp32")
    assert exports.measured(run) == seen
    assert Recognizer.load(run, precision="int8").engine.name == "openvino int8"
    (tmp_path / "model_int8.onnx").unlink()
    with pytest.raises(InputError, match=r"the file of that form is missing; jobs/export\.py makes it anew"):
        Recognizer.load(run, precision="int8")


def test_a_run_of_an_earlier_version_gets_a_model_once(tmp_path: Path) -> None:
    run = save_opinionated(tmp_path, SPECS[0])
    assert "one is kept there now" in choice.prepare(run, "auto", "cpu")
    assert choice.prepare(run, "auto", "cpu") == ""
    assert (tmp_path / "model.onnx").exists()
    assert choice.prepare(save_opinionated(tmp_path / "b", SPECS[0]), "torch", "cpu") == ""


def test_a_run_that_cannot_be_written_is_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = save_opinionated(tmp_path / "run", SPECS[0])

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(filesystem, "write", refuse)  # root may write into any folder
    assert "each worker makes one for itself" in choice.prepare(run, "auto", "cpu")
    assert Recognizer.load(run).predict(pictures(SPECS[0], 1)[0, :, :, 0]).text
    assert not exports.has(run, "fp32")


def test_recognizing_needs_no_torch(tmp_path: Path) -> None:
    run = save_opinionated(tmp_path, SPECS[0])
    choice.export(run)
    program = (
        "import sys, numpy, captcha_ray\n"
        "image = numpy.zeros((16, 24), 'u1') + numpy.arange(24, dtype='u1') * 9\n"
        f"captcha_ray.Recognizer.load({run!r}).predict(image)\n"
        "assert not {'torch', 'onnxruntime', 'onnx', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_model_is_told_what_it_is(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPECS[3])
    session = onnxruntime.InferenceSession(choice.export(save_opinionated(tmp_path, spec)))
    assert ModelSpec.from_dict(json.loads(session.get_modelmeta().custom_metadata_map["model"])) == spec
    assert session.get_inputs()[0].type == "tensor(uint8)"


def test_the_documented_program_recognizes_with_onnxruntime_alone(tmp_path: Path) -> None:
    program = next(
        block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "onnx" in block
    )
    run = save_opinionated(tmp_path / "runs/captchas/checkpoint", SPECS[2])
    choice.export(run)
    image = pictures(SPECS[2], 1)[0]
    (tmp_path / "captchas").mkdir()
    Image.fromarray(image).save(tmp_path / "captchas/2b827.png")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    columns = Recognizer.load(run, precision="fp32", engine="torch").engine.log_probabilities(image[None])[0]
    expected = "".join("abc"[k] for k, _ in itertools.groupby(columns.argmax(1)) if k < 3)
    assert expected
    assert done.stdout == f"{expected}\n"


# ------------------------------------------------------------------------------------------------------------ parity


def rows_of(spec: ModelSpec, run: str, n: int) -> pa.Table:
    """Return rows of shards, labeled by what the network itself recognizes in them."""
    images = pictures(spec, n)
    recognizer = Recognizer.load(run, precision="fp32", engine="torch")
    texts = [one.text for one in recognizer.predictions(recognizer.log_probabilities(images))]
    return pa.table({"image": schema.pack_images(images), "text": texts})


def test_a_network_that_loses_nothing_in_int8_is_offered_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = save_opinionated(tmp_path, SPECS[2])
    rows = rows_of(SPECS[2], run, 120)
    monkeypatch.setattr(exports, "MAX_LOSS", 1.0)  # random outputs are near to one another
    measured = exporting.export(run, rows)
    assert (measured["num_images"], measured["torch"]["right"]) == (120, 120)
    assert measured["fp32"]["as_torch"] >= 118
    assert exports.measured(run) == measured
    assert measured["onnxruntime int8"]["as_torch"] > 60
    assert exports.has(run, "int8")
    assert Recognizer.load(run, precision="int8").engine.name == "openvino int8"


def test_a_network_that_loses_strings_in_int8_is_not_and_the_figures_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = save_opinionated(tmp_path, SPECS[2])
    rows = rows_of(SPECS[2], run, 120)
    (tmp_path / "model_int8.onnx").write_bytes(b"of an earlier export")
    monkeypatch.setattr(exporting, "to_int8", lambda model, images: to_int8(model, images[:1] * 0))
    measured = exporting.export(run, rows)
    assert measured["int8"]["right"] < 120
    assert not exports.has(run, "int8")
    assert not (tmp_path / "model_int8.onnx").exists()
    right = {form: measured[form]["right"] for form in ("int8", "torch")}
    said = f"of 120 validation images int8 recognizes {right['int8']}, and torch in fp32 {right['torch']}"
    with pytest.raises(InputError, match=said):
        Recognizer.load(run, precision="int8")


def test_each_engine_is_judged_by_what_it_recognizes_itself_in_int8(tmp_path: Path) -> None:
    run = save_opinionated(tmp_path, SPECS[0])
    fp32 = choice.export(run)
    seen = {"num_images": 60, "torch": {"right": 60}, "int8": {"right": 60}, "onnxruntime int8": {"right": 59}}
    exports.save(run, {"fp32": fp32, "int8": to_int8(fp32, pictures(SPECS[0], 4))}, seen)
    assert choice.check(run, "auto", "int8", "cpu") == "openvino"
    said = "of 60 validation images onnxruntime int8 recognizes 59, and torch in fp32 60"
    with pytest.raises(InputError, match=said):
        choice.check(run, "onnxruntime", "int8", "cpu")
    with pytest.raises(InputError, match=said):
        Recognizer.load(run, engine="onnxruntime", precision="int8")


def test_what_loses_texts_is_said() -> None:
    seen = {"num_images": 60, "torch": {"right": 60}, "int8": {"right": 60, "as_torch": 60}}
    lost = {name: {"right": 59, "as_torch": 58} for name in ("fp32", "bf16", "onnxruntime int8")}
    assert exporting.describe(seen | lost) == [
        "of 60 validation texts, torch in fp32 recognizes 60",
        "int8: 60; 60 as torch does",
        "fp32: 59; 58 as torch does: too little, so --engine torch is safer",
        "bf16: 59; 58 as torch does: too little, so it is used only if it is asked for",
        "onnxruntime int8: 59; 58 as torch does: too little, not offered",
    ]


@pytest.mark.parametrize("num_images", [0, 49])
def test_few_images_do_not_judge_int8(tmp_path: Path, num_images: int) -> None:
    run = save_opinionated(tmp_path, SPECS[0])
    measured = exporting.export(run, rows_of(SPECS[0], run, num_images) if num_images else None)
    assert "int8" not in measured
    assert exports.has(run, "fp32")
    assert not exports.has(run, "int8")


def test_an_export_without_images_keeps_what_was_measured(tmp_path: Path) -> None:
    run = save_opinionated(tmp_path, SPECS[0])
    fp32 = choice.export(run)
    seen = {"num_images": 60, "torch": {"right": 60}, "int8": {"right": 60}}
    exports.save(run, {"fp32": fp32, "int8": to_int8(fp32, pictures(SPECS[0], 4))}, seen)
    assert exporting.export(run, None) == {}
    assert exports.has(run, "int8")
    assert exports.measured(run) == seen
