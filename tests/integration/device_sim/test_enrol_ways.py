"""A fleet gets in by every way that a group may have, and goes on by it after an interruption."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from urllib.parse import urlsplit

from device_sim.credentials.fleet_directory import FleetDirectory
from device_sim.stage.stage import Stage
from provisioning.pki.keys import key_to_pem, write_private
from tests.support.authority import Authority
from tests.support.cut_connections import Way
from tests.support.fleet_sim import fleet_sim
from tests.support.last_words import last_words
from tests.support.manufacturer import Manufacturer

COUNT = 6
START = 150.0
"""Seconds until a run has begun to get in, on a machine that does much else."""


def enrolling(stage: Stage, fleet: Path, *more: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    return running(fleet, *whence(stage), *more)


def whence(stage: Stage, **different: str) -> list[str]:
    """Return the options that say where the fleet's certificates come from."""
    credential = stage.operator_credential
    named = {"provisioning": stage.provisioning_url, "cafile": str(stage.anchors)}
    named |= {"cert": str(credential.certificate), "key": str(credential.key)}
    return [word for name, value in (named | different).items() for word in (f"--{name}", value)]


def running(fleet: Path, *options: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    return fleet_sim(fleet.parent, "enrol", str(fleet), *options)


async def enrolled(stage: Stage, fleet: Path, *more: str, code: int = 0) -> str:
    return await _told(enrolling(stage, fleet, *more), code)


async def enrolled_with(fleet: Path, *options: str, code: int = 0) -> str:
    return await _told(running(fleet, *options), code)


async def _told(started: AbstractAsyncContextManager[asyncio.subprocess.Process], code: int) -> str:
    async with started as process:
        out, err = await last_words(process)
        said = out.decode() + err.decode()
        assert process.returncode == code, said
        assert "Traceback" not in said
        return said


async def group(stage: Stage, name: str, *ways: str, devices: int = COUNT) -> tuple[str, ...]:
    await stage.operator.create_group(name, {"ways": list(ways)})
    return ("--group", name, "--prefix", name, "--devices", str(devices))


def pem_of_claim(directory: Path, key: str, certificate: str) -> str:
    path = directory / "claim.pem"
    write_private(path, (key + certificate).encode())
    return str(path)


async def claim(stage: Stage, directory: Path, name: str, devices: int) -> str:
    issued = await stage.operator.create_claim(name, group=name, maximum_devices=devices, life_seconds=3600)
    return pem_of_claim(directory, issued.private_key, issued.certificate)


async def usable(stage: Stage, fleet: Path, devices: int = COUNT) -> None:
    """All devices are in the directory, with keys and certificates that are theirs, and active there."""
    found = FleetDirectory.read(fleet)
    assert len(found.devices) == devices
    active = {int(each.serial, 16) async for each in stage.operator.certificates() if each.state == "active"}
    for name in found.devices:
        held = found.credential(name)
        held.context(found.anchors)  # The key belongs to the certificate, or this fails.
        assert held.serial in active


async def test_every_way_leads_into_a_fleet(tmp_path: Path, stage: Stage) -> None:
    options = await group(stage, "plain", "token")
    await enrolled(stage, tmp_path / "plain", *options)
    await usable(stage, tmp_path / "plain")

    options = await group(stage, "batch", "claim")
    given = ("--way", "claim", "--claim", await claim(stage, tmp_path, "batch", COUNT))
    await enrolled(stage, tmp_path / "batch", *options, *given)
    await usable(stage, tmp_path / "batch")  # Activated: a certificate on trial is suspended.

    options = await group(stage, "acme", "manufacturer")
    acme = Manufacturer()
    (tmp_path / "acme.crt").write_text(acme.pem)
    write_private(tmp_path / "acme.key", key_to_pem(acme.key))
    made_by = (
        "--way", "manufacturer", "--manufacturer-cert", str(tmp_path / "acme.crt"),
        "--manufacturer-key", str(tmp_path / "acme.key"),
    )  # fmt: skip
    said = await enrolled(stage, tmp_path / "acme", *options, *made_by, code=1)
    assert "the service does not know this manufacturer" in said
    await stage.operator.add_manufacturer("acme", group="acme", certificate=acme.pem, name_prefix="acme-")
    await enrolled(stage, tmp_path / "acme", *options, *made_by)
    await usable(stage, tmp_path / "acme")

    options = await group(stage, "west", "listed+token")
    await enrolled(stage, tmp_path / "west", *options, "--way", "listed+token")
    await usable(stage, tmp_path / "west")
    assert len([device async for device in stage.operator.listed_devices("west") if device.key_sha256]) == COUNT

    options = await group(stage, "lab", "approval")
    await enrolled(stage, tmp_path / "lab", *options, "--way", "approval", "--approve")
    await usable(stage, tmp_path / "lab")

    said = await enrolled(stage, tmp_path / "shut", *await group(stage, "shut", "approval"), code=1)
    assert "WAY" in said.upper()

    said = await enrolled(stage, tmp_path / "none", "--way", "prayer", code=2)
    assert "prayer" in said
    said = await enrolled(stage, tmp_path / "none", "--way", "claim", code=2)
    assert "--claim" in said


async def test_an_interrupted_claim_is_gone_on_with(tmp_path: Path, stage: Stage) -> None:
    count = 100
    options = await group(stage, "batch", "claim", devices=count)
    # Exactly as many places as devices: who came back as somebody new would find none.
    given: tuple[str, ...] = ("--way", "claim", "--claim", await claim(stage, tmp_path, "batch", count))
    fleet, index = tmp_path / "fleet", tmp_path / "fleet" / "index.jsonl"
    # It goes no faster than this process, which passes on what it asks: so it is not done before that is seen.
    async with Way(urlsplit(stage.provisioning_url).port or 0) as way:
        given = (*given, *whence(stage, provisioning=f"https://localhost:{way.port}"))
        async with running(fleet, *options, *given, "--parallel", "2") as process:
            async with asyncio.timeout(START):
                while not index.exists() or index.stat().st_size < 1500:
                    await asyncio.sleep(0.01)
            process.send_signal(signal.SIGINT)
            await last_words(process)
            assert process.returncode == 130
        assert len(FleetDirectory.read(fleet).devices) < count
        await enrolled_with(fleet, *options, *given)
    await usable(stage, fleet, count)


async def test_requests_wait_for_an_operator_and_survive_an_interruption(tmp_path: Path, stage: Stage) -> None:
    options = (*await group(stage, "lab", "approval"), "--way", "approval")
    async with enrolling(stage, tmp_path / "fleet", *options) as process:
        async with asyncio.timeout(START):
            while len(waiting := [each async for each in stage.operator.approvals(group="lab")]) < COUNT:
                await asyncio.sleep(0.05)
        process.send_signal(signal.SIGINT)
        await last_words(process)
        assert process.returncode == 130
    assert FleetDirectory.read(tmp_path / "fleet").devices == []
    for request in waiting:
        await stage.operator.decide(request.id, approve=True)
    await enrolled(stage, tmp_path / "fleet", *options)  # With the keys that were approved.
    await usable(stage, tmp_path / "fleet")


async def test_what_was_wrong_the_first_time_is_put_right_by_the_second_command(stage: Stage, tmp_path: Path) -> None:
    fleet, two = tmp_path / "fleet", ("--devices", "2")
    (tmp_path / "other.pem").write_text(Authority().pem)
    credential = stage.operator_credential
    for wrong in (
        {"provisioning": "https://localhost:1"},
        {"cafile": str(tmp_path / "other.pem")},
        {"cert": str(credential.key), "key": str(credential.certificate)},
    ):
        await enrolled_with(fleet, *two, *whence(stage, **wrong), code=1)
    assert "as these options say from now on" in await enrolled(stage, fleet, *two)
    await usable(stage, fleet, 2)
    assert "from now on" not in await enrolled(stage, fleet, "--devices", "3")
    await usable(stage, fleet, 3)
    assert "go together" in await enrolled_with(fleet, "--cert", "operator.crt", code=2)


async def test_a_fleet_of_a_ca_is_not_continued_with_another(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet"
    for name in ("one", "two"):
        authority = Authority()
        (tmp_path / f"{name}.pem").write_text(authority.pem)
        write_private(tmp_path / f"{name}.key", key_to_pem(authority._key))

    def of(name: str) -> tuple[str, ...]:
        return ("--ca-cert", str(tmp_path / f"{name}.pem"), "--ca-key", str(tmp_path / f"{name}.key"))

    await enrolled_with(fleet, "--devices", "1", *of("one"))
    assert "was made from another CA" in await enrolled_with(fleet, "--devices", "2", *of("two"), code=1)
    await enrolled_with(fleet, "--devices", "2", *of("one"))
    assert len(FleetDirectory.read(fleet).devices) == 2
