"""Which module may import which, read from the source; a new module has to be given its place here."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "captcha_ray"
JOBS = sorted((ROOT / "jobs").glob("*.py"))

LAYERS = {
    "config": 0,
    "recipes": 0,
    "__init__": 1,
    "charset": 1,
    "schema": 1,
    "images": 1,
    "labels": 1,
    "objectstore": 1,
    "storage": 1,
    "listing": 1,
    "lease": 1,
    "predictions": 1,
    "work": 1,
    "watch": 1,
    "decoding": 1,
    "synth": 1,
    "metrics": 1,
    "calibration": 1,
    "learning_curve": 1,
    "rules": 1,
    "schedule": 1,
    "diagnosis": 1,
    "runs": 1,
    "page": 1,
    "space": 1,
    "sampler": 1,
    "halving": 1,
    "trials": 1,
    "search_figures": 1,
    "search_report": 1,
    "figures": 1,
    "report": 1,
    "console": 1,
    "spec": 1,
    "identity": 1,
    "alignment": 2,
    "models": 2,
    "augment": 2,
    "learning": 2,
    "checkpoint": 2,
    "recognizer": 2,
    "reader": 2,
    "cluster": 3,
    "room": 3,
    "telemetry": 3,
    "datasets": 3,
    "corpus": 3,
    "synthesis": 3,
    "relay": 3,
    "training_worker": 3,
    "training": 3,
    "trainings": 3,
    "selftraining": 3,
    "studies": 3,
    "search": 3,
    "trial_worker": 3,
    "inference": 3,
    "inference_worker": 3,
    "evaluation": 3,
    "demo": 3,
}
WITHIN_RAY = {
    ("corpus", "datasets"),
    ("demo", "corpus"),
    ("demo", "synthesis"),
    ("evaluation", "datasets"),
    ("inference", "inference_worker"),
    ("search", "training"),
    ("search", "training_worker"),
    ("search", "trainings"),
    ("search", "trial_worker"),
    ("selftraining", "datasets"),
    ("selftraining", "evaluation"),
    ("selftraining", "training"),
    ("studies", "datasets"),
    ("studies", "evaluation"),
    ("studies", "training"),
    ("studies", "trainings"),
    ("training", "relay"),
    ("training", "training_worker"),
    ("training_worker", "relay"),
    ("trainings", "evaluation"),
    ("trainings", "training"),
    ("trainings", "training_worker"),
    ("trial_worker", "training_worker"),
    ("trial_worker", "trainings"),
}
"""Arrows inside layer 3, besides those to `cluster`, `room` and `telemetry`."""

LAZY = {("__init__", "recognizer")}
"""Arrows upwards: names of the package that are imported when they are first asked for."""


def imported(path: Path) -> set[str]:
    """Dotted names of all modules a file imports, wherever in it; `from captcha_ray import x` gives captcha_ray.x."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            if node.module == "captcha_ray":
                names.update(f"captcha_ray.{alias.name}" for alias in node.names)
            else:
                names.add(node.module or "")
    return names


def roots(path: Path) -> set[str]:
    """Distributions' top-level modules a file imports."""
    return {name.partition(".")[0] for name in imported(path)}


def arrows(path: Path) -> set[str]:
    """Modules of this package a file imports, by their short names."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("captcha_ray.")}


def test_every_module_has_its_place() -> None:
    assert {path.stem for path in PACKAGE.rglob("*.py")} == set(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_a_module_imports_its_own_layer_or_lower_ones(name: str) -> None:
    for other in arrows(PACKAGE / f"{name}.py") - {to for of, to in LAZY if of == name}:
        assert other in LAYERS, f"{name} imports {other}, which is no module"
        assert LAYERS[other] <= LAYERS[name], f"{name} imports {other} from above"


@pytest.mark.parametrize("name", [name for name, layer in LAYERS.items() if layer == 3])
def test_modules_on_ray_know_the_cluster_and_hardly_each_other(name: str) -> None:
    for other in arrows(PACKAGE / f"{name}.py"):
        if LAYERS[other] == 3 and other not in ("cluster", "room", "telemetry"):
            assert (name, other) in WITHIN_RAY


@pytest.mark.parametrize("name", LAYERS)
def test_torch_and_ray_stay_in_their_layers(name: str) -> None:
    found = roots(PACKAGE / f"{name}.py")
    if LAYERS[name] < 3:
        assert "ray" not in found
    if LAYERS[name] < 2:
        assert not found & {"torch", "torchvision", "safetensors"}
    if LAYERS[name] == 0:
        assert found <= {*sys.stdlib_module_names, "captcha_ray"}


def test_nothing_imports_jobs() -> None:
    for path in [*PACKAGE.glob("*.py"), *JOBS]:
        assert "jobs" not in roots(path), path.name


def test_no_module_is_a_drawer_for_leftovers() -> None:
    stems = {path.stem for path in [*PACKAGE.rglob("*.py"), *JOBS]}
    assert not stems & {"utils", "util", "common", "helpers", "helper", "base", "misc", "core"}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_jobs_define_only_main_so_that_workers_get_nothing_of_them(path: Path) -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]
    assert [getattr(node, "name", "lambda") for node in found] == ["main"]


def test_jobs_leave_ray_and_torch_to_the_package() -> None:
    assert len(JOBS) == 6
    for path in JOBS:
        assert roots(path) <= {*sys.stdlib_module_names, "captcha_ray"}, path.name


def test_every_lower_module_is_imported_without_torch_ray_or_output() -> None:
    names = [name for name, layer in LAYERS.items() if layer < 2 and name != "__init__"]
    code = f"import sys, captcha_ray\nfrom captcha_ray import {', '.join(names)}\n"
    code += "print(sorted({'torch', 'ray'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert (result.stdout, result.stderr) == ("[]\n", "")
