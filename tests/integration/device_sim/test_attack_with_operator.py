"""`fleet-sim attack` at a fleet that is somebody's: it enrols devices of its own, and leaves none of them behind."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer

from device_sim.attack import attacking
from device_sim.attack.capabilities import EVERYTHING
from device_sim.attack.catalogue import CATALOGUE
from device_sim.attack.desk import Ended, EnrolmentDesk
from device_sim.attack.given import Given
from device_sim.attack.issuer import Issuer
from device_sim.attack.target import SigningRegistrar, Target
from device_sim.credentials.credential import HeldCredential, enrol
from device_sim.link.tls_dial import Endpoint
from device_sim.report import ExitCode
from device_sim.stage.stage import Stage
from device_sim.trouble.proxy import Proxy
from device_sim.trouble.trouble import Trouble
from provisioning.client.enrolment import EnrolmentOperatorClient
from provisioning.client.est import EstClient
from provisioning.client.operator import ServiceUnavailable
from provisioning.pki.keys import key_to_pem, write_private
from provisioning.pki.role import Role
from provisioning.pki.tls import CredentialFiles
from tests.support.authority import Authority
from tests.support.broker_process import BrokerProcess
from tests.support.fleet_sim import fleet_sim
from tests.support.last_words import last_words
from tests.support.pki import Pki

OURS = {"admin", "provisioning", "broker-1", "meter-1"}
NEED_AN_OPERATOR = (
    "5-revoked,6-revoked-live,7-resumed,21-suspended,22-renewed-old-one,38-will-of-revoked,"
    "44-good,44-token-used,44-token-guessed,44-other-device,44-renews-revoked,"
    "44-asks-for-ca,44-asks-for-names,44-asks-for-usages,44-serials,"
    "44-revoked-operator,45-on-crl,45-crl-in-order,45-at-ocsp,45-never-issued,45-suspended"
)

HAVE_A_TOKEN_LEFT = ("44-token-guessed", "44-other-device")


def options(stage: Stage, credential: CredentialFiles | None = None, url: str | None = None) -> list[str]:
    operator = credential or stage.operator_credential
    return [
        "--broker", f"localhost:{stage.broker.port}", "--provisioning", url or stage.provisioning_url,
        "--cafile", str(stage.anchors), "--cert", str(operator.certificate), "--key", str(operator.key),
    ]  # fmt: skip


async def ended(process: asyncio.subprocess.Process) -> tuple[str, str]:
    out, err = await last_words(process)
    assert b"Traceback" not in err, err.decode()
    return out.decode(), err.decode()


async def enrolled(stage: Stage, name: str, **token: Any) -> HeldCredential:
    (issued,) = await stage.operator.create_tokens(device=name, role=Role(token.pop("role", "device")), **token)
    async with EstClient(stage.provisioning_url, stage.anchors) as est:
        return await enrol(est, name, issued.token, random.Random(1))


async def states(stage: Stage) -> dict[str, str]:
    return {party.name: party.state async for party in stage.operator.devices()}


def key_of_ca(stage: Stage, directory: Path) -> list[str]:
    """Return the options that name the CA: its key unencrypted, as the attack wants it."""
    ca = stage.directory / "provisioning"
    certificate = ca / "issuing-ca.crt"
    issuer = Issuer.load(certificate, ca / "issuing-ca.key", (stage.directory / "passphrase").read_bytes())
    write_private(directory / "ca.key", key_to_pem(issuer.key))
    return ["--ca-cert", str(certificate), "--ca-key", str(directory / "ca.key")]


async def attacked(tmp_path: Path, stage: Stage, *more: str) -> tuple[dict[str, Any], str]:
    """Attack, and return the document and what was said."""
    document = tmp_path / "attack.json"
    async with fleet_sim(tmp_path, "attack", *options(stage), "--json", str(document), *more) as process:
        out, err = await ended(process)
    assert process.returncode == 0, out + err
    return json.loads(document.read_text()), err


def judged(document: dict[str, Any], verdict: str) -> dict[str, str]:
    return {case["case"]: case["why"] for case in document["cases"] if case["verdict"] == verdict}


@pytest.mark.timeout(240)
async def test_what_takes_an_operator_is_tried_and_all_is_cleared_away(tmp_path: Path, stage: Stage) -> None:
    await enrolled(stage, "meter-1", group="meters")
    with_key, said = await attacked(
        tmp_path, stage, *key_of_ca(stage, tmp_path), "--only", f"{NEED_AN_OPERATOR},3-expired,21-unregistered,45"
    )
    assert judged(with_key, "pass").keys() == {
        *NEED_AN_OPERATOR.split(","), "3-expired", "45-staple", "0-alive", "0-stays",
    }  # fmt: skip
    # It gets in, where the broker does not ask who is registered, and does not claim to.
    assert judged(with_key, "skip") == {
        "21-unregistered": "not claimed: registry",
        "45-stale-revocations": "the tester does not control how this broker learns of revocations",
        "45-staple-of-revoked": "there is no other broker of the fleet that could be revoked",
    }
    now = await states(stage)
    assert {name for name, state in now.items() if state == "active"} == OURS
    first = now.keys() - OURS
    (word,) = {name.split("-")[1] for name in first}
    assert {name.startswith(f"attack-{word}-") for name in first} == {True}
    cleared_away = with_key["cleared_away"]
    assert {**cleared_away, "expired": ""} == {"revoked": len(first), "left": [], "why": "", "expired": ""}
    # All that it has left is off the CRL soon.
    issued = [each async for each in stage.operator.certificates() if each.device in first]
    # Two cases use no token that they have: the names end with it, of which nobody had a certificate.
    assert len(first - {each.device for each in issued}) == len(HAVE_A_TOKEN_LEFT)
    assert {each.state for each in issued} == {"revoked"}
    expired = datetime.fromisoformat(cleared_away["expired"])
    assert max(each.not_after for each in issued) <= expired < datetime.now(UTC) + timedelta(hours=2, minutes=1)
    assert f"{len(first)} devices and services of this attack are revoked, and off the CRL when they have" in said
    assert f"{expired:%Y-%m-%d %H:%M} UTC, at {stage.provisioning_url}" in said

    without, _ = await attacked(tmp_path, stage, "--only", "3-expired,5-revoked,10-ca-name,16-other-name")
    assert judged(without, "pass").keys() == {"5-revoked", "10-ca-name", "16-other-name", "0-alive", "0-stays"}
    assert "only the CA's key can sign it" in judged(without, "skip")["3-expired"]
    now = await states(stage)
    assert {name for name, state in now.items() if state == "active"} == OURS
    assert without["cleared_away"]["revoked"] == len(now.keys() - OURS - first) > 0


async def until_enrolled(stage: Stage, before: Collection[str] = ()) -> None:
    """Return when the attack has enrolled two: one to learn the CA's certificate from, and one that must get in."""
    async with asyncio.timeout(60):
        while len({name for name in await states(stage) if name.startswith("attack-")} - {*before}) < 2:
            await asyncio.sleep(0.05)  # It is another process that enrols.


@pytest.mark.timeout(240)
async def test_ctrl_c_clears_away_too_and_a_second_one_is_told_who_is_left(tmp_path: Path, stage: Stage) -> None:
    # Idle cases: they wait for ten seconds until the broker loses patience.
    idle = ("--only", "28,29,31")
    async with fleet_sim(tmp_path, "attack", *options(stage), *idle) as process:
        await until_enrolled(stage)
        process.send_signal(signal.SIGINT)
        _, err = await ended(process)
    assert process.returncode == 130, err
    now = await states(stage)
    assert {name for name, state in now.items() if state == "active"} == OURS - {"meter-1"}
    assert "of this attack are revoked" in err

    async with Proxy("127.0.0.1", urlsplit(stage.provisioning_url).port or 0) as way:
        url = f"https://127.0.0.1:{way.port}"
        async with fleet_sim(tmp_path, "attack", *options(stage, url=url), *idle) as process:
            await until_enrolled(stage, now)
            way.set(Trouble(blackhole=True))
            ending = asyncio.create_task(ended(process))
            while not ending.done():
                process.send_signal(signal.SIGINT)
                await asyncio.wait([ending], timeout=0.5)
            _, err = await ending
    assert process.returncode == 130, err
    assert f"interrupted again: perhaps not revoked at {url}: attack-" in err


@pytest.mark.timeout(240)
async def test_an_operator_who_may_not_revoke_enrols_nobody(tmp_path: Path, stage: Stage) -> None:
    held = await enrolled(stage, "anna", role="operator", operator_role="enroller")
    held.write(tmp_path, "anna")
    anna = CredentialFiles(tmp_path / "anna.crt", tmp_path / "anna.key")
    async with fleet_sim(tmp_path, "attack", *options(stage, anna), "--only", "5") as process:
        _, err = await ended(process)
    assert process.returncode == 1
    assert "anna is enroller and may not revoke what the cases enrol" in err
    assert (await states(stage)).keys() == {*OURS - {"meter-1"}, "anna"}


@pytest.mark.timeout(240)
async def test_where_no_broker_is_nobody_is_enrolled(tmp_path: Path, stage: Stage) -> None:
    elsewhere = ["--broker", f"localhost:{urlsplit(stage.provisioning_url).port}", *options(stage)[2:]]
    nowhere = ["--broker", "localhost:1", *options(stage)[2:]]
    before = await states(stage)
    async with fleet_sim(tmp_path, "attack", *nowhere, "--only", "5") as process:
        _, err = await ended(process)
    assert process.returncode == 1
    assert "(nobody listens there); start the broker, or name where it listens; nothing was enrolled" in err
    assert await states(stage) == before
    async with fleet_sim(tmp_path, "attack", *elsewhere, "--only", "5") as process:
        _, err = await ended(process)
    assert process.returncode == 1
    assert "it speaks TLS there, and no MQTT" in err


@asynccontextmanager
async def unreachable(directory: Path, url: str) -> AsyncIterator[EnrolmentDesk]:
    authority = Authority()
    authority.issue("admin", role=Role.OPERATOR, group=None).write(directory, "admin")
    credential = CredentialFiles(directory / "admin.crt", directory / "admin.key")
    async with EnrolmentOperatorClient(url, authority.pem, credential) as operator:
        yield EnrolmentDesk(url, directory / "unread.pem", operator)


async def test_a_service_that_is_gone_is_told_with_who_is_left(tmp_path: Path) -> None:
    async with unreachable(tmp_path, "https://127.0.0.1:1") as desk:
        with pytest.raises(ServiceUnavailable):
            await desk.token("attack-1-device", "attack-1")
        outcome = await desk.end()
    assert (outcome.revoked, outcome.left) == (0, ("attack-1-device",))
    assert outcome.text.startswith("0 devices and services of this attack are revoked, and off the CRL when they have ")
    assert "UTC, 1 perhaps not (" in outcome.text
    assert outcome.text.endswith("revoke attack-1-device")
    assert "https://127.0.0.1:1" in outcome.why


def test_whom_it_has_left_behind_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pki = Pki()
    with BrokerProcess.with_files(tmp_path / "b", pki) as broker:

        @asynccontextmanager
        async def opened(_directory: Path) -> AsyncIterator[Target]:
            issuer = Issuer(pki.issuing.certificate, pki.issuing.key)
            endpoint, anchors = Endpoint("127.0.0.1", broker.port, "localhost"), tmp_path / "b" / "anchors.pem"
            target = Target(EVERYTHING, endpoint, anchors, issuer, SigningRegistrar(issuer, None))
            yield target
            target.ended = Ended(1, ("attack-1-device",), "it is gone")

        monkeypatch.setattr(attacking, "chosen", lambda *_given, **_options: opened)
        with pytest.raises(typer.Exit) as left:
            attacking.judge("attack", CATALOGUE, Given(only=["1-good"]))
    assert left.value.exit_code == ExitCode.ERROR
    assert "0 fail" in capsys.readouterr().out
