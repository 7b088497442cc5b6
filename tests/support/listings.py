"""Files, objects and tables to list, and the URIs of what was listed."""

import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from captcha_ray.storage import filesystem

DAYS = [datetime.datetime(2026, 1, day, 12, tzinfo=datetime.UTC) for day in range(1, 5)]


def uris(rows: list[dict[str, Any]]) -> list[str]:
    return [row["uri"] for row in rows]


def fill(base: object, *names: str) -> str:
    for name in names:
        filesystem.write(f"{base}/{name}", name.encode())
    return str(base)


def parquet(**columns: object) -> bytes:
    with pa.BufferOutputStream() as out:
        pq.write_table(pa.table(columns), out)
        return out.getvalue().to_pybytes()
