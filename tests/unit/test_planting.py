"""The faults that tests plant in our source follow it: seconds say so, where planting takes minutes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.integration.device_sim import test_planted_faults
from tests.support import planted_cves, planted_doors, planting


def _faults_of(value: Any) -> Iterator[planting.Fault]:
    """Yield *value* if it is a fault, or what it holds."""
    if not isinstance(value, tuple):
        return
    if len(value) == 3 and all(isinstance(part, str) for part in value):
        yield value
        return
    for each in value:
        yield from _faults_of(each)


@pytest.mark.parametrize("module", [planted_cves, planted_doors, test_planted_faults], ids=lambda each: each.__name__)
def test_every_planted_fault_is_found_in_the_source_once(module: ModuleType, tmp_path: Path) -> None:
    faults = [fault for name, value in vars(module).items() if name.isupper() for fault in _faults_of(value)]
    assert len(faults) > 5
    planting.write(tmp_path / "faults.json", faults)


def test_a_fault_that_is_not_where_it_is_looked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="has 0 times"):
        planting.write(tmp_path / "faults.json", [("README.md", "not " + "in it", "")])


def test_a_fault_in_what_is_imported_already_is_refused() -> None:
    with pytest.raises(SystemExit, match="was imported before its fault was planted"):
        planting._plant([("provisioning/pki/role.py", "DEVICE", "DEVICE")])


@pytest.mark.parametrize(
    ("file", "program", "planted"),
    [
        ("broker/engine/engine.py", "provisioning", False),
        ("broker/engine/engine.py", "broker", True),
        ("provisioning/pki/role.py", "provisioning", True),
        ("provisioning/pki/role.py", "broker", True),
    ],
)
def test_only_a_service_that_has_none_of_the_faults_runs_without_them(file: str, program: str, planted: bool) -> None:
    begun: list[list[str]] = []
    start = planting.planted_in(lambda _name, arguments: begun.append(arguments), [(file, "", "")])
    start("the program", [program, "run"])
    assert begun == [planting.command([program, "run"]) if planted else [program, "run"]]
