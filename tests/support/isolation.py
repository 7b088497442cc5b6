"""Keeps the environment of whoever runs the tests out of them: settings of the tools that tests and jobs start.

Locale, time zone and umask stay as they are, since jobs must work with any.
"""

import atexit
import os
import shutil
import tempfile

PREFIXES = (
    "AWS_", "BOTO_", "CAPTCHA_RAY_", "GIT_", "GOOGLE_", "MKL_", "MPL", "OMP_", "PIP_", "PYTHON", "RAY_", "RCLONE_",
    "TORCH", "TRAIN_", "TUNE_", "XDG_",
)  # fmt: skip
"""Of variables that configure what tests start."""

NAMES = (
    "ALL_PROXY", "CLICOLOR_FORCE", "COLUMNS", "CUDA_VISIBLE_DEVICES", "FORCE_COLOR", "HTTPS_PROXY", "HTTP_PROXY",
    "LINES", "NO_COLOR", "NO_PROXY", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE",
)  # fmt: skip
"""Others that do, whatever their case."""

KEPT = ("CAPTCHA_RAY_DATA", "CAPTCHA_RAY_KILL_SEED", "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED", "PYTHONUNBUFFERED")
"""Name what this suite itself is told by, and what changes no result."""


def is_foreign(name: str) -> bool:
    """Return whether a variable is somebody's own setting of a tool."""
    return name not in KEPT and (name.upper().startswith(PREFIXES) or name.upper() in NAMES)


def isolate() -> None:
    """Leaves this process, and those that it starts, a home folder of their own and no foreign setting."""
    for name in filter(is_foreign, list(os.environ)):
        del os.environ[name]
    home = tempfile.mkdtemp(prefix="captcha_ray-home-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ |= {
        "HOME": home,
        "AWS_EC2_METADATA_DISABLED": "true",  # else clients without credentials ask the network for some
        "GIT_CONFIG_NOSYSTEM": "1",
        "PIP_CONFIG_FILE": os.devnull,  # of the machine, too
    }
