"""Checks the page on sizes against the figures of `benchmarks/sizing.py`."""

import dataclasses

import pytest

from benchmarks import sizing
from tests.support.manifests import (
    CLUSTER,
)


def test_the_page_on_sizes_has_the_table_that_its_figures_give() -> None:
    page = (CLUSTER / "SIZING.md").read_text()
    assert "\n".join(sizing.table(sizing.Costs())) in page
    costs = sizing.Costs(images_per_core_second=200, efficiency=0.5, night_hours=1)
    costs = dataclasses.replace(costs, recognizing=0.75, images_per_gpu_second=100)
    other = sizing.NightNeeds.of(10**6, costs)
    assert (other.cores, other.gpus, other.cores_beside_gpus) == (3, 3, 1)
    assert (round(other.gets_per_second), other.prefixes) == (280, 1)
    assert other.reading_hours == pytest.approx(1 - 1000 * 0.15 / 8 / 3600 - 10**6 / 79_362 / 3600)
    assert sizing.NightNeeds.of(10**9, sizing.Costs()).reading_hours == pytest.approx(
        8 - 10**9 / 79_362 / 3600
    )  # no listing
    with pytest.raises(ValueError, match="a night of 1 hours is too short to list 1,000,000,000 images"):
        sizing.NightNeeds.of(10**9, costs)
    assert other.price == pytest.approx(10**4 / 3600 * 0.04 + 0.40 + 0.005)
