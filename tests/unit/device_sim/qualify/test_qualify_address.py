"""Where `fleet-sim qualify` listens, unless it is told, and how it says so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console
from typer.testing import CliRunner

from device_sim.cli import app
from device_sim.qualify import qualifying


def test_where_there_is_no_ipv4_it_listens_at_the_other_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(qualifying, "own_loopback", lambda: "::1")
    monkeypatch.setattr(qualifying, "Papers", lambda _client_id, names: asked.append(names))
    for options in ((), ("--host", "127.0.0.2")):
        assert CliRunner().invoke(app, ["qualify", "--list", *options]).exit_code == 0
    assert asked == [["::1", "localhost"], ["127.0.0.2", "localhost"]]


def test_the_address_for_a_device_can_be_copied() -> None:
    papers = SimpleNamespace(identity=SimpleNamespace(name="meter-1"))
    bench = cast("Any", SimpleNamespace(host="::1", port=8883, papers=papers, directory=Path("there")))
    told = Console(record=True, width=200, quiet=False)
    with told.capture() as said:
        qualifying._instruct(told, bench)
    assert "connect to [::1]:8883 as meter-1" in said.get()
