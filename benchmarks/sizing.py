"""Reckon what a night of so many images needs, from measured costs: cores, requests, listing, memory, disk and money.

Prints the table of `cluster/SIZING.md`. Every default is a figure of that page, which says where it comes from.
"""

import dataclasses
import math

import tyro

from captcha_ray.inference.config import InferConfig
from captcha_ray.storage.objectstore import NUM_LIST_THREADS


@dataclasses.dataclass(frozen=True)
class Costs:
    """Measured unless another source is named."""

    images_per_core_second: float = 830
    """Fetched from disk, decoded, recognized by the default network and written by a core a second, with the start."""
    efficiency: float = 0.94
    """Of many cores, one alone being 1: of two, that is; more were not measured."""
    recognizing: float = 0.42
    """Share of a core's time that goes into recognizing; a GPU takes it over."""
    images_per_gpu_second: float = 10_000
    """Images that a GPU recognizes; assumed, none was measured."""
    object_store_megabytes: float = 75
    """Of each node: Ray's least (`OBJECT_STORE_MINIMUM_MEMORY_BYTES`), as it holds block numbers and counts."""
    driver_objects_per_second: float = 79_362
    """The driver lists, plans, hands out and commits so many a second."""
    driver_megabytes: float = 926
    """The driver's memory whatever the number of objects: DuckDB's limit and Ray."""
    driver_bytes_per_object: float = 76
    """Memory of the driver for each object listed, besides: a line through one million and ten."""
    spool_bytes_per_object: float = 60
    """Disk of the driver for the listing and the plan."""
    table_bytes_per_row: float = 64
    """Of the predictions."""
    list_request_seconds: float = 0.15
    """One page of a thousand keys; assumed, of a store in the same region."""
    gets_per_prefix_second: float = 5_500
    """Reads that S3 promises for a prefix (Amazon S3 user guide, "Best practices design patterns")."""
    price_per_core_hour: float = InferConfig.price_per_core_hour
    """Of a machine's core."""
    price_per_million_gets: float = 0.40
    """S3 Standard in us-east-1, US dollars; Amazon's list price."""
    price_per_million_lists: float = 5.0
    """The same."""
    night_hours: float = 8.0
    """Length of the night."""


@dataclasses.dataclass(frozen=True)
class NightNeeds:
    """Needs of a night with so many new images.

    reading_hours: left of the night once all is listed (by an inventory if requests take more than an hour) and
    planned. cores: for recognizing in that time, besides the driver's. gpus, cores_beside_gpus: instead of most.
    """

    num_images: int
    listing_hours: float
    driver_hours: float
    reading_hours: float
    cores: int
    gpus: int
    cores_beside_gpus: int
    object_store_gigabytes: float
    gets_per_second: float
    prefixes: int
    driver_gigabytes: float
    spool_gigabytes: float
    table_gigabytes: float
    price: float

    @classmethod
    def of(cls, num_images: int, costs: Costs) -> "NightNeeds":
        """The needs of a night that lists and reads so many, all of them new. Raises ValueError for one too short."""
        pages = num_images / 1000
        listing_hours = pages * costs.list_request_seconds / NUM_LIST_THREADS / 3600
        driver_hours = num_images / costs.driver_objects_per_second / 3600
        reading_hours = costs.night_hours - driver_hours - (listing_hours if listing_hours <= 1 else 0)
        if reading_hours <= 0:
            raise ValueError(f"a night of {costs.night_hours:g} hours is too short to list {num_images:,} images")
        core_hours = num_images / costs.images_per_core_second / costs.efficiency / 3600
        gpu_hours = num_images / costs.images_per_gpu_second / 3600
        gets = num_images / (reading_hours * 3600)
        money = core_hours * costs.price_per_core_hour
        money += num_images / 1e6 * costs.price_per_million_gets + pages / 1e6 * costs.price_per_million_lists
        return cls(
            num_images=num_images,
            listing_hours=listing_hours,
            driver_hours=driver_hours,
            reading_hours=reading_hours,
            cores=math.ceil(core_hours / reading_hours),
            gpus=math.ceil(gpu_hours / reading_hours),
            cores_beside_gpus=math.ceil(core_hours * (1 - costs.recognizing) / reading_hours),
            object_store_gigabytes=costs.object_store_megabytes / 1e3,
            gets_per_second=gets,
            prefixes=math.ceil(gets / costs.gets_per_prefix_second),
            driver_gigabytes=(costs.driver_megabytes * 1e6 + num_images * costs.driver_bytes_per_object) / 1e9,
            spool_gigabytes=num_images * costs.spool_bytes_per_object / 1e9,
            table_gigabytes=num_images * costs.table_bytes_per_row / 1e9,
            price=money,
        )

    def cells(self) -> list[str]:
        """Of the table's column."""
        return [
            _hours(self.listing_hours),
            _hours(self.driver_hours),
            _hours(self.reading_hours),
            f"{self.cores:,}",
            f"{self.gpus:,} and {self.cores_beside_gpus:,}",
            f"{self.gets_per_second:,.0f} ({self.prefixes} prefix{'es' * (self.prefixes > 1)})",
            f"{self.driver_gigabytes:,.1f} GB",
            f"{self.object_store_gigabytes:,.2f} GB",
            f"{self.spool_gigabytes:,.1f} GB",
            f"{self.table_gigabytes:,.1f} GB",
            f"{self.price:,.2f}",
        ]


ROWS = (
    "listing by requests",
    "the driver's own work",
    "left for reading; by inventory where listing takes over an hour",
    "cores for reading",
    "or GPUs, and cores beside them",
    "GET requests a second",
    "memory of the driver",
    "memory of the object store, each node",
    "disk of the driver",
    "predictions",
    "price, US dollars",
)
SIZES = (10**6, 10**8, 10**9)


def _hours(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min"


def table(costs: Costs) -> list[str]:
    """Lines of Markdown: a column for each of `SIZES`."""
    columns = [NightNeeds.of(size, costs).cells() for size in SIZES]
    head = ["new images in a night", *(f"{size:,}" for size in SIZES)]
    rows = [head, ["---"] * len(head), *([name, *cells] for name, *cells in zip(ROWS, *columns, strict=True))]
    return [f"| {' | '.join(row)} |" for row in rows]


def main() -> None:
    for line in table(tyro.cli(Costs, description=__doc__)):
        print(line)


if __name__ == "__main__":
    main()
