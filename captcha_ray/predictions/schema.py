"""Define the columns of a listing and of the table of predictions."""

import pyarrow as pa

FILE = "predictions.parquet"
"""Name of the file of a run's rows in its folder."""

TIMESTAMP = pa.timestamp("us", "UTC")


LISTING_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("last_modified", TIMESTAMP),
    ]
)
"""A row per listed object. etag: changes with the content; empty if a listing has none. size: bytes."""


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
"""A row per object, recognized or not.

uri, etag, size, last_modified: the object as listed. text: prediction, null if there is none. confidence:
probability of the text, 0 to 1. char_confidence: of each character. status: `ok`, `uncertain` (less confidence than
the job requires) or `error`. error: `<Class>: <sentence>`, null if there is a text. model_id: fingerprint of
weights, charset and preprocessing. run_id: the run that committed the row. predicted_at: UTC.
"""
