"""The same scenario against a broker that knows revocation by CRL and SIGHUP alone: figures, and no crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.fleet_sim import left_in, ran
from tests.support.needed import needed
from tests.support.scenarios import ON_ANY_MACHINE

SCENARIO = (
    ON_ANY_MACHINE
    + """
name = "compared"
devices = 8
[[groups]]
name = "meters"
telemetry = { every = "200ms" }
[[stages]]
ramp = { rate = 50 }
[[stages]]
command = { rate = 50, deadline = "60s" }
[[stages]]
restart = {}
[[stages]]
revoke = { select = "25%", rate = 20, deadline = "3s" }
[[stages]]
renew = { select = "25%", rate = 20 }
[thresholds]
unanswered_commands = ["== 0"]
unreached = ["== 0"]
failed_renewals = ["== 0"]
revoked_closed = ["p99 < 60000"]
"""
)


async def reported(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    code, out, _ = await ran(tmp_path, *arguments, "--json")
    assert not left_in(tmp_path)
    return code, json.loads(out)


async def test_who_closes_revoked_sessions_and_who_does_not(tmp_path: Path) -> None:
    needed("mosquitto")
    scenario = tmp_path / "compared.toml"
    scenario.write_text(SCENARIO)
    code, ours = await reported(tmp_path, "run", str(scenario), "--self-hosted")
    assert (code, ours["verdict"]) == (0, "PASS")
    counts = ours["counts"]
    assert (counts["revoked"], counts["stayed_in"], counts["readmitted"], counts["false_admissions"]) == (2, 0, 0, 0)
    assert ours["environment"]["broker"].startswith("fleetgate ")

    code, theirs = await reported(tmp_path, "run", str(scenario), "--self-hosted", "--against", "mosquitto")
    assert (code, theirs["verdict"]) == (4, "SECURITY FAILURE")
    counts = theirs["counts"]
    # The CRL keeps them out when they come again; their sessions it left alone.
    assert (counts["revoked"], counts["stayed_in"], counts["false_admissions"]) == (2, 2, 2)
    assert "revoked_closed" not in theirs["durations"]
    assert theirs["durations"]["revoked_refused"]["response"]["count"] == 4 - counts["readmitted"] > 0
    assert theirs["environment"]["broker"].startswith("mosquitto ")
    assert {item["metric"] for item in theirs["thresholds"] if not item["passed"]} == {
        "false_admissions", "revoked_closed",
    }  # fmt: skip
    assert ours["scenario"] == theirs["scenario"]
    for document in (ours, theirs):
        assert (document["counts"]["unreached"], document["counts"]["renewed"]) == (0, 2)
    assert ours["counts"]["lost"] == 0  # What the other one loses when it restarts is its own.


async def test_a_network_that_breaks_by_itself_is_no_merit_of_the_broker(tmp_path: Path) -> None:
    needed("mosquitto")
    scenario = tmp_path / "flapping.toml"
    scenario.write_text(
        ON_ANY_MACHINE
        + """
name = "flapping"
devices = 8
[[groups]]
name = "meters"
flap = { up = "500ms", down = "100ms" }
[[stages]]
ramp = { rate = 50 }
[[stages]]
revoke = { select = "100%", rate = 20, deadline = "10s" }
"""
    )
    where = ("--self-hosted", "--against", "mosquitto", "--websocket", "--path", "/any")
    _, document = await reported(tmp_path, "run", str(scenario), *where)
    assert document["environment"]["transport"] == "wss, /any"
    assert document["durations"]["upgrade"]["response"]["count"] == document["counts"]["admissions"] > 0
    assert document["counts"]["revoked"] > document["counts"]["stayed_in"]
    assert "revoked_closed" not in document["durations"]
