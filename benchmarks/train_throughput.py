"""Images a second of the training job against a plain in-memory PyTorch loop of the same network, in one run.

Both train MultiHeadCNN on the same synthetic 200x50 images, batch 32, Adam, with the same allocator setting and memory
format, one after the other, `--rounds` times. The plain loop counts nothing and keeps nothing; the job also sums its
metrics, validates and writes a checkpoint every epoch, of which only the training part counts against the loop. What
the job takes beyond its epochs (interpreter, Ray, reading shards, evaluation, report) is stated too.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro

from captcha_ray.images.spec import ImageSpec
from captcha_ray.models.allocator import keep_freed_memory
from captcha_ray.models.networks import build_model
from captcha_ray.models.spec import ModelSpec
from captcha_ray.recipes.catalog import isfahan
from captcha_ray.runs.environment import provenance

JOBS = Path(__file__).parent.parent / "jobs"
BATCH_SIZE = 32


@dataclasses.dataclass(frozen=True)
class Options:
    """Say what to measure."""

    num_images: int = 2500
    """Synthetic images; four fifths of them are trained on."""
    epochs: int = 4
    """Epochs per round; the first is a warm-up and does not count."""
    rounds: int = 3
    """Times the job and the loop are run in turn."""


def plain_loop(num_images: int, epochs: int) -> list[float]:
    """Images a second of each epoch."""
    keep_freed_memory()
    spec = ModelSpec(
        network="multi_head_cnn", image=ImageSpec(height=50, width=200), charset="2345678bcdefgmnpwxy", max_length=5
    )
    model = build_model(spec).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    images = torch.randint(0, 256, (num_images, 50, 200, 1), dtype=torch.uint8)
    targets = torch.randint(0, len(spec.charset), (num_images, 5))
    rates = []
    for _ in range(epochs):
        order = torch.randperm(num_images)
        started = time.perf_counter()
        for start in range(0, num_images, BATCH_SIZE):
            rows = order[start : start + BATCH_SIZE]
            batch = images[rows].permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last).div_(255)
            logits = model(batch)
            loss = F.cross_entropy(logits.transpose(1, 2), targets[rows], reduction="none").sum(1).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        rates.append(num_images / (time.perf_counter() - started))
    return rates


def run_job(folder: Path, epochs: int, name: str) -> tuple[list[dict[str, float]], float, float]:
    """(lines of metrics.jsonl, wall seconds of the whole job, those of them for the test split and the report)."""
    command = [sys.executable, str(JOBS / "train.py"), "--recipe", isfahan().recipe, "--shards", "shards",
               "--run", name, "--epochs", str(epochs), "--precision", "fp32"]  # fmt: skip
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    last_epoch, report = ((folder / name / file).stat().st_mtime for file in ("metrics.jsonl", "report.html"))
    epochs_done = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return epochs_done, seconds, report - last_epoch


def make_shards(folder: Path, num_images: int) -> int:
    """Images in the training split of fresh synthetic shards."""
    draw = ["--scheme", "text5", "--num-images", str(num_images), "--out", "corpus"]
    cut = ["--corpus", "corpus", "--labels", "filename", "--label-pattern", "^([^-]+)", "--height", "50",
           "--width", "200", "--out", "shards"]  # fmt: skip
    for name, arguments in (("synthesize", draw), ("preprocess", cut)):
        command = [sys.executable, str(JOBS / f"{name}.py"), *arguments]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return int(json.loads((folder / "shards/manifest.json").read_text())["num_images"]["train"])


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    ratios, waits, beyond, reports, rates = [], [], [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_train = make_shards(folder, options.num_images)
        for round_number in range(options.rounds):
            epochs, seconds, report_seconds = run_job(folder, options.epochs, f"run{round_number}")
            plain = [sys.executable, __file__, "--plain", str(num_train), str(options.epochs)]
            output = subprocess.run(plain, check=True, capture_output=True, text=True).stdout
            loop = statistics.median(json.loads(output)[1:])
            job = statistics.median(epoch["images_per_second"] for epoch in epochs[1:])
            ratios.append(job / loop)
            rates.append((job, loop))
            waits.append(statistics.median(epoch["data_wait_fraction"] for epoch in epochs[1:]))
            beyond.append(seconds - report_seconds - sum(epoch["seconds"] for epoch in epochs))
            reports.append(report_seconds)
    for line in provenance(n=num_train, epochs=options.epochs, rounds=options.rounds):
        print(line)
    for (job, loop), ratio in zip(rates, ratios, strict=True):
        print(f"job {job:8,.0f} images/s   plain loop {loop:8,.0f} images/s   ratio {ratio:.3f}")
    print(f"ratio, median: {statistics.median(ratios):.3f}")
    print(f"data wait, median: {statistics.median(waits):.2%} of training time")
    print(f"start-up and shut-down beyond the epochs, median: {statistics.median(beyond):.1f} s")
    print(f"test split and report, median: {statistics.median(reports):.1f} s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plain"]:
        os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
        print(json.dumps(plain_loop(int(sys.argv[2]), int(sys.argv[3]))))
    else:
        main()
