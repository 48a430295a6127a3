"""The Grafana dashboard that ships asks Prometheus only for what the services export, in expressions that it takes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.provisioning import REPOSITORY

DASHBOARD = REPOSITORY / "deploy" / "grafana" / "fleetgate.json"
BROKER_ROW = re.compile(r"^\| ((?:`\w+`(?:, )?)+) \| (?:counter|gauge|gauge histogram|histogram|info) \|", re.MULTILINE)
METRICS = REPOSITORY / "docs" / "reference" / "metrics.md"
GRAFANA = {"$__rate_interval": "1m", "$__range": "3h"}
"""What Grafana puts in before it asks."""


def panels() -> list[dict[str, Any]]:
    read: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return [each for each in read["panels"] if each["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def test_every_metric_is_documented() -> None:
    text = METRICS.read_text(encoding="utf-8")
    documented = set(re.findall(r"`(fleet_provisioning_\w+)`", text))
    cells = BROKER_ROW.findall(text)
    documented |= {f"fleet_broker_{name}" for cell in cells for name in re.findall(r"\w+", cell)}
    asked = {name for each in expressions() for name in re.findall(r"fleet_\w+", each)}
    assert len(asked) > 40
    families = {name if name in documented else re.sub(r"_(total|bucket)$", "", name) for name in asked}
    assert families - documented == set()


def test_every_panel_says_what_it_shows_and_lies_beside_the_others() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        assert panel["title"]
        assert panel["description"].endswith(".")
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    ids = [each["id"] for each in panels()]
    assert len(ids) == len(set(ids)) > 30


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_every_expression(tmp_path: Path) -> None:
    rules = []
    for number, each in enumerate(expressions()):
        expression = each
        for name, value in GRAFANA.items():
            expression = expression.replace(name, value)
        rules.append({"record": f"panel:{number}", "expr": expression})
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML.
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout
