"""What the JSON file of an attack says of who was judged, and by whom."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from device_sim.attack import attacking
from device_sim.attack.attacking import _write, judge
from device_sim.attack.catalogue import CATALOGUE
from device_sim.attack.command import attack_table
from device_sim.attack.given import Given
from device_sim.attack.target import Target
from provisioning.program.version import version_and_build
from tests.support.faulty_broker import Fault, faulty


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


def test_reports_and_exit_code_are_the_verdicts_though_the_reader_of_the_output_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with ``fleet-sim attack --json FILE | head``: there was no file, and exit code 1, an error's."""

    @asynccontextmanager
    async def opened(directory: Path) -> AsyncIterator[Target]:
        async with faulty(directory, Fault.OVERLOOKS_DATES) as target:
            yield target

    monkeypatch.setattr(attacking, "chosen", lambda *_, **__: opened)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        with pytest.raises(typer.Exit) as ended:
            judge("attack", CATALOGUE, Given(only=["3-expired"], json=tmp_path / "a.json", junit=tmp_path / "a.xml"))
    assert ended.value.exit_code == 4
    assert json.loads((tmp_path / "a.json").read_text())["verdict"] == "fail"
    assert (tmp_path / "a.xml").is_file()


@pytest.mark.parametrize(
    "content", ['{"schema": 1, "cases": {}}', '{"schema": 1, "target": "x", "cases": [{"case": "1"}]}']
)
def test_a_file_of_which_something_is_missing_is_named(tmp_path: Path, content: str) -> None:
    (file := tmp_path / "edited.json").write_text(content)
    with pytest.raises(typer.BadParameter, match=r"edited\.json is not whole"):
        attack_table([file])
