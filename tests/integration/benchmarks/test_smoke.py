"""Every benchmark runs, in its smallest size, and says what docs/performance.md promises. Figures mean nothing here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[3]


def run(tmp_path: Path, name: str, *arguments: str) -> Any:
    """Run ``benchmarks/NAME.py --smoke`` as a user does, and return what it wrote as JSON."""
    written = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", "--smoke", "--json", str(written), *arguments],
        cwd=SOURCE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [each.name for each in tmp_path.iterdir()] == [written.name], "it leaves nothing behind"
    return json.loads(written.read_text())


def test_revocation_closes_every_connection_in_each_of_three_ways(tmp_path: Path) -> None:
    figures = run(tmp_path, "revocation")
    titles = [each["title"] for each in figures["results"]]
    assert titles == ["one by one", "at once, 16 calls in flight", "in one call"]
    assert [len(each["closed_ms"]) for each in figures["results"]] == [5, 10, 10]
    assert all(time > 0 for each in figures["results"] for time in each["closed_ms"])
    assert figures["already_revoked"] == 500


def test_a_fleet_is_admitted_again_after_kill_9_while_probes_are_served(tmp_path: Path) -> None:
    figures = run(tmp_path, "readmission")
    assert figures["sessions"] == 60, "those of the devices; probes and backend keep none"
    assert figures["readmission_seconds"] > 0
    assert figures["restart_seconds"] > 0
    assert figures["probe_messages"] > 0
    assert figures["probe_ms_p50"] <= figures["probe_ms_p99"] <= figures["probe_ms_max"]


def test_reloads_drop_nobody(tmp_path: Path) -> None:
    figures = run(tmp_path, "reload_sessions")
    assert figures["dropped"] == 0
    assert figures["reloads"] == 5
    assert list(figures["seconds"]) == ["certificate", "trust", "policy", "limits", "all, by SIGHUP"]
    assert figures["messages"] > 0


def test_other_anchors_put_out_nobody_and_one_who_pings_waits_for_each_sweep(tmp_path: Path) -> None:
    figures = run(tmp_path, "trust_sweep")
    assert (figures["devices"], figures["cas"]) == (60, 2)
    assert figures["idle_ms"] > 0
    assert [each > 0 for each in figures["pause_ms"]] == [True]


def test_each_call_on_the_way_of_a_message_has_a_figure() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/hot_calls.py", "--rounds", "1", "--calls", "10"],
        cwd=SOURCE,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    figures = [line for line in done.stdout.splitlines() if line.endswith(" µs")]
    assert len(figures) == 8, done.stdout


def test_admission_has_a_price_beside_a_broker_without_checks(tmp_path: Path) -> None:
    figures = run(tmp_path, "admission_cost")
    assert list(figures["cpu_ms"]) == ["bare", "feed", "lists"]
    assert all(cost > 0 for cost in figures["cpu_ms"].values())
    assert list(figures["added_percent"]) == ["feed", "lists"]


def test_certificates_ocsp_and_revocations_are_measured_beside_cfssl_on_both_stores(tmp_path: Path) -> None:
    figures = run(tmp_path, "provisioning_service", "--rounds", "1")
    assert list(figures["rounds"]) == ["sqlite", "postgresql"]
    for rounds in figures["rounds"].values():
        ((ours, theirs),) = rounds
        for kind in (
            "issue_kept",
            "issue_new",
            "issue_chosen",
            "ocsp_signed",
            "ocsp_remembered",
            "revoke_one",
            "revoke_many",
        ):
            assert ours[f"{kind}_cpu"] > 0
            assert theirs[f"{kind}_rate"] > 0
        assert ours["memory_end"] > theirs["memory_end"] > 0
    assert figures["facts"]["already_revoked"] == 100


def test_a_device_gets_in_over_a_link_with_a_long_delay(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        pytest.skip("only root makes network namespaces with TUN devices")
    made = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    if made.returncode != 0 or shutil.which("ip") is None:
        pytest.skip("no network namespace can be made here")
    link = run(tmp_path, "far_devices")["links"]["600 ms"]
    assert link["attempts"] == 1
    (seconds,) = link["seconds"]
    assert seconds > 1.8, "TCP, TLS and MQTT take a round trip each"


def test_the_broker_without_checks_is_only_ever_a_benchmarks_part() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "FLEETGATE_BENCHMARK"}
    done = subprocess.run(
        [sys.executable, "benchmarks/bare_broker.py", "run"],
        cwd=SOURCE,
        env=environment | {"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "admits everybody" in done.stderr


_EXPLAINED = """
import contextlib, io, runpy, sys
from pathlib import Path
for script in sorted(Path("benchmarks").glob("*.py")):
    if '__name__ == "__main__"' not in (text := script.read_text()) or "pars" not in text:
        continue  # What others import, or start with arguments of their own.
    sys.argv, said, code = [str(script), "--help"], io.StringIO(), None
    sys.path.insert(0, "benchmarks")
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:
        code = ended.code
    assert code == 0 and said.getvalue().startswith("usage: " + script.name), script
    print(script.name)
"""


def test_each_explains_itself() -> None:
    """In one process, for their imports are most of it."""
    done = subprocess.run(
        [sys.executable, "-c", _EXPLAINED], cwd=SOURCE, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {"side_by_side.py", "idle.py", "revocation.py", "provisioning_service.py"} <= set(done.stdout.split())
