"""Reads text in small images, in bulk: shards, training, search and nightly inference on Ray; arithmetic in PyTorch."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captcha_ray.recognizer import Prediction, Recognizer

# Jobs connect to Ray themselves. Otherwise whatever still runs in a thread after a job's Ray has ended would start
# another, or join a stranger's. Ray reads this when it is imported.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

__all__ = ["Prediction", "Recognizer"]


def __getattr__(name: str) -> Any:
    """Imports the recognizer, and with it torch, when it is first asked for."""
    if name in __all__:
        from captcha_ray import recognizer  # noqa: PLC0415 -- importing torch takes seconds

        return getattr(recognizer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
