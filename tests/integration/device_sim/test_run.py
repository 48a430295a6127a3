"""`fleet-sim enrol`, `run` and `report` as a user starts them: judged by exit codes, and by what they leave behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from device_sim.credentials.fleet_directory import FleetDirectory, Origin
from device_sim.results.document import UnreadableReport, read
from device_sim.results.progress import document_so_far
from device_sim.stage.stage import Stage
from provisioning.pki.role import Role
from tests.support.authority import Authority
from tests.support.fleet_sim import SOURCE, TINY, enrol, fleet_sim, left_in, left_running, ran, until_said
from tests.support.last_words import last_words
from tests.support.programs import forking_python

LONG = TINY.replace('hold = "1s"', 'hold = "10m"')


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return str(path)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def chosen(document: dict[str, Any]) -> list[str]:
    return sorted(mark["what"] for mark in document["markers"] if mark["kind"] == "revoke")


async def test_a_fleet_from_its_enrolment_to_its_end(tmp_path: Path, stage: Stage, tiny: str) -> None:
    fleet, port = tmp_path / "fleet", stage.broker.port

    async with fleet_sim(tmp_path, *enrol(stage, fleet, "--devices", "3000", "--parallel", "2")) as process:
        async with asyncio.timeout(60):
            while size_of(fleet / "index.jsonl") < 1000:
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = await last_words(process)
        assert process.returncode == 130
        assert b"run the same command again to continue" in said
        assert b"Traceback" not in said
    before = len((fleet / "index.jsonl").read_text().splitlines())
    code, out, err = await ran(tmp_path, *enrol(stage, fleet, "--devices", str(before + 20)))
    assert code == 0, err
    assert f"{before - 1} of {before + 20} are in" in err  # One of the lines is the service's.
    assert len((fleet / "index.jsonl").read_text().splitlines()) == before + 21

    where = ("--fleet", str(fleet), "--broker", f"127.0.0.1:{port}", "--server-name", "localhost")
    code, out, err = await ran(tmp_path, "run", tiny, *where, "--output", str(tmp_path / "out"))
    assert code == 0, out + err
    document = read(tmp_path / "out" / "report.json")
    counts = document["counts"]
    assert counts["published"] == counts["received"] + counts["in_flight"] > 0
    assert (counts["lost"], counts["false_admissions"], counts["false_refusals"]) == (0, 0, 0)
    assert (counts["revoked"], counts["renewed"], counts["lost_connections"]) == (2, 2, 6 + 2)
    assert document["durations"]["revoked_refused"]["response"]["count"] == 4  # A full handshake each, and a resumed.
    assert document["verdict"] == "PASS"
    assert 0.0 < document["generator"]["distance"]["round_trip"] < 0.01  # The kernel was asked: it is near.
    suite = ET.parse(tmp_path / "out" / "junit.xml").getroot()  # noqa: S314 - our own
    assert (suite.get("failures"), suite.get("tests")) == ("0", str(len(document["thresholds"]) + 1))
    assert len((tmp_path / "out" / "timeline.csv").read_text().splitlines()) == len(document["timeline"]) + 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "://" not in page.replace(stage.provisioning_url, "")  # It fetches nothing from anywhere.
    assert "<script" not in page

    code, out, _ = await ran(
        tmp_path, "report", *2 * (str(tmp_path / "out" / "report.json"),), "--html", str(tmp_path / "change.html")
    )
    assert code == 0
    assert "end_to_end p99" in out

    code, out, err = await ran(tmp_path, "run", tiny, *where, "--devices", "1000")
    assert code == 2
    assert f"has {before + 18} usable devices" in err  # The two that were revoked are left out.

    code, out, err = await ran(tmp_path, "enrol", str(fleet), "--cleanup")
    # Nobody answers.
    assert (code, fleet.exists()) == (1, True)
    assert f"{stage.provisioning_url}, for ever, and remove their keys? [y/N]" in err
    assert (await stage.operator.device("meter-00003")).state != "revoked"
    code, out, _ = await ran(tmp_path, "enrol", str(fleet), "--cleanup", "--yes")
    assert code == 0
    assert not fleet.exists()
    assert (await stage.operator.device("meter-00003")).state == "revoked"


async def test_the_same_seed_chooses_the_same_devices_however_they_connect(tmp_path: Path, tiny: str) -> None:
    documents = []
    for options in ((), ("--websocket",)):
        code, out, err = await ran(tmp_path, "run", tiny, "--self-hosted", "--json", *options)
        assert code == 0, err
        documents.append(json.loads(out))
    assert chosen(documents[0]) == chosen(documents[1]) != []
    assert [document["environment"]["transport"] for document in documents] == ["mqtts", "wss, /mqtt"]
    assert ["upgrade" in document["durations"] for document in documents] == [False, True]
    scenario, same = (document["scenario"] for document in documents)
    assert {name for name, value in scenario.items() if same[name] != value} == {"websocket", "fingerprint"}
    assert not left_in(tmp_path)


async def test_workers_with_the_light_driver_observe_the_same(tmp_path: Path, tiny: str) -> None:
    code, out, err = await ran(
        tmp_path, "run", tiny, "--self-hosted", "--json", "--workers", "2", "--driver", "light", "--sources", "2"
    )
    assert code == 0, err
    document = json.loads(out)
    counts = document["counts"]
    assert counts["published"] == counts["received"] + counts["in_flight"] > 0
    assert (counts["revoked"], counts["renewed"], counts["lost_connections"]) == (2, 2, 6 + 2)
    assert document["durations"]["command"]["response"]["count"] == 12
    assert document["durations"]["revoked_refused"]["response"]["count"] == 4
    assert 0.0 < document["generator"]["distance"]["round_trip"] < 0.01
    processes = document["generator"]["processes"]
    assert [(process["name"], process["devices"]) for process in processes] == [
        ("worker 1", 6), ("worker 2", 6), ("conductor", 0),
    ]  # fmt: skip
    assert not left_in(tmp_path)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_run_that_is_under_way_can_be_told_what_to_do(tmp_path: Path, workers: str) -> None:
    text = LONG.partition("[[stages]]\ncommand")[0] + '[[stages]]\nhold = "10m"\n'
    (tmp_path / "long.toml").write_text(text)
    arguments = ("run", str(tmp_path / "long.toml"), "--self-hosted", "--json", "--workers", workers)
    async with fleet_sim(tmp_path, *arguments) as process:
        await until_said(process, "hold 600 s")
        (number,) = left_running(tmp_path, "device_sim", "long.toml")

        async def told(*order: str) -> str:
            code, out, err = await ran(tmp_path, "ctl", "--run", str(number), *order)
            assert code == 0, err
            return out

        assert "revoke 20%, 10/s: done to 2 of 2 devices in" in await told("revoke", "20%")
        assert "storm 100%: done to 10 of 10 devices in" in await told("storm")
        assert "publishing 10 times as often" in await told("rate", "x10")
        assert "paused" in await told("pause")
        async with asyncio.timeout(60):
            while "connected 10 of 12" not in await told("status"):  # It tells of the last whole second.
                pass
        status = await told("status")
        assert status.startswith("tiny on fleetgate ")
        assert status.endswith(", paused, rate x10\n")
        code, _, wrong = await ran(tmp_path, "ctl", "--run", str(number), "revoke", "5")
        assert (code, "write '5%'" in wrong) == (2, True)
        assert "revoke 100%, 10/s: done to 10 of 10 devices in" in await told("revoke", "100%")
        for order in (("revoke", "5%"), ("storm",)):
            code, said, wrong = await ran(tmp_path, "ctl", "--run", str(number), *order)
            assert (code, said, "nothing was done, for no device is connected" in wrong) == (2, "", True)
        assert "ending" in await told("stop")
        out, err = await last_words(process)
        assert process.returncode == 130, err
    document = json.loads(out)
    assert document["counts"]["revoked"] == 12
    assert document["counts"]["lost"] == 0
    assert [mark["what"] for mark in document["markers"] if mark["kind"] == "ctl"] == [
        "revoke 20%, 10/s", "storm 100%", "rate x10", "pause", "revoke 100%, 10/s", "revoke 5%, 10/s", "storm 100%",
    ]  # fmt: skip


async def test_a_worker_that_dies_ends_the_run_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "long.toml").write_text(LONG.partition("[[stages]]\ncommand")[0] + '[[stages]]\nhold = "10m"\n')
    arguments = ("run", str(tmp_path / "long.toml"), "--self-hosted", "--workers", "2")
    async with fleet_sim(tmp_path, *arguments) as process:
        await until_said(process, "hold 600 s")
        (run,) = left_running(tmp_path, "device_sim", "long.toml")
        victim, *others = [pid for pid in children_of(run) if "device_sim.run.worker" in command_of(pid)]
        assert len(others) == 1
        os.kill(victim, signal.SIGKILL)
        _, err = await last_words(process)
        assert process.returncode == 1
        assert b"worker 1 ended with status -9" in err
        assert b"Traceback" not in err
        assert not os.path.exists(f"/proc/{others[0]}")  # noqa: ASYNC240, PTH110
    assert not left_in(tmp_path)


def children_of(parent: int) -> list[int]:
    return sorted(map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()))


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


async def test_a_run_that_was_killed_has_left_what_it_saw(tmp_path: Path, stage: Stage) -> None:
    fleet, out = tmp_path / "fleet", tmp_path / "out"
    assert (await ran(tmp_path, *enrol(stage, fleet, "--devices", "12")))[0] == 0
    (tmp_path / "long.toml").write_text(LONG)
    where = ("--fleet", str(fleet), "--broker", f"127.0.0.1:{stage.broker.port}", "--server-name", "localhost")
    workers = ("--workers", "2")
    arguments = ("run", str(tmp_path / "long.toml"), *where, "--output", str(out), *workers)
    out.mkdir()
    for name in ("report.json", "report.html", "junit.xml", "notes.txt"):
        (out / name).write_text("PASS")
    async with fleet_sim(tmp_path, *arguments, afresh=True) as process:
        async with asyncio.timeout(120):
            while not (so_far := received(out)):
                await asyncio.sleep(0.05)
        process.kill()
        await process.wait()
    assert sorted(each.name for each in out.iterdir()) == ["notes.txt", "progress.jsonl"]
    (out / "notes.txt").unlink()
    code, shown, err = await ran(tmp_path, "report", str(out), "--html", str(tmp_path / "page.html"))
    assert (code, "INTERRUPTED" in shown) == (0, True), shown + err
    assert "the run was cut off after" in shown
    assert "nothing is judged" in " ".join(shown.split())
    document = read(out, document_so_far)
    assert document["counts"]["received"] >= so_far > 0
    assert document["stages"]
    with (out / "progress.jsonl").open("a") as file:
        file.write('{"sample": {"at"')  # As far as it came.
    assert read(out, document_so_far) == document
    (tmp_path / "tiny.toml").write_text(TINY)
    again = ("run", str(tmp_path / "tiny.toml"), *where, "--output", str(out))
    # Whom the run that was killed has revoked is gone; who was in the middle of it may be.
    code, shown, err = await ran(tmp_path, *again, "--devices", "4", *workers)
    assert ("removed what a command that was killed has left" in err, left_in(tmp_path)) == (True, [])
    written = ["junit.xml", "report.html", "report.json", "timeline.csv"]
    assert sorted(each.name for each in out.iterdir()) == written, (code, shown + err)


def received(directory: Path) -> int:
    """Return how many messages the run that writes to *directory* has received so far."""
    if not (directory / "progress.jsonl").exists():
        return 0
    try:
        return int(read(directory, document_so_far)["counts"]["received"])
    except UnreadableReport:  # Its first line is being written.
        return 0


async def test_ctrl_c_once_drains_and_reports(tmp_path: Path) -> None:
    (tmp_path / "long.toml").write_text(LONG)
    async with fleet_sim(tmp_path, "run", str(tmp_path / "long.toml"), "--self-hosted", "--json") as process:
        await until_said(process, "hold 600 s")
        process.send_signal(signal.SIGINT)
        out, err = await last_words(process)
        assert process.returncode == 130, err.decode()
        assert b"Traceback" not in err
        document = json.loads(out)
        assert (document["verdict"], document["interrupted"]) == ("INTERRUPTED", "SIGINT")
        assert document["counts"]["lost"] == 0
        assert document["counts"]["received"] > 0


async def test_a_reader_that_has_left_does_not_keep_the_report_from_being_written(tmp_path: Path) -> None:
    text = TINY.partition("[[stages]]\ncommand")[0]
    (tmp_path / "short.toml").write_text(text)
    reading, writing = os.pipe()
    os.close(reading)
    process = await asyncio.create_subprocess_exec(
        forking_python(), "-m", "device_sim", "run", str(tmp_path / "short.toml"), "--self-hosted",
        "--output", str(tmp_path / "out"),
        cwd=SOURCE, env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(SOURCE)},
        stdout=writing, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    os.close(writing)
    _, err = await last_words(process)
    assert (process.returncode, b"Traceback" in err) == (1, False), err.decode()
    assert read(tmp_path / "out" / "report.json")["verdict"] == "PASS"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (("[thresholds]", '[thresholds]\nadmitted = ["p99 < 0.001"]'), 99),
        (("lag_p99_ms = 60000", "lag_p99_ms = 0.0001"), 3),
    ],
)
async def test_exit_codes_tell_what_was_wrong(tmp_path: Path, change: tuple[str, str], code: int) -> None:
    text = TINY.partition("[[stages]]\ncommand")[0] + "[thresholds]\n"
    assert change[0] in text
    (tmp_path / "changed.toml").write_text(text.replace(*change))
    returned, _, err = await ran(tmp_path, "run", str(tmp_path / "changed.toml"), "--self-hosted")
    assert returned == code, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "smok", "--self-hosted"), "there is no such scenario"),
        (("run", "smoke"), "--self-hosted"),
        (("run", "smoke", "--self-hosted", "--fleet", "x"), "--self-hosted"),
        (("enrol", "x", "--devices", "0"), "--devices"),
    ],
)
async def test_wrong_usage_is_told_apart(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    code, _, err = await ran(tmp_path, *arguments)
    assert code == 2
    assert words in err


async def test_a_broker_that_is_not_there_is_named(tmp_path: Path) -> None:
    authority = Authority()
    fleet = FleetDirectory.create(tmp_path / "fleet", Origin(), authority.pem, "backend")
    with fleet.changing():
        fleet.keep(authority.issue("backend", role=Role.SERVICE, group=None))
        fleet.keep(authority.issue("meter-1"))
    (tmp_path / "ramp.toml").write_text('name = "ramp"\ndevices = 1\n[[stages]]\nramp = { rate = 10 }\n')
    for broker, words in (
        ("localhost:1", "backend is not let in at 127.0.0.1:1: tcp refused (nobody listens there)"),
        ("nobody.invalid", "nobody.invalid is not found"),
    ):
        code, _, err = await ran(
            tmp_path, "run", str(tmp_path / "ramp.toml"), "--fleet", str(fleet.path), "--broker", broker
        )
        assert (code, words in " ".join(err.split())) == (1, True), err


async def test_the_scenarios_are_listed(tmp_path: Path) -> None:
    code, out, _ = await ran(tmp_path, "scenarios")
    assert code == 0
    assert {"smoke", "revoke-storm", "soak"} <= {line.split()[0] for line in out.splitlines()}
