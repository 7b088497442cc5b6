"""Bytes behind a URI: on a disk or in a bucket."""
