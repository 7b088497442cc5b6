"""Recognize text in small images, in bulk: shards, training, search and nightly inference on Ray, with PyTorch.

`Recognizer` predicts the text of images. `preprocess`, `train`, `evaluate`, `export`, `tune` and `infer` do what the
jobs of the same names do, each for a config; `load_recipe` gives one for `train`.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captcha_ray.api import evaluate, export, infer, load_recipe, preprocess, synthesize, train, tune
    from captcha_ray.recognizer import Prediction, Recognizer

# Jobs connect to Ray themselves. Otherwise whatever still runs in a thread after a job's Ray has ended would start
# another, or join a stranger's. Ray reads this when it is imported.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

__all__ = [
    "Prediction",
    "Recognizer",
    "evaluate",
    "export",
    "infer",
    "load_recipe",
    "preprocess",
    "synthesize",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for, and torch or Ray with it, when it is first asked for."""
    if name in __all__:
        module = "recognizer" if name in ("Prediction", "Recognizer") else "api"
        return getattr(importlib.import_module(f"captcha_ray.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
