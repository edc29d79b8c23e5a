"""Alert rules and dashboard: their syntax, an example for each rule, and which metrics they name.

That these metrics exist is seen on a running mesh, in tests/e2e/test_telemetry.py.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import dashboard
import pytest
import yaml

RULES = Path(__file__).resolve().parents[2] / "infra" / "prometheus"
_METRIC = re.compile(r"\b(?:vllm:|banyan_)[a-z0-9_]+")


def expressions_in_rules() -> dict[str, str]:
    groups = yaml.safe_load((RULES / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def names_in_rules() -> set[str]:
    return {name for text in expressions_in_rules().values() for name in _METRIC.findall(text)}


def names_in_dashboard() -> set[str]:
    page = json.loads(dashboard.TARGET.read_text())
    queries = [query["expr"] for panel in page["panels"] for query in panel.get("targets", ())]
    return {name for text in queries for name in _METRIC.findall(text)}


def promtool(*arguments: str) -> None:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not on PATH (package prometheus): rules are not tried")
    done = subprocess.run(
        [tool, *arguments], cwd=RULES, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_rules() -> None:
    promtool("check", "rules", "alerts.yml")


def test_rules_fire_when_they_should() -> None:
    promtool("test", "rules", "alerts_test.yml")


def test_every_rule_has_an_example() -> None:
    tests = yaml.safe_load((RULES / "alerts_test.yml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert fired == set(expressions_in_rules())


def test_the_dashboard_is_what_its_script_says() -> None:
    assert dashboard.main("check") == 0
    page = json.loads(dashboard.dashboard())
    places = [tuple(panel["gridPos"].values())[:2] for panel in page["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in page["panels"]}) == len(places)
