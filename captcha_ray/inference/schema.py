"""Columns of a listing and of the predictions table."""

import pyarrow as pa

TIMESTAMP = pa.timestamp("us", "UTC")


LISTING_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("last_modified", TIMESTAMP),
    ]
)
"""One row per object to read. etag: changes with the object's content; empty where a listing does not tell.

size: bytes."""


PREDICTION_SCHEMA = pa.schema(
    [
        *LISTING_SCHEMA,
        pa.field("text", pa.string()),
        pa.field("confidence", pa.float32()),
        pa.field("char_confidence", pa.list_(pa.float32())),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("model_id", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("predicted_at", TIMESTAMP, nullable=False),
    ]
)
"""One row per object, read or not.

uri, etag, size, last_modified: the object as it was listed. text: what was read; null where nothing was. confidence:
the least certain character's probability, 0 to 1. char_confidence: each character's. status: `ok`,
`uncertain` (read, with less confidence than the job was asked for) or `error`. error: `<Class>: <sentence>`, null where
there is a text. model_id: fingerprint of weights, charset and preprocessing. run_id: the
run that committed the row. predicted_at: when it was read, UTC."""
