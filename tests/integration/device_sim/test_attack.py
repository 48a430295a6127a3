"""`fleet-sim attack` and `revocation` as a user runs them: against our own broker, and against one that is not ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from device_sim.attack.catalogue import CATALOGUE
from device_sim.attack.delivery_list import OWED
from device_sim.attack.mosquitto_target import mosquitto
from device_sim.attack.verdict import Verdict
from provisioning.pki.keys import key_to_pem
from provisioning.pki.pem import pem_of
from tests.support.broker_process import BrokerProcess
from tests.support.last_words import last_words
from tests.support.pki import Pki
from tests.support.programs import AFRESH, forking_python

SOURCE = Path(__file__).parents[3]
PATIENCE = 600.0

# What our broker lets in and should not; the test fails as soon as one is mended, or another is found.
KNOWN_FINDINGS: list[str] = []
# What cannot be played here.
NOT_PLAYED: list[str] = []
# What the broker calls it, beside the answer, where the answer alone could mean something else.
NAMED = {"21-unregistered": "OCSP_UNKNOWN", "21-suspended": "SUSPENDED", "5-revoked": "REVOKED"}


async def simulator(tmp_path: Path, *arguments: str, afresh: bool = False) -> tuple[int, str, str]:
    """Run the simulator with its temporary files under *tmp_path*; return exit code, output and errors.

    *afresh*: the broker that it starts has an interpreter of its own, and the memory and time that are looked at.
    """
    process = await asyncio.create_subprocess_exec(
        forking_python(),
        "-m",
        "device_sim",
        *arguments,
        cwd=SOURCE,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(SOURCE)} | ({AFRESH: "broker"} if afresh else {}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await last_words(process, PATIENCE)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def started(directory: Path) -> bool:
    return any(directory.glob("*/logs/broker-1.log"))


def verdicts(path: Path, code: int, out: str, err: str) -> dict[str, list[str]]:
    assert path.exists(), f"it ended with {code} before it judged anything, and had said:\n{out}\n{err}"
    found: dict[str, list[str]] = {verdict.value: [] for verdict in Verdict}
    for case in json.loads(path.read_text())["cases"]:
        found[case["verdict"]].append(case["case"])
    return found


@pytest.mark.timeout(700)
async def test_our_broker_refuses_the_whole_catalogue(tmp_path: Path) -> None:
    work, document, junit = tmp_path / "work", tmp_path / "attack.json", tmp_path / "attack.xml"
    work.mkdir()
    code, out, err = await simulator(work, "attack", "--json", str(document), "--junit", str(junit), afresh=True)
    found = verdicts(document, code, out, err)
    assert found["fail"] == KNOWN_FINDINGS, out
    assert found["warn"] == [], out
    assert code == (4 if KNOWN_FINDINGS else 3 if found["invalid"] else 0)
    assert f"{len(CATALOGUE) + 2} of {len(CATALOGUE) + 2} cases tried: " in err
    assert {case.name for case in CATALOGUE} <= {name for names in found.values() for name in names}
    assert found["skip"] == NOT_PLAYED, out
    reasons = {each["case"]: each["observed"]["reason_string"] for each in json.loads(document.read_text())["cases"]}
    assert {name: reasons[name].partition(":")[0] for name in NAMED} == NAMED
    assert reasons["16-any-byte"].count("times") >= 1
    suite = ET.parse(junit).getroot()  # noqa: S314 - we wrote it
    assert suite.get("failures") == str(len(KNOWN_FINDINGS))
    assert "Traceback" not in err
    assert names_in(work) == []


@pytest.mark.timeout(700)
async def test_no_way_around_a_revocation_works_on_our_broker(tmp_path: Path) -> None:
    work, document = tmp_path / "work", tmp_path / "revocation.json"
    work.mkdir()
    code, out, err = await simulator(work, "revocation", "--json", str(document))
    found = verdicts(document, code, out, err)
    assert (found["fail"], found["warn"], code) == ([], [], 3 if found["invalid"] else 0), out + err
    assert found["skip"] == []
    resumed = [case for case in json.loads(document.read_text())["cases"] if "-resumed-" in case["case"]]
    assert len(resumed) == 4
    assert all(case["observed"]["reason_string"].startswith("TLS session resumed; REVOKED") for case in resumed)


@pytest.mark.timeout(700)
async def test_our_broker_gives_good_devices_what_it_owes_them(tmp_path: Path) -> None:
    work, document = tmp_path / "work", tmp_path / "delivery.json"
    work.mkdir()
    code, out, err = await simulator(work, "delivery", "--json", str(document))
    found = verdicts(document, code, out, err)
    assert (found["fail"], found["warn"], found["skip"]) == ([], [], []), out + err
    assert code == (3 if found["invalid"] else 0)
    assert {case.name for case in OWED} <= {name for names in found.values() for name in names}
    assert names_in(work) == []


@pytest.mark.timeout(700)
async def test_mosquitto_is_started_and_judged_by_what_it_claims(tmp_path: Path) -> None:
    work, document = tmp_path / "work", tmp_path / "attack.json"
    work.mkdir()
    picked = "1,2,3-expired*,5-revoked,6-revoked-live,17,19-other-client-id,35-other-topic-qos1,44-good"
    code, out, err = await simulator(
        work, "attack", "--against", "mosquitto", "--only", picked, "--json", str(document)
    )
    found = verdicts(document, code, out, err)
    # It leaves a connected session alone when the CRL is read again.
    assert found["fail"] == ["6-revoked-live"], out + err
    assert found["warn"] == [], out
    assert found["skip"] == ["19-other-client-id", "44-good"]
    assert code == 4


@pytest.mark.timeout(700)
async def test_a_broker_without_mqtt5_is_judged_by_what_its_version_can_say(tmp_path: Path) -> None:
    work, document = tmp_path / "work", tmp_path / "attack.json"
    work.mkdir()
    picked = "1,2,3-expired,5-revoked,6,19-other-client-id,34-property-twice,35-other-topic-qos1,36-everything"
    code, out, err = await simulator(
        work, "attack", "--against", "nats-server", "--only", picked, "--json", str(document)
    )
    found = verdicts(document, code, out, err)
    assert (found["fail"], found["warn"], code) == ([], [], 3 if found["invalid"] else 0), out + err
    assert found["skip"] == ["6-revoked-instances", "6-revoked-session", "19-other-client-id", "34-property-twice"]
    answers = {case["case"]: case["observed"] for case in json.loads(document.read_text())["cases"]}
    assert answers["1-good"]["answer"] == "mqtt CONNACK 0"
    assert answers["6-revoked-live"]["answer"] == "mqtt closed"
    assert answers["34-property-twice"] is None
    assert names_in(work) == []


@pytest.mark.timeout(700)
async def test_rabbitmq_runs_beside_any_other_and_leaves_nothing_behind(tmp_path: Path) -> None:
    work, document = tmp_path / "work", tmp_path / "attack.json"
    work.mkdir()
    code, out, err = await simulator(
        work, "attack", "--against", "rabbitmq", "--only", "1,3-expired,6-revoked-live-311,19-other-client-id",
        "--json", str(document),
    )  # fmt: skip  # Not "5": how soon Erlang reads a revocation list on a busy machine is not what is asked.
    found = verdicts(document, code, out, err)
    assert (found["fail"], found["warn"], code) == ([], [], 3 if found["invalid"] else 0), out + err
    assert names_in(work) == []
    # What Erlang has started is killed with its session, and is waited for by init: on a busy machine that takes time.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(120):
            while processes_that_name(work):
                await asyncio.sleep(0.05)
    assert processes_that_name(work) == []


def processes_that_name(directory: Path) -> list[str]:
    """Return the command lines of what still runs in *directory*: a broker, its children, epmd."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue  # It has ended, or is another's.
        if str(directory).encode() in told:
            found.append(told.decode(errors="replace")[:200])
    return found


@pytest.mark.timeout(700)
async def test_a_broker_that_runs_already_is_attacked_with_its_ca_and_its_capability_file(tmp_path: Path) -> None:
    broker, work = tmp_path / "broker", tmp_path / "work"
    broker.mkdir()
    work.mkdir()
    async with mosquitto(broker) as target:
        (tmp_path / "ca.key").write_bytes(key_to_pem(target.issuer.key))
        (tmp_path / "claims.toml").write_text(
            f"""
            name = "theirs"
            supports = ["mqtt5", "revocation"]
            [revocation]
            crl_file = "{broker}/crl-of-one.pem"
            reload = ["sh", "-c", "cat {broker}/crl-of-one.pem {broker}/other.pem > {broker}/crl.pem; kill -HUP {target.broker_pid}"]
            """  # noqa: E501
        )
        assert target.other_issuer is not None
        (broker / "other.pem").write_bytes(target.other_issuer.crl(()))
        before = target.issuer.crl(())
        (broker / "crl-of-one.pem").write_bytes(before)
        code, out, err = await simulator(
            work, "attack", "--only", "1,3-expired*,5-revoked,8", "--json", str(tmp_path / "attack.json"),
            "--host", target.endpoint.host, "--port", str(target.endpoint.port), "--cafile", str(broker / "ca.pem"),
            "--ca-cert", str(broker / "ca.pem"), "--ca-key", str(tmp_path / "ca.key"),
            "--capabilities", str(tmp_path / "claims.toml"),
        )  # fmt: skip
        assert (broker / "crl-of-one.pem").read_bytes() == before
    assert code == 0, out + err
    found = verdicts(tmp_path / "attack.json", code, out, err)
    assert found["pass"] == [
        "1-good",
        "1-good-311",
        "1-own-tls",
        "3-expired",
        "3-expired-1s",
        "5-revoked",
        "8-self-signed",
        "0-alive",
        "0-stays",
    ]


@pytest.mark.parametrize(
    ("bans_after", "verdict", "told"),
    [
        (60, "pass", f"{'21-unregistered':38}  -  (not applicable: with the CA's key alone"),
        (0, "fail", "failed for want of: flapping_alert (18-flapping)"),
    ],
)
async def test_our_broker_as_shipped_is_held_to_what_it_does(
    tmp_path: Path, bans_after: int, verdict: str, told: str
) -> None:
    pki, work = Pki(), tmp_path / "work"
    work.mkdir()
    (tmp_path / "ca.pem").write_bytes(pem_of(pki.issuing.certificate))
    (tmp_path / "ca.key").write_bytes(key_to_pem(pki.issuing.key))
    with BrokerProcess.with_files(tmp_path / "b", pki, limits__flapping_count=bans_after) as broker:
        code, out, err = await simulator(
            work, "attack", "--only", "18-flapping,21-unregistered", "--json", str(tmp_path / "attack.json"),
            "--broker", f"mqtts://localhost:{broker.port}", "--cafile", str(tmp_path / "b" / "anchors.pem"),
            "--ca-cert", str(tmp_path / "ca.pem"), "--ca-key", str(tmp_path / "ca.key"),
        )  # fmt: skip
    found = verdicts(tmp_path / "attack.json", code, out, err)
    assert (found[verdict][0], found["skip"]) == ("18-flapping", ["21-unregistered"])
    assert code == (4 if verdict == "fail" else 0)
    assert told in out + err
    assert ("failed for want of" in err) == (verdict == "fail")


async def test_against_a_broker_that_is_not_there_nothing_is_judged(tmp_path: Path) -> None:
    from tests.support.authority import Authority

    authority = Authority()
    (tmp_path / "ca.pem").write_text(authority.pem)
    (tmp_path / "ca.key").write_bytes(key_to_pem(authority._key))
    code, out, err = await simulator(
        tmp_path, "attack", "--only", "3-expired", "--host", "127.0.0.1", "--port", "1",
        "--cafile", str(tmp_path / "ca.pem"), "--ca-cert", str(tmp_path / "ca.pem"),
        "--ca-key", str(tmp_path / "ca.key"),
    )  # fmt: skip
    assert (code, out) == (1, "")
    assert "a good device is not let in: tcp refused (nobody listens there); start the broker, or name where it" in err
    assert "; so no refusal would mean anything, and nothing was tried" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["attack", "--only", "99"], "--only 99: no such case"),
        (["attack", "--host", "127.0.0.1"], "give --cafile, and --ca-cert and --ca-key, or --provisioning"),
        (["attack", "--broker", "localhost", "--ca-cert", "x"], "--ca-cert and --ca-key go together"),
        (["attack", "--broker", "localhost", "--cert", "x"], "--cafile, --cert and --key go together: name all four"),
        (["attack", "--provisioning", "https://localhost"], "for a broker given by --broker"),
        (["attack", "--ca-key", "x"], "Error: --ca-key: for a broker given by --broker"),
    ],
)
async def test_wrong_usage_is_explained(tmp_path: Path, arguments: list[str], words: str) -> None:
    code, _, err = await simulator(tmp_path, *arguments)
    assert code == 2
    assert words in " ".join(err.replace("│", " ").split())


async def test_the_list_shows_every_case_and_starts_nothing(tmp_path: Path) -> None:
    code, out, _ = await simulator(tmp_path, "attack", "--list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [case.name for case in CATALOGUE]
    assert names_in(tmp_path) == []


async def test_an_interruption_leaves_nothing_behind(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        forking_python(), "-m", "device_sim", "attack", cwd=SOURCE,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(SOURCE)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(120):
            while not started(tmp_path):
                await asyncio.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = await last_words(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 130
    assert "stopped by SIGINT" in err.decode()
    assert "Traceback" not in err.decode()
    assert not out or f" of {len(CATALOGUE) + 2} cases: " in out.decode()  # It was stopped before the first, or later.
    assert names_in(tmp_path) == []
