"""Offers what all tests share: one Ray for the session, small corpora of real image files, and names of cases."""

from collections.abc import Iterator
from typing import Any

import pytest

from captcha_ray.datasets import preprocess
from captcha_ray.datasets.shards import Shards, open_shards
from captcha_ray.runtime import ray_session
from tests.factories import config_for, draw_glyphs, glyph_texts
from tests.support.ray_nodes import Nodes
from tests.support.s3_server import create_bucket, serve_moto, serve_s3


def pytest_make_parametrize_id(val: Any, argname: str) -> str | None:
    """Name files' bytes by their argument: two processes that compress or sign them anew collect the same tests."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[ray_session.Cluster]:
    """An embedded Ray of two CPUs that this session starts and stops."""
    with ray_session.connect() as resources:
        yield resources


@pytest.fixture(scope="session")
def glyph_shards(ray_cluster: ray_session.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Finished shards of 203 images of 24x16 pixels with two characters each."""
    folder = tmp_path_factory.mktemp("glyphs")
    draw_glyphs(folder / "corpus", glyph_texts(203, 2))
    config = config_for(folder, splits=(0.6, 0.2, 0.2))
    preprocess.preprocess(config)
    return open_shards(config.out)


@pytest.fixture(scope="module")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of a client of rclone's S3 server, with an empty bucket `bucket`."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "bucket").mkdir()
    with serve_s3(folder) as environment:
        yield environment


@pytest.fixture(scope="module")
def moto_server() -> Iterator[dict[str, str]]:
    """Environment of a client of moto's S3 server, with an empty bucket `bucket`."""
    with serve_moto() as environment:
        create_bucket(environment, "bucket")
        yield environment


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head that takes no work, and a node of two CPUs."""
    nodes = Nodes(tmp_path_factory.mktemp("nodes"))
    with nodes.head(0), nodes.add(2):
        nodes.await_alive(2)
        yield nodes
