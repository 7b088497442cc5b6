"""Publish the measurements of a run: `results.json`, the report, and a warning if the network is of no use."""

from collections.abc import Mapping
from typing import Any

from captcha_ray.datasets.schema import Manifest
from captcha_ray.evaluation.evaluate import Evaluation
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.reporting import run_report
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.storage import filesystem
from captcha_ray.training import diagnosis


def publish(run: RunDirectory, evaluations: Mapping[str, Evaluation], **facts: Any) -> dict[str, Any]:
    """Add evaluations to the run's `results.json`, renew `report.html`, and return all results.

    Args:
        run: Directory of the run.
        evaluations: By name; one of the same name is replaced.
        facts: Further results, as JSON types.
    """
    results = run.read_json("results.json") if filesystem.exists(run.path("results.json")) else {}
    results |= {name: evaluation.summary() for name, evaluation in evaluations.items()} | facts
    results["warnings"], results["next_steps"] = diagnose_run(run, results)
    run.write_json("results.json", results)
    run_report.write(run, results, {name: evaluation.mistakes for name, evaluation in evaluations.items()})
    return results


def diagnose_run(run: RunDirectory, results: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return warnings about all results of a run, and without any what may make the network better.

    Both are empty if the run does not know its shards.
    """
    if not all(filesystem.exists(run.path(name)) for name in ("resolved_config.json", "manifest.json")):
        return [], []
    config = TrainConfig.from_dict(run.read_json("resolved_config.json"))
    manifest = Manifest.from_dict(run.read_json("manifest.json"))
    splits = {name: value for name, value in results.items() if isinstance(value, dict) and "num_images" in value}
    warnings = diagnosis.diagnose(splits, run.read_metrics(), config, manifest)
    return warnings, [] if warnings else diagnosis.suggest(results, config, manifest)
