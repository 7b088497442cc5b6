"""python jobs/infer.py --images URI --run URI --out URI: reads what is new in a bucket into a Parquet table."""

import subprocess
import sys
import time
from pathlib import Path

from captcha_ray import console, inference, storage
from captcha_ray.config import InferConfig


def main() -> None:
    started = time.monotonic()
    config = console.parse(InferConfig)
    if config == InferConfig() and storage.is_empty(config.run):
        flags = ["--recipe", "demo-text5", "--shards", "demo/shards/text5", "--run", config.run]
        train = [sys.executable, str(Path(__file__).with_name("train.py")), *flags]
        if status := subprocess.run(train, check=False).returncode:
            raise SystemExit(status)
    console.say(inference.transcribe(config, started).describe())


if __name__ == "__main__":
    console.run(main)
