"""The corpora that jobs without arguments run on."""

from pathlib import Path

import pytest

from captcha_ray.datasets.config import PreprocessConfig
from captcha_ray.runtime import ray_session
from captcha_ray.synthesis import demo
from captcha_ray.synthesis.config import SynthesizeConfig


def test_jobs_without_arguments_make_the_corpus_and_shards_of_the_demo() -> None:
    """Else each would find what the other has made finished, with other settings."""
    assert SynthesizeConfig() == demo.CORPORA[0]
    assert PreprocessConfig() == demo.SHARDS[0]


def test_a_demo_corpus_that_was_begun_is_finished_and_one_of_somebody_else_left(
    ray_cluster: ray_session.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SynthesizeConfig(num_images=12, out=str(tmp_path / "drawn"))
    monkeypatch.setattr(demo, "CORPORA", (config,))
    demo.ensure_corpus(config.out)
    whole = {path: path.read_bytes() for path in (tmp_path / "drawn").rglob("*.png")}
    for path in sorted((tmp_path / "drawn").rglob("*.png"))[:5]:
        path.unlink()
    demo.ensure_corpus(config.out)
    assert {path: path.read_bytes() for path in (tmp_path / "drawn").rglob("*.png")} == whole
    (tmp_path / "drawn" / ".synthesis.json").unlink()
    first = min((tmp_path / "drawn").rglob("*.png"))
    first.unlink()
    demo.ensure_corpus(config.out)
    assert not first.exists()
