"""Checks the Grafana dashboard against the metrics that jobs report."""

import json
import re

from captcha_ray.runtime import telemetry
from tests.support.manifests import (
    CLUSTER,
)


def test_the_dashboard_shows_what_jobs_tell_and_nothing_else() -> None:
    dashboard = json.loads((CLUSTER / "grafana-dashboard.json").read_text())
    panels = dashboard["panels"]
    shown = {name for panel in panels for one in panel["targets"] for name in re.findall(r"ray_\w+", one["expr"])}
    told = {f"ray_{name}" for name in telemetry.GAUGES} | {f"ray_{name}_total" for name in telemetry.COUNTERS}
    assert shown == told
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(panels))) <= variables
    labels = {label for panel in panels for one in panel["targets"] for label in re.findall(r"{{(\w+)}}", str(one))}
    assert labels <= set(telemetry.TAGS)
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
