"""docs/qualify.md names every stage, and no other; and every placeholder."""

from __future__ import annotations

import re

from device_sim.qualify.placeholders import PLACEHOLDERS
from device_sim.qualify.stages import STAGES
from tests.support.provisioning import REPOSITORY

PAGE = (REPOSITORY / "docs" / "qualify.md").read_text(encoding="utf-8")


def test_the_table_has_every_stage_in_order() -> None:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert named == [*(stage.name for stage in STAGES), "reconnect"]


def test_every_placeholder_is_explained() -> None:
    assert {f"`{{{name}}}`" for name in PLACEHOLDERS} <= set(re.findall(r"`\{\w+\}`", PAGE))
