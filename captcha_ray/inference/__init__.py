"""Recognize what is new in a bucket every night and append it to a Parquet table."""
