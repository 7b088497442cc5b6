"""Fixtures of trainings."""

from collections.abc import Iterator

import pytest
import torch

from captcha_ray.training import schedule


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums of floats depend on how many threads share them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def plateau(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the loss is, the network counts as not reading, and as stuck once 16 steps have shown it."""
    monkeypatch.setattr(schedule, "RECOGNIZING_LOSS", -1.0)
    monkeypatch.setattr(schedule, "EXTEND_BELOW", 2.0)
    monkeypatch.setattr(schedule, "EXTEND_GAIN", 2.0)
    monkeypatch.setattr(schedule, "GOOD_ENOUGH", 2.0)
    monkeypatch.setattr(schedule, "MIN_PROGRESS", 1.0)
    monkeypatch.setattr(schedule, "PATIENCE_STEPS", 16)
