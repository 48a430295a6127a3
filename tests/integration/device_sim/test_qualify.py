"""`fleet-sim qualify` judges three real devices: a good one, Debian's mosquitto_sub, and one that trusts everybody."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from device_sim.qualify.papers import ServerStaple
from device_sim.qualify.stages import STAGES
from device_sim.stage.foreign_process import free_port
from tests.support.last_words import last_words
from tests.support.needed import needed
from tests.support.programs import forking_python

SOURCE = Path(__file__).parents[3]
PATIENCE = 240
WINDOW = ["--window", "10", "--parallel", "20"]
FEWER = ["--window", "8", "--parallel", "11"]
"""For a device that hammers: more of them take the processor from each other, and it looks like pauses."""


async def qualify(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, tuple[str, str]], str]:
    """Run it; return exit code, verdict and reason by line, and all that was said."""
    work, document = tmp_path / "work", tmp_path / "verdict.json"
    work.mkdir()
    process = await asyncio.create_subprocess_exec(
        forking_python("device_sim"), "-m", "device_sim", "qualify", *arguments, "--json", str(document),
        cwd=SOURCE, env={**os.environ, "TMPDIR": str(work), "PYTHONPATH": str(SOURCE)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await last_words(process, PATIENCE)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = out.decode() + err.decode()
    assert process.returncode is not None
    assert "Traceback" not in said
    assert list(work.iterdir()) == []
    lines = json.loads(document.read_text())["cases"] if document.exists() else []
    return process.returncode, {line["case"]: (line["verdict"], line["why"]) for line in lines}, said


def device(name: str, placeholders: str) -> list[str]:
    """Return the options for a device that is forked: there are as many as stages."""
    return ["--exec", f"{shlex.quote(forking_python('tests'))} -m tests.support.devices.{name} {placeholders}"]


def code_of(verdicts: Mapping[str, tuple[str, str]]) -> int:
    """Return the exit code for a device without a fault: on a machine that others hold there may be no verdict."""
    return 3 if any(verdict == "invalid" for verdict, _ in verdicts.values()) else 0


def _new(place: Path) -> Path:
    place.mkdir()
    return place


async def test_a_good_device_passes_every_line(tmp_path: Path) -> None:
    good = device("good", "{host} {port} {cafile} {crl} {cert} {key} {client_id} {topic} {est_url}")
    code, verdicts, said = await qualify(tmp_path, *WINDOW, *good)
    # On a machine that others hold there may be no verdict on it; a bad one there never is.
    starved = {line for line, (verdict, _) in verdicts.items() if verdict == "invalid"}
    assert code == code_of(verdicts), said
    assert {line: each for line, each in verdicts.items() if each[0] not in {"pass", "skip", "invalid"}} == {}, said
    if "good.connects" in starved:
        return
    # It speaks MQTT 3.1.1, publishes at QoS 1, subscribes to nothing, and asks no broker for a staple. It offers no
    # cipher suite without a certificate, and need not refuse a server that has none.
    assert {line for line, verdict in verdicts.items() if verdict[0] == "skip"} | starved == {
        "no-pubcomp.releases-again", "limits.receive-maximum", "limits.server-keep-alive",
        "small-packets.maximum-packet-size", "aliases.topic-aliases", "commands.acknowledges",
        "server-anonymous.says-why", "no-suback.subscribes-again", "session-lost.subscribes-again",
        *(f"{stage.name}.sends-nothing" for stage in STAGES if stage.conduct.staple is not ServerStaple.GOOD),
    } | starved, said  # fmt: skip
    assert {line.partition(".")[0] for line in verdicts} == {stage.name for stage in STAGES} | {"reconnect"}
    # What it was judged by is there, and not only the lines that are easy: all of a stage, unless it was too late
    # in one of them to be judged by the others.
    unjudged = {line.partition(".")[0] for line in starved}
    assert {
        each
        for each in (
            "server-revoked-ca.sends-nothing", "no-puback.marks-duplicate", "half-open.notices",
            "renew-503.respects-retry-after", "renew-other-ca.sends-nothing", "renew-other-key.keeps-the-old-one",
            "reconnect.waits-grow", "reconnect.waits-scatter",
        )
        if each.partition(".")[0] not in unjudged
    } <= set(verdicts)  # fmt: skip


async def test_a_careless_device_fails_on_the_lines_that_it_earns(tmp_path: Path) -> None:
    junit = tmp_path / "verdict.xml"
    careless = device("careless", "{host} {port} {cert} {key} {client_id} {topic}")
    code, verdicts, said = await qualify(tmp_path, *FEWER, *careless, "--junit", str(junit))
    failed = {line for line, (verdict, _) in verdicts.items() if verdict == "fail"}
    hammered = {
        "connack-not-authorized.comes-back", "connack-busy.comes-back", "drop-tcp.comes-back", "drop-tls.comes-back",
        "drop-connect.comes-back", "drop-connack.comes-back", "drop-request.comes-back", "drop-hello.comes-back",
        "connack-rare.comes-back", "disconnects.comes-back",
    }  # fmt: skip
    assert failed - hammered == {
        "server-expired.sends-nothing", "server-wrong-name.sends-nothing", "server-other-ca.sends-nothing",
        "server-not-yet-valid.sends-nothing", "server-self-signed.sends-nothing", "server-for-clients.sends-nothing",
        "server-anonymous.sends-nothing", "old-tls.sends-nothing", "half-open.notices",
    }, said  # fmt: skip
    for line in hammered - failed:  # It has no core: what starves for a tenth of a second has waited, seen from here.
        assert verdicts[line][0] == "invalid" or re.search(rf"{re.escape(line)} +device \d attempts?", said), said
    if not hammered & failed:  # On a machine that others hold: once more, alone.
        alone = ["--window", "8", "--parallel", "1", "--only", "good,drop-connect"]
        _, again, said_again = await qualify(_new(tmp_path / "alone"), *alone, *careless)
        verdict, why = again["drop-connect.comes-back"]
        assert verdict == "invalid" or "hammers" in why, said_again
    assert all("hammers" in verdicts[line][1] for line in hammered & failed), said
    assert code == 4
    assert verdicts["server-expired.sends-nothing"][1].startswith("it sent CONNECT in ")
    assert verdicts["good.keep-alive"][0] == "warn"
    assert verdicts["good.connects"][0] == "pass"
    assert ET.parse(junit).getroot().get("failures") == str(len(failed))  # noqa: S314 - we wrote it


async def test_mosquitto_sub_verifies_and_gives_up(tmp_path: Path) -> None:
    needed("mosquitto_sub")
    credential = "--cafile {cafile} --cert {cert} --key {key}"
    command = f"mosquitto_sub -h localhost -p {{port}} {credential} -i {{client_id}} -t {{commands}} -k 10"
    # Nothing of renewals and staples: it has neither.
    stages = "good,server-*,old-tls,no-*,conn*,drop-*,commands,session-lost,half-open,slow"
    code, verdicts, said = await qualify(tmp_path, *WINDOW, "--only", stages, "--exec", command)
    starved = [line for line, (verdict, _) in verdicts.items() if verdict == "invalid"]
    assert code == code_of(verdicts), said
    for stage in ("server-expired", "server-wrong-name", "server-other-ca", "old-tls"):
        assert verdicts[f"{stage}.sends-nothing"][0] in {"pass", "invalid"}, said
    if "server-expired.comes-back" not in starved:
        assert verdicts["server-expired.comes-back"] == ("warn", "it ended with status 14: it gave up"), said
    assert verdicts["no-puback.resends"][0] == ("invalid" if "no-puback.resends" in starved else "skip")
    if "half-open.notices" not in starved:
        # It leaves after two keep alives: twice the window, so that no slow machine sees that happen.
        assert "its keep alive of 10 s takes a --window of 2" in verdicts["half-open.notices"][1]


async def test_mosquitto_as_a_bridge_checks_staples_all_but_whom_they_are_about(tmp_path: Path) -> None:
    """`bridge_require_ocsp` of 2.0 believes a staple about any certificate, as curl did until 7.74 (CVE-2020-8286)."""
    needed("mosquitto")
    script = tmp_path / "bridge.sh"
    settings = (
        "listener 0 s", "user $(id -un)", "connection c", "address localhost:$2", "bridge_cafile $3",
        "bridge_certfile $4", "bridge_keyfile $5", "remote_clientid d", "try_private false", "notifications false",
        "topic # out 1", "restart_timeout 1 5", "bridge_require_ocsp true",
    )  # fmt: skip
    lines = " ".join(f'"{setting}"' for setting in settings)
    script.write_text(f'cd "$1" && printf "%s\\n" {lines} > m.conf && exec mosquitto -c m.conf\n')
    command = f"sh {shlex.quote(str(script))} {{dir}} {{port}} {{cafile}} {{cert}} {{key}}"
    code, verdicts, said = await qualify(tmp_path, *WINDOW, "--only", "good,staple-*", "--exec", command)
    if verdicts["good.connects"][0] == "invalid":
        return
    judged = {line: verdict for line, (verdict, _) in verdicts.items() if line.endswith("sends-nothing")}
    # What has not come on a machine that others hold is no verdict.
    assert {line for line, verdict in judged.items() if verdict == "fail"} <= {"staple-other-certificate.sends-nothing"}
    assert set(judged.values()) - {"invalid"} == {"pass", "fail"}, said
    assert code == 4


async def test_hardware_is_told_where_to_connect_and_keeps_its_credential(tmp_path: Path) -> None:
    port = free_port()
    place = tmp_path / "given"
    judged = asyncio.create_task(
        qualify(
            tmp_path, "--port", str(port), "--dir", str(place), "--window", "2", "--only", "good,server-other-ca,renew"
        )
    )
    while not (place / "device.key").exists():
        await asyncio.sleep(0.05)
    running = await asyncio.create_subprocess_exec(
        forking_python("tests"), "-m", "tests.support.devices.good", "127.0.0.1", str(port),
        *(str(place / name) for name in ("ca.crt", "crl.pem", "device.crt", "device.key")),
        "device-under-test", "fleet/qualified/device-under-test/telemetry", "",
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )  # fmt: skip
    try:
        code, verdicts, said = await judged
    finally:
        running.kill()
        await running.wait()
    assert f"Let the device connect to 127.0.0.1:{port} as device-under-test" in said
    assert verdicts["server-other-ca.sends-nothing"][0] == "pass", said
    assert verdicts["renew.tried"] == ("skip", "its certificate would have to be replaced")
    assert code == code_of(verdicts)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "no-such"], "--only no-such: no such stage"),
        (["--exec", "device {password}"], "'password' is no placeholder: there are {host} {port}"),
        (["--exec", "device 'x"], "close the quotation"),
        (["--client-id", "no spaces"], "name 'no spaces'"),
        (["--dir", "docs"], "--dir docs exists: give a new directory"),
    ],
)
async def test_wrong_usage_is_explained(tmp_path: Path, arguments: list[str], words: str) -> None:
    code, _, said = await qualify(tmp_path, *arguments)
    assert code == 2
    assert words in " ".join(said.replace("│", " ").split())


@pytest.mark.parametrize("stages", ["good", "drop-*"])
async def test_a_program_that_is_not_there_is_an_error(tmp_path: Path, stages: str) -> None:
    code, _, said = await qualify(tmp_path, "--exec", "/no/such/program", "--only", stages, "--parallel", "4")
    assert code == 1
    assert "fleet-sim: --exec: /no/such/program cannot be run: No such file or directory" in said


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("sh -c 'echo no such option; exit 3'", "it ended with status 3; it said: no such option"),
        ("sh -c 'kill -9 $$'", "it ended by SIGKILL, and said nothing"),
        ("openssl s_client -connect 127.0.0.1:{port}", "it ended with status 0"),
    ],
)
async def test_nobody_waits_for_a_program_that_has_ended_and_its_last_words_are_told(
    tmp_path: Path, program: str, why: str
) -> None:
    # A window is longer than this test's patience.
    code, verdicts, _ = await qualify(tmp_path, "--exec", program, "--window", "600", "--only", "good,renew")
    (verdict, told) = verdicts["good.connects"]
    assert (code, verdict) in {(1, "fail"), (3, "invalid")}
    assert told.startswith(why)


async def test_what_a_program_has_left_running_is_the_device(tmp_path: Path) -> None:
    needed("mosquitto_sub")
    command = "mosquitto_sub -h localhost -p {port} --cafile {cafile} --cert {cert} --key {key} -i d -t {commands}"
    code, verdicts, said = await qualify(tmp_path, "--exec", f"sh -c '{command} &'", "--window", "2", "--only", "good")
    assert (code, verdicts["good.connects"][0]) == (code_of(verdicts), "pass"), said


async def test_the_list_names_every_stage(tmp_path: Path) -> None:
    code, _, said = await qualify(tmp_path, "--list")
    assert code == 0
    assert [line.split()[0] for line in said.splitlines()] == [stage.name for stage in STAGES]
