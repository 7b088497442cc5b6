"""python jobs/infer.py --images URI --run URI --out URI: reads what is new in a bucket into a Parquet table."""

import subprocess
import sys
import time
from pathlib import Path

from captcha_ray import console
from captcha_ray.inference.config import InferConfig
from captcha_ray.inference.job import transcribe
from captcha_ray.storage import filesystem


def main() -> None:
    started = time.monotonic()
    config = console.parse(InferConfig)
    if config == InferConfig() and filesystem.is_empty(config.run):
        flags = ["--recipe", "demo-text5", "--shards", "demo/shards/text5", "--run", config.run]
        train = [sys.executable, str(Path(__file__).with_name("train.py")), *flags]
        if status := subprocess.run(train, check=False).returncode:
            raise SystemExit(status)
    console.say(transcribe(config, started).describe())


if __name__ == "__main__":
    console.run(main)
