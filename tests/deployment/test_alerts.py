"""Checks what Prometheus reads and alerts on: that the metrics exist, and that rules fire when they should."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from captcha_ray.runtime import telemetry
from tests.support.manifests import CLUSTER

MONITOR, RULES = list(yaml.safe_load_all((CLUSTER / "prometheus.yaml").read_text()))
ALERTS: list[Any] = RULES["spec"]["groups"][0]["rules"]

OURS = {f"ray_{name}" for name in telemetry.GAUGES} | {f"ray_{name}_total" for name in telemetry.COUNTERS}
OTHERS = {"kuberay_job_deployment_status", "kube_job_status_failed"}
"""Metrics of KubeRay's operator and of kube-state-metrics."""

NIGHT = 'job="infer", run="s3://t", instance="head"'


def test_alerts_ask_for_metrics_that_are_exported() -> None:
    asked = {name for alert in ALERTS for name in re.findall(r"\b(?:ray|kube\w*)_\w+", alert["expr"])}
    assert asked <= OURS | OTHERS
    assert {"ray_captcha_objects_total", "ray_captcha_errors_total"} <= asked
    (endpoint,) = MONITOR["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    assert endpoint["honorLabels"] is True, "else Prometheus renames our label `job`"
    assert MONITOR["metadata"]["labels"] == RULES["metadata"]["labels"]


@pytest.mark.parametrize(
    ("series", "at", "firing"),
    [
        ({f"ray_captcha_objects_total{{{NIGHT}}}": "0+100x10 1000x50"}, "12m", set()),
        ({f"ray_captcha_objects_total{{{NIGHT}}}": "0+100x10"}, "27h", {"CaptchaNothingRecognized"}),
        ({}, "1m", {"CaptchaNothingRecognized"}),
        (
            {f"ray_captcha_objects_total{{{NIGHT}}}": "0+100x10", f"ray_captcha_errors_total{{{NIGHT}}}": "0+6x10"},
            "15m",
            {"CaptchaManyErrors"},
        ),
        (
            {f"ray_captcha_objects_total{{{NIGHT}}}": "0+100x10", f"ray_captcha_errors_total{{{NIGHT}}}": "0+4x10"},
            "15m",
            set(),
        ),
        (
            {f"ray_captcha_objects_total{{{NIGHT}}}": "0+9x10", f"ray_captcha_errors_total{{{NIGHT}}}": "0+9x10"},
            "15m",
            set(),
        ),
        (
            {
                f"ray_captcha_objects_total{{{NIGHT}}}": "0+100x10",
                'kuberay_job_deployment_status{name="captcha-infer-x7", deployment_status="Failed"}': "1x20",
            },
            "15m",
            {"CaptchaJobFailed"},
        ),
    ],
)
def test_alerts_fire_when_they_should(tmp_path: Path, series: dict[str, str], at: str, firing: set[str]) -> None:
    """Asks Prometheus' own tool, where it is installed (Debian: the package `prometheus`)."""
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool is not installed")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES["spec"]))
    wanted = [
        {"eval_time": at, "alertname": alert["alert"], "exp_alerts": [] if alert["alert"] not in firing else [{}]}
        for alert in ALERTS
    ]
    quiet = [one for one in wanted if not one["exp_alerts"]]
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    test = {"rule_files": ["rules.yaml"], "tests": [{"interval": "1m", "input_series": inputs}]}

    def passes(alerts: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
        test["tests"][0]["alert_rule_test"] = alerts  # type: ignore[index]
        (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
        command = [promtool, "test", "rules", "test.yaml"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = passes(quiet)
    assert done.returncode == 0, done.stdout + done.stderr
    for alert in firing:  # a test that expects none fails exactly where it fires
        found = passes([{"eval_time": at, "alertname": alert, "exp_alerts": []}])
        assert found.returncode == 1, f"{alert} does not fire"
        assert alert in found.stdout + found.stderr
