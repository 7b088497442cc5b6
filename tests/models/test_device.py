"""A worker computes where its job was told to, whatever GPUs a node shows it."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import ray.train
import ray.train.torch
import torch
from torch import nn

from captcha_ray import recognizer
from captcha_ray.datasets.shards import Shards
from captcha_ray.errors import InputError
from captcha_ray.evaluation import evaluate
from captcha_ray.inference import block_reader
from captcha_ray.inference.config import InferConfig
from captcha_ray.inference.job import _Job
from captcha_ray.inference.source import Source
from captcha_ray.models import fingerprint
from captcha_ray.models.allocator import keep_freed_memory
from captcha_ray.models.device import Arithmetic, has_fast_bf16
from captcha_ray.models.networks import Network
from captcha_ray.runtime import capacity, ray_session
from captcha_ray.training import pseudo_labels
from tests.factories import GLYPHS, draw_glyphs, glyph_texts, save_network
from tests.support import readers
from tests.support.block_tasks import block_task
from tests.support.bright_rows import CPU, FP32


@pytest.fixture
def requested(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A process that sees a GPU, and who asked for it; using it fails the test."""
    found: list[str] = []

    def is_available() -> bool:
        found.append("is there one?")
        return True

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("CUDA is opened"))
    return found


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(save_network(tmp_path / "run", GLYPHS))


def test_nobody_asks_whether_there_is_a_gpu(
    requested: list[str], run: str, glyph_shards: Shards, tmp_path: Path
) -> None:
    recognizer.Recognizer.load(run).predict([np.zeros((16, 24), np.uint8)])
    rows = pa.concat_tables(glyph_shards.read("val").iter_batches(batch_size=None, batch_format="pyarrow"))
    evaluate.RecognizeImages(run)(rows)
    evaluate.calibrate(rows, run)
    folder = draw_glyphs(tmp_path / "more", glyph_texts(3, 2))
    uris = [str(path) for path in folder.iterdir()]
    pseudo_labels.RecognizeFiles(run)(pa.table({"uri": uris, "text": [""] * 3}))
    _, model_id = fingerprint.load_spec_and_fingerprint(run)
    task = block_task(run, tmp_path / "attempt", model_id=model_id)
    block_reader.BlockReader(task, {"seconds": {}})
    assert requested == []


def test_the_device_of_a_job_reaches_whoever_computes(
    run: str, glyph_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []

    def load(uri: str, device: str = "cpu", *_: Any, **__: Any) -> Any:
        devices.append(device)
        raise InterruptedError

    monkeypatch.setattr(recognizer.Recognizer, "load", load)
    monkeypatch.setattr(capacity, "wait_for_capacity", lambda *_, **__: None)
    rows = glyph_shards.labeled("val")
    for use_gpu in (False, True):
        with pytest.raises(InterruptedError):
            evaluate.evaluate(rows, run, use_gpu=use_gpu)
        config = InferConfig(images=str(tmp_path), run=run, out=str(tmp_path / "out"), use_gpu=use_gpu)
        job = _Job(config, Source((str(tmp_path),)), "", None, tmp_path, 0.0, "")  # type: ignore[arg-type]
        with pytest.raises(InterruptedError):
            block_reader.BlockReader(job._task, {})
        with pytest.raises(InterruptedError):
            pseudo_labels.RecognizeFiles(run, capacity.device_of(use_gpu))
    assert devices == ["cpu"] * 3 + ["cuda"] * 3


@pytest.mark.parametrize("use_gpu", [False, True])
def test_actors_are_told_the_device_and_ask_ray_for_it(
    use_gpu: bool, run: str, glyph_shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Any, Any]] = []
    threads: list[int] = []

    def map_batches(self: Any, function: Any, *, fn_constructor_args: tuple[Any, ...], **named: Any) -> Any:
        told.append((fn_constructor_args[1], named["num_gpus"]))
        threads.append(inspect.signature(function).bind(*fn_constructor_args).arguments.get("num_threads", 0))
        raise InterruptedError

    rows = glyph_shards.labeled("val")
    monkeypatch.setattr(ray.data.Dataset, "map_batches", map_batches)
    with pytest.raises(InterruptedError):
        evaluate.evaluate(rows, run, num_workers=1, use_gpu=use_gpu)
    with pytest.raises(InterruptedError):
        pseudo_labels._read(["a.png"], glyph_shards, run, use_gpu)
    assert told == [("cuda", 1) if use_gpu else ("cpu", None)] * 2
    assert threads[0] == 1, "an actor reserves one core"


def test_ray_hides_gpus_from_tasks_and_actors_that_asked_for_none(ray_cluster: ray_session.Cluster) -> None:
    assert ray.get(ray.remote(readers.visible_gpus).remote()) == ""
    seen = ray.data.range(1).map_batches(readers.SeeGpus, compute=ray.data.ActorPoolStrategy(size=1)).take_all()
    assert seen == [{"visible": ""}]


def test_workers_of_a_training_on_cpus_see_no_gpu(ray_cluster: ray_session.Cluster, tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    shown.mkdir()
    trainer = ray.train.torch.TorchTrainer(
        readers.see_gpus,
        train_loop_config={"folder": str(shown)},
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.9}),
        run_config=ray.train.RunConfig(storage_path=str(tmp_path / "train")),
    )
    trainer.fit()
    assert [path.read_text() for path in sorted(shown.iterdir())] == [" cpu", " cpu"]


def test_arithmetic_is_as_precise_as_asked_and_auto_follows_the_processor() -> None:
    assert not Arithmetic.choose(CPU, "fp32").bf16
    assert Arithmetic.choose(CPU, "bf16").bf16
    assert Arithmetic.choose(CPU, "auto").bf16 == has_fast_bf16(CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what is said where there is no GPU")
def test_bf16_on_a_gpu_that_has_none_is_refused() -> None:
    with pytest.raises(InputError, match="needs a GPU that computes in bf16; use fp32"):
        Arithmetic.choose(torch.device("cuda"), "bf16")


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_products_are_computed_in_the_chosen_precision_and_losses_in_fp32(bf16: bool, dtype: torch.dtype) -> None:
    with Arithmetic(CPU, bf16).autocast():
        logits = nn.Linear(4, 6)(torch.ones(2, 4)).reshape(2, 2, 3)
    assert logits.dtype == dtype
    assert Network(3).losses(logits, torch.zeros((2, 2), dtype=torch.int64)).dtype == torch.float32


def test_pixels_become_channels_first_from_zero_to_one() -> None:
    pixels = torch.tensor([[[[0, 51, 255]], [[102, 0, 0]]]], dtype=torch.uint8)  # (1, 2, 1, 3)
    made = FP32.to_input(pixels)
    assert made.shape == (1, 3, 2, 1)
    torch.testing.assert_close(made[0, :, :, 0], torch.tensor([[0, 0.4], [0.2, 0], [1, 0]]))
    assert made.is_contiguous(memory_format=torch.channels_last)


def test_keeping_freed_memory_is_harmless_however_often() -> None:
    keep_freed_memory()
    keep_freed_memory()
    assert torch.ones(1 << 22).sum() == 1 << 22
