"""Recognizes what is new in a bucket every night and appends it to a Parquet table."""
