"""Checks the GPU benchmark: it needs torch and numpy only, and notices a network that bf16 spoils."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from captcha_ray.recipes.catalog import get

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
ABSENT = (
    *("ray", "obstore", "tensorboardX", "pyarrow", "PIL", "safetensors", "tyro", "rich", "matplotlib", "torchvision"),
    *("s3fs", "captcha", "yaml"),
)


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_gpu", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a process without the packages that a bare GPU machine lacks."""
    program = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({ABSENT!r}))\n"
        f"sys.argv = {['gpu.py', *arguments]!r}\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)


def test_all_networks_are_timed_and_compared_with_torch_and_numpy_alone() -> None:
    done = run("--seconds-per-case", "0.05")
    assert done.returncode == 0, done.stderr
    assert re.match(
        r"command +python .*gpu\.py --seconds-per-case 0\.05\ncommit +\S+\ndevice +\S.+\ntorch +\d", done.stdout
    )
    for network in ("column_cnn", "glyph_vgg", "multi_head_cnn"):
        for task, batch_size in (("train", 32), ("train", 256), ("read", 256)):
            line = re.search(
                rf"^{network} +{task} +(?:fp32|tf32) +{batch_size} +([\d,]+) +([\d,]+)$", done.stdout, re.M
            )
            assert line, (network, task, batch_size)
            assert int(line[1].replace(",", "")) > 0
            assert int(line[2].replace(",", "")) % batch_size == 0
        assert re.search(rf"^{network} +bf16 +probabilities differ by at most 0\.0", done.stdout, re.M)


def test_help_states_units_and_defaults(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        gpu.main(["--help"])
    assert caught.value.code == 0
    described = " ".join(capsys.readouterr().out.split())
    assert "--seconds-per-case SECONDS" in described
    assert "seconds, after warming up (default: 2.0)" in described


@pytest.mark.parametrize("value", ["0", "-1", "nan", "x"])
def test_a_time_that_is_none_is_refused(gpu: ModuleType, value: str) -> None:
    with pytest.raises(SystemExit) as caught:
        gpu.main(["--seconds-per-case", value])
    assert caught.value.code == 2


def test_a_probability_off_by_more_than_the_tolerance_is_no_agreement(gpu: ModuleType) -> None:
    expected = torch.tensor([[[0.7, 0.3]], [[0.52, 0.48]]])
    near = expected + torch.tensor([[[0.04, -0.04]], [[-0.04, 0.04]]])
    far = expected + torch.tensor([[[0.06, -0.06]], [[0.0, 0.0]]])
    agreement = gpu.Agreement.of(near, expected)
    assert agreement.ok
    assert agreement.max_difference == pytest.approx(0.04)
    assert agreement.same_characters == 0.5
    assert not gpu.Agreement.of(far, expected).ok
    assert not gpu.Agreement.of(far * float("nan"), expected).ok


def test_disagreement_ends_with_status_one_and_a_sentence(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Set a negative tolerance, and skip the timing."""

    def nothing(*_: Any) -> list[Any]:
        return []

    monkeypatch.setattr(gpu, "TOLERANCE", -1.0)
    monkeypatch.setattr(gpu, "CHECK_STEPS", 1)
    monkeypatch.setattr(gpu, "measure", nothing)
    assert gpu.main([]) == 1
    assert re.search(
        r"more than -1.0: column_cnn in \S+ by .*glyph_vgg in \S+ by .*multi_head_cnn", capsys.readouterr().err
    )


@pytest.mark.parametrize("recipe", ["wmail", "isfahan"])
def test_the_images_are_of_the_recipes_size_and_repeatable(gpu: ModuleType, recipe: str) -> None:
    config = get(recipe)
    batch = gpu.glyphs(config, 5, seed=1)
    assert batch.images.shape == (5, config.height, config.width, 1)
    assert batch.images.dtype == torch.uint8
    assert batch.targets.shape == (5, config.max_length)
    assert torch.equal(batch.images, gpu.glyphs(config, 5, seed=1).images)
    assert not torch.equal(batch.images, gpu.glyphs(config, 5, seed=2).images)
