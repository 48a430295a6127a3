"""What the JSON file of an attack says of who was judged, and by whom."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from device_sim.attack.attacking import _write
from device_sim.attack.given import Given
from provisioning.program.version import version_and_build


@pytest.mark.parametrize(
    ("version", "build", "told"),
    [
        ("0.1.0", "0123456789ab", {"target_version": "0.1.0", "target_build": "0123456789ab"}),
        ("2.0.21", "", {"target_version": "2.0.21"}),
        ("", "", {}),
    ],
)
def test_broker_and_simulator_are_told_as_far_as_they_are_known(
    tmp_path: Path, version: str, build: str, told: dict[str, str]
) -> None:
    target: Any = SimpleNamespace(capabilities=SimpleNamespace(name="theirs"), version=version, build=build, ended=None)
    _write("attack", target, [], Given(json=tmp_path / "report.json"))
    document = json.loads((tmp_path / "report.json").read_text())
    assert {key: value for key, value in document.items() if key.startswith("target_")} == told
    assert document["environment"]["fleet_sim"] == version_and_build()
