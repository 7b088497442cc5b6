"""Images a second of bulk inference against plain loops that read, decode and recognize the same files.

The network is the default one. The plain loop is two tuned processes of one thread each (allocator that keeps its
memory, batch 256, the job's engine, precision and decoders) that write nothing. The job also lists, plans, stages,
commits and starts Ray; both are timed as whole processes, with their start. With `--source s3` both read from rclone's
S3 server on loopback, the loop through obstore. On a part of the files, two more loops: the same with torch and Pillow
(`--old-images`), and where TensorFlow is installed (name its Python with --keras-python) one of Keras 3 that decodes
with Pillow and calls `predict` at batch 32.
"""

import concurrent.futures
import dataclasses
import functools
import io
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tyro
from PIL import Image

from captcha_ray.runs.environment import provenance
from tests.support.s3_server import serve_s3

ROOT = Path(__file__).parent.parent
NUM_PROCESSES = 2
BATCH_SIZE = 256
NUM_FETCH_THREADS = 32


@dataclasses.dataclass(frozen=True)
class Options:
    """Say what to measure."""

    num_images: int = 300_000
    """Files of 200x50 pixels: copies of --num-drawn different ones."""
    num_drawn: int = 5000
    """Synthetic images to copy."""
    rounds: int = 1
    """Times the job and the loop are run in turn."""
    source: Literal["disk", "s3"] = "disk"
    """Names the store that both read from."""
    scratch: str = ""
    """Folder to keep corpus and network in between calls. Default: a temporary one."""
    old_images: int = 20_000
    """Files that the loop of torch and Pillow reads; 0 for none."""
    keras_python: str = ""
    """A Python that has TensorFlow and Pillow, for the Keras loop. Default: none is run."""
    keras_images: int = 20_000
    """Files the Keras loop reads."""


def decode_by_pillow(data: bytes, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Decode as the plainest program does: gray, resized."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("L").resize((shape[1], shape[0])))[..., None]


def read_all(paths: list[str], run: str, *, old: bool = False) -> int:
    """Reads, decodes and recognizes files or objects, one batch after another; returns how many characters that is.

    old: with torch and Pillow.
    """
    import obstore  # noqa: PLC0415 -- in the process that needs it
    from obstore.store import from_url  # noqa: PLC0415

    from captcha_ray import Recognizer  # noqa: PLC0415
    from captcha_ray.images import decoder  # noqa: PLC0415

    recognizer = Recognizer.load(run, engine="torch" if old else "auto", num_threads=1)
    image = recognizer.spec.image
    pool = concurrent.futures.ThreadPoolExecutor(NUM_FETCH_THREADS)
    remote = paths[0].startswith("s3://")
    store: Any = from_url("s3://images", client_options={"allow_http": True}) if remote else None

    def fetch_one(uri: str) -> bytes:
        return bytes(obstore.get(store, uri.removeprefix("s3://images/")).bytes())

    def fetch(batch: list[str]) -> list[Any]:
        return [pool.submit(fetch_one, uri) for uri in batch]

    batches = [paths[start : start + BATCH_SIZE] for start in range(0, len(paths), BATCH_SIZE)]
    ahead = fetch(batches[0]) if remote else []
    read = 0
    for batch, following in zip(batches, [*batches[1:], []], strict=True):
        if remote:
            now, ahead = ahead, fetch(following)
            data = [future.result() for future in now]
        else:
            data = [Path(path).read_bytes() for path in batch]
        decode = decode_by_pillow if old else lambda each, _: np.asarray(decoder.decode(each, image))
        pixels = np.stack([decode(each, image.shape) for each in data])
        read += sum(len(one.text) for one in recognizer.predictions(recognizer.log_probabilities(pixels)))
    return read


KERAS = """
import io, json, os, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy, tensorflow, PIL
from PIL import Image
L = keras.layers
x = i = keras.Input((50, 200, 1))
for k, c in enumerate((16, 32, 32)):
    x = L.Conv2D(c, 3, padding="same", activation="relu")(x)
    x = L.MaxPooling2D(2, padding="same")(x)
x = L.Flatten()(L.BatchNormalization()(x))
heads = [L.Dense(36, activation="softmax")(L.Dropout(.5)(L.Dense(64, activation="relu")(x))) for _ in range(5)]
model = keras.Model(i, heads)
paths = json.load(sys.stdin)
def batch(paths):
    return numpy.stack([numpy.asarray(Image.open(p).convert("L"), numpy.float32)[..., None] / 255 for p in paths])
model.predict(batch(paths[:32]), batch_size=32, verbose=0)
started = time.perf_counter()
for k in range(0, len(paths), 1024):
    model.predict(batch(paths[k:k + 1024]), batch_size=32, verbose=0)
print(json.dumps([time.perf_counter() - started, keras.__version__, tensorflow.__version__]))
"""


def run_keras(python: str, paths: list[str]) -> tuple[float, str, str]:
    """(seconds of the loop alone, versions of Keras and TensorFlow)."""
    done = subprocess.run([python, "-c", KERAS], input=json.dumps(paths), capture_output=True, text=True, check=True)
    seconds, keras, tensorflow = json.loads(done.stdout.splitlines()[-1])
    return seconds, keras, tensorflow


def run_loop(paths: list[str], run: str, *, old: bool = False) -> float:
    """Seconds of the plain loop with the start of its processes. old: with torch and Pillow."""
    tuned = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32), "OMP_NUM_THREADS": "1"}
    os.environ |= tuned
    shares = [paths[k::NUM_PROCESSES] for k in range(NUM_PROCESSES)]
    started = time.perf_counter()
    with concurrent.futures.ProcessPoolExecutor(NUM_PROCESSES, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(functools.partial(read_all, old=old), shares, [run] * NUM_PROCESSES))
    seconds = time.perf_counter() - started
    for name in tuned:
        del os.environ[name]
    return seconds


def run_job(images: str, run: str, out: str) -> tuple[float, str]:
    """Seconds of the job as a whole process, and its last line."""
    command = [sys.executable, str(ROOT / "jobs" / "infer.py"), "--images", images, "--run", run, "--out", out]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - started, done.stdout.splitlines()[-1]


def stages(out: str) -> dict[str, float]:
    """Return the rates of the stages that the manifest of the job's last run states."""
    manifest = max(Path(out).rglob("_manifest.json"))
    rates: dict[str, float] = json.loads(manifest.read_text())["images_per_second"]
    return rates


def prepare(folder: Path, options: Options) -> tuple[Path, Path]:
    """(bucket of copied images, run); made where they are not there yet."""
    drawn, bucket, run = folder / "drawn", folder / str(options.num_images) / "images", folder / "run"
    job = [sys.executable, str(ROOT / "jobs")]
    if not (run / "_SUCCESS").exists():
        for name, flags in (
            ("synthesize", ["--scheme", "text5", "--num-images", options.num_drawn, "--out", drawn]),
            ("preprocess", ["--corpus", drawn, "--labels", "filename", "--label-pattern", "^([^-]+)",
                            "--height", 50, "--width", 200, "--out", folder / "shards"]),
            ("train", ["--recipe", "auto", "--shards", folder / "shards", "--run", run, "--epochs", 1]),
        ):  # fmt: skip
            subprocess.run([job[0], f"{job[1]}/{name}.py", *map(str, flags)], check=True, stdout=subprocess.DEVNULL)
    sources = sorted(drawn.glob("*.png"))
    for number in range(options.num_images):
        target = bucket / f"{number // 10_000:03d}" / f"{number:07d}.png"
        if number % 10_000 == 0:
            target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copyfile(sources[number % len(sources)], target)
    return bucket, run


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.scratch or temporary).absolute()
        bucket, run = prepare(folder, options)
        names = sorted(str(path.relative_to(bucket)) for path in bucket.rglob("*.png"))
        for line in provenance(n=len(names), rounds=options.rounds):
            print(line)
        rates, loops = [], []
        with serve_s3(bucket.parent) as environment:
            if options.source == "s3":
                os.environ |= environment
            root = "s3://images" if options.source == "s3" else str(bucket)
            paths = [f"{root}/{name}" for name in names]
            for number in range(options.rounds):
                out = str(Path(temporary) / f"out{number}")
                if number % 2:  # whoever is second finds the files in the cache
                    job, said = run_job(root, str(run), out)
                    loop = run_loop(paths, str(run))
                else:
                    loop = run_loop(paths, str(run))
                    job, said = run_job(root, str(run), out)
                rates.append(len(paths) / job)
                loops.append(len(paths) / loop)
                print(said)
                pair = (
                    f"job {rates[-1]:,.0f} images/s ({job:.1f} s)   plain loop {loops[-1]:,.0f} images/s ({loop:.1f} s)"
                )
                print(f"{pair}   ratio {rates[-1] / loops[-1]:.3f}")
                print(f"images over the seconds of all workers, by stage: {stages(out)}", flush=True)
        ratios = [rate / loop for rate, loop in zip(rates, loops, strict=True)]
        print(f"job / plain loop, median: {statistics.median(ratios):.3f}")
        if options.old_images:
            few = paths[: options.old_images]
            loop, old = run_loop(few, str(run)), run_loop(few, str(run), old=True)
            print(f"plain loop against that of torch and Pillow, {len(few):,} images: {old / loop:.2f}")
        if options.keras_python:
            few = [f"{bucket}/{name}" for name in names[: options.keras_images]]
            seconds, keras, tensorflow = run_keras(options.keras_python, few)
            rate = len(few) / seconds
            print(
                f"Keras {keras} on TensorFlow {tensorflow}: {rate:,.0f} images/s over {len(few):,}, without its start"
            )
            print(f"job / Keras loop: {statistics.median(rates) / rate:.2f}")


if __name__ == "__main__":
    main()
