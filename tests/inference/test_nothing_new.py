"""A night with nothing new is short."""

import subprocess
import sys
import time
from pathlib import Path

from captcha_ray.inference.config import InferConfig
from captcha_ray.inference.job import transcribe
from captcha_ray.runtime import ray_session
from tests.factories import GLYPHS, draw_glyphs, glyph_texts, save_network
from tests.support.processes import environment


def test_a_night_with_nothing_new_imports_neither_ray_nor_torch(
    ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    images, network = draw_glyphs(tmp_path / "images", glyph_texts(3, 2)), save_network(tmp_path / "run", GLYPHS)
    out = str(tmp_path / "table")
    night = InferConfig(images=str(images), run=str(network), out=out)
    transcribe(night, time.monotonic())
    program = (
        "import sys, captcha_ray\nfrom captcha_ray.inference.config import InferConfig\n"
        f"assert captcha_ray.infer(InferConfig(images={night.images!r}, run={night.run!r}, out={out!r})).skipped == 3\n"
        "assert not {'ray', 'torch', 'openvino'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, env=environment())
