"""The alerts that ship: promtool (Debian's package of that name) lets each one fire and rest.

That the figures in them are exported is tested beside the services: `test_reference_pages.py` here, and
`tests/integration/provisioning/test_workers.py`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.provisioning import REPOSITORY

RULES = REPOSITORY / "deploy" / "prometheus" / "alerts.yml"
TRIED = Path(__file__).with_name("alerts-test.yml")
PAGE = REPOSITORY / "docs" / "reference" / "metrics.md"


def names() -> list[str]:
    return re.findall(r"- alert: (\w+)", RULES.read_text(encoding="utf-8"))


def test_every_alert_is_tried() -> None:
    alerts = names()
    assert len(alerts) == len(set(alerts)) > 20
    assert sorted(re.findall(r'alertname="(\w+)"', TRIED.read_text(encoding="utf-8"))) == sorted(alerts)


def test_the_page_says_what_to_do_about_each() -> None:
    explained = re.findall(r"^\| (Fleet[\w, ]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(", ".join(explained).split(", ")) == sorted(names())


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("arguments", [("check", "rules", RULES), ("test", "rules", TRIED)])
def test_promtool_finds_that_each_fires_when_it_should(arguments: tuple[str, str, Path]) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
