"""Read, write, list and lock bytes on a disk or in a bucket."""
