"""Checks from the source which room imports which; a new room has to be given its place here."""

import ast
import collections
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "captcha_ray"
JOBS = sorted((ROOT / "jobs").glob("*.py"))
FILES = sorted(PACKAGE.rglob("*.py"))

TOP_MODULES = {"api", "cli"}
"""Modules that may import every room, as `jobs/` may."""

ROOT_MODULES = {"__init__", "config", "console", "errors"}
"""Modules of no room, which every room may import; `recognizer` counts as a room of its own."""

ROOMS: dict[str, set[str]] = {
    "storage": set(),
    "metrics": set(),
    "images": set(),
    "text": set(),
    "runs": {"storage"},
    "runtime": {"storage"},
    "reporting": {"metrics", "runs", "storage"},
    "models": {"images", "runs", "storage", "text"},
    "engines": {"models"},
    "recognizer": {"engines", "images", "metrics", "models", "storage", "text"},
    "datasets": {"images", "runs", "runtime", "storage", "text"},
    "synthesis": {"datasets", "runs", "storage"},
    "recipes": {"datasets", "models", "runs", "storage"},
    "evaluation": {
        "datasets", "engines", "images", "metrics", "models", "recognizer", "runs", "runtime", "storage", "text",
    },
    "training": {
        "datasets", "evaluation", "images", "metrics", "models", "recipes", "recognizer", "reporting", "runs",
        "runtime", "storage", "text",
    },
    "experiments": {
        "datasets", "evaluation", "metrics", "models", "recipes", "runs", "runtime", "storage", "training",
    },
    "tuning": {
        "datasets", "experiments", "metrics", "models", "recipes", "reporting", "runs", "runtime", "storage",
        "training",
    },
    "predictions": {"runs", "storage"},
    "inference": {"engines", "images", "models", "predictions", "recognizer", "runs", "runtime", "storage"},
}  # fmt: skip
"""Each room, with the rooms that it may import besides itself."""

TORCH = {"models", "engines", "training", "experiments"}
"""Rooms that may import torch."""

WITHOUT_TORCH = {
    "models.spec", "models.fingerprint", "models.ctc_decoding", "models.exports", "models.allocator",
    "engines.engine", "engines.choice", "engines.openvino_engine", "engines.onnxruntime_engine", "engines.quantize",
    "training.schedule", "training.diagnosis",
}  # fmt: skip
"""Modules of those rooms that may not import torch, because they are used before a network is loaded."""

RAY = {"runtime", "datasets", "synthesis", "evaluation", "training", "experiments", "tuning", "inference"}
"""Rooms that may import Ray."""

WITHOUT_RAY = {
    "inference.listing", "inference.block_reader", "inference.block_decoder", "inference.config",
    "datasets.config", "datasets.schema", "datasets.splits", "datasets.labels", "datasets.decoding",
    "synthesis.schemes", "synthesis.config", "synthesis.varied_text",
    "training.schedule", "training.diagnosis", "training.loop", "training.batches",
    "training.optim", "training.state", "training.augment",
    "tuning.config", "tuning.search_space",
    "tuning.search_state", "tuning.suggest", "tuning.scheduler", "tuning.trials", "tuning.report",
    "tuning.figures",
}  # fmt: skip
"""Modules of those rooms that may not import Ray."""


def module_of(path: Path) -> str:
    """Return the dotted name of a module below the package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def room_of(name: str) -> str:
    """Return the room of a module below the package; empty for a module of none."""
    room = name.partition(".")[0]
    return "" if room in ROOT_MODULES | TOP_MODULES else room


def imported(path: Path) -> set[str]:
    """Return the dotted names that a file imports anywhere; of this package `from a import b` gives a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names.add(node.module or "")
            if (node.module or "").partition(".")[0] == "captcha_ray":
                names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def roots(path: Path) -> set[str]:
    """Return the top-level modules that a file imports."""
    return {name.partition(".")[0] for name in imported(path)}


def arrows(path: Path) -> set[str]:
    """Return the modules of this package that a file imports, by their dotted names below it."""
    known = {module_of(one) for one in FILES}
    names = {name.removeprefix("captcha_ray.") for name in imported(path)}
    return (names & known) - {module_of(path)}


def test_every_room_has_its_place() -> None:
    assert {room_of(module_of(path)) for path in FILES} - {""} == set(ROOMS)
    assert {module_of(path) for path in FILES if path.parent == PACKAGE} == ROOT_MODULES | TOP_MODULES | {"recognizer"}


def test_rooms_have_an_order() -> None:
    order = list(graphlib.TopologicalSorter(ROOMS).static_order())
    assert set(order) == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_module_imports_only_what_its_room_may(path: Path) -> None:
    room = room_of(module_of(path))
    for other in arrows(path):
        if module_of(path) == "__init__":
            assert other in ("api", "recognizer")
        elif module_of(path) in TOP_MODULES:
            continue
        elif other in TOP_MODULES:
            pytest.fail(f"{module_of(path)} imports {other}, which stands above every room")
        elif room_of(other) not in ("", room):
            assert room, f"{module_of(path)} imports {other}, and stands below every room"
            assert room_of(other) in ROOMS[room], f"{module_of(path)} imports {other}"


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph = {module_of(path): arrows(path) for path in FILES if module_of(path) != "__init__"}
    tuple(graphlib.TopologicalSorter(graph).static_order())


def may_import_torch(name: str) -> bool:
    return room_of(name) in TORCH and name not in WITHOUT_TORCH


def may_import_ray(name: str) -> bool:
    return name in TOP_MODULES or (room_of(name) in RAY and name not in WITHOUT_RAY)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_torch_and_ray_stay_in_their_rooms(path: Path) -> None:
    name, found = module_of(path), roots(path)
    assert may_import_torch(name) or not found & {"torch", "torchvision", "safetensors"}
    assert may_import_ray(name) or "ray" not in found


def test_rooms_open_empty() -> None:
    for path in PACKAGE.glob("*/__init__.py"):
        assert not imported(path), path


def test_nothing_imports_jobs() -> None:
    for path in [*FILES, *JOBS]:
        assert "jobs" not in roots(path), path.name


def test_folders_files_and_functions_stay_small() -> None:
    folders = collections.Counter(path.parent for path in FILES if path.stem != "__init__")
    assert max(folders.values()) <= 12, folders.most_common(1)
    for path in FILES:
        source = path.read_text()
        assert source.count("\n") <= 400, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 50, f"{path}: {node.name}"


def test_no_module_is_a_drawer_for_leftovers() -> None:
    stems = {path.stem for path in [*FILES, *JOBS]} | {path.name for path in PACKAGE.iterdir()}
    assert not stems & {"utils", "util", "common", "helpers", "helper", "base", "misc", "core"}


def test_no_folder_has_a_name_that_says_too_little() -> None:
    assert not {path.name for path in PACKAGE.iterdir()} & {"train", "tune", "data", "serve"}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_jobs_define_nothing_so_that_workers_get_nothing_of_them(path: Path) -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]


def test_jobs_leave_ray_and_torch_to_the_package() -> None:
    assert len(JOBS) == 7
    for path in JOBS:
        assert roots(path) <= {*sys.stdlib_module_names, "captcha_ray"}, path.name


def test_what_needs_neither_torch_nor_ray_is_imported_without_them_and_without_output() -> None:
    names = {module_of(path) for path in FILES if path.stem != "__init__"}
    light = sorted(name for name in names if not may_import_torch(name) and not may_import_ray(name))
    assert len(light) > 40
    code = "import sys\n" + "".join(f"import captcha_ray.{name}\n" for name in light)
    code += "print(sorted({'torch', 'ray'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert (result.stdout, result.stderr) == ("[]\n", "")
