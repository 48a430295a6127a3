"""Oracle and reality compared: after each step what changes quickly, at the end all there is."""

from __future__ import annotations

from provisioning.pki.revocation_reason import RevocationReason
from tests.support.broker_process import wait_until
from tests.support.walk.fleet_oracle import Certificate
from tests.support.walk.session_oracle import Message
from tests.support.walk.walk import World

_RECENT = 1000


def compare(world: World) -> None:
    """Compare what a step may have changed: messages to the backend, who is connected; no CRL's number falls."""
    compare_backend(world)
    if world.sessions.serves:
        world.reality.listed()
    expected = set(world.sessions.connections)
    wait_until(lambda: world.reality.connected() == expected, f"connected: {sorted(expected)}")


def compare_backend(world: World, apart: str = "nothing", least: int = 0) -> list[Message]:
    """Compare what the backend has got; return what of it is of the topics *apart*, which nobody has foretold."""
    expected, world.sessions.backend = world.sessions.backend, []
    got = world.reality.took(len(expected) + least)
    if world.repeats:
        got = [each for place, each in enumerate(got) if each.qos != 1 or each not in {*world.taken, *got[:place]}]
        got += world.reality.took(max(0, len(expected) + least - len(got)))
    world.taken = (world.taken + got)[-_RECENT:]
    others = [each for each in got if each.topic.startswith(apart)]
    got = [each for each in got if not each.topic.startswith(apart)]
    perhaps, world.sessions.perhaps = world.sessions.perhaps, []
    for name, will in list(world.sessions.postponed.items()):
        if will.message in got:
            perhaps.append(world.sessions.postponed.pop(name).message)
    got = [each for each in got if each in expected or each not in perhaps]
    assert got == expected, f"the backend got {got}, not {expected}"
    return others


def compare_messages(got: list[Message], expected: list[Message], who: str) -> None:
    assert got == expected, f"{who} got {got}, not {expected}"


def compare_status(world: World, certificate: Certificate) -> None:
    """Compare what OCSP and the inventory say of a certificate."""
    reality = world.reality
    for by_get in (False, True):
        if reality.workers > 1:  # Another process hears of it when the database has told it.
            wait_until(
                lambda: reality.ocsp_reason(certificate, by_get=by_get) is certificate.reason,
                f"OCSP says {certificate.reason} of {certificate.serial}",
            )
            continue
        said = reality.ocsp_reason(certificate, by_get=by_get)
        assert said is certificate.reason, f"OCSP says {said} of {certificate.serial}, not {certificate.reason}"
    shown = reality.look(f"/v1/certificates/{certificate.serial}")
    told = shown["reason"]
    assert told == certificate.reason, f"the inventory says {told} of {certificate.serial}, not {certificate.reason}"


def await_broker(world: World, certificate: Certificate) -> None:
    """Wait until the broker has heard what the oracle says that it hears of *certificate*."""
    seen = certificate.seen

    def heard() -> bool:
        admitted, detail = world.reality.verdict(certificate)
        return admitted if seen is None else (not admitted and f"({seen})" in detail)

    if not certificate.expired:
        wait_until(heard, f"the broker hears that {certificate.serial} of {certificate.device.name} is {seen}")


def compare_devices(world: World) -> None:
    """Compare every device and every certificate of the inventory."""
    items = world.reality.look("/v1/devices", limit="1000")["items"]
    states = {each["name"]: each["state"] for each in items if each["group"] is not None}
    assert {each: device.state.value for each, device in world.fleet.devices.items()} == {
        name: state for name, state in states.items() if name in world.fleet.devices
    }
    for device in world.fleet.devices.values():
        found = world.reality.look("/v1/certificates", device=device.name, limit="1000")["items"]
        told = {each["serial"]: each["reason"] for each in found}
        assert told == {each.serial: each.reason for each in device.certificates}, device.name


def compare_lists(world: World) -> None:
    """Wait until the CRL lists what it must."""
    expected = world.fleet.listed()
    found: dict[str, RevocationReason] = {}

    def listed() -> bool:
        nonlocal found
        found = world.reality.listed()
        return {serial: found[serial] for serial in found if serial in known} == expected

    known = {each.serial for each in world.fleet.certificates() if not each.expired}
    wait_until(listed, f"the CRL lists {expected}")


def compare_all(world: World) -> None:
    """Compare all there is."""
    compare(world)
    compare_devices(world)
    compare_lists(world)
    for each in world.fleet.certificates():
        compare_status(world, each)
        await_broker(world, each)
        if world.elsewhere is not None:
            world.elsewhere.await_truth(each)
    if world.elsewhere is not None:
        world.elsewhere.check_guests()
        world.elsewhere.close()
    reality = world.reality
    status = reality.admin.get("/v1/status")
    assert status["admitted"] == world.sessions.admitted + 1, "the backend and whoever else"
    assert status["connected"] == len(world.sessions.connections) + 1
    newest = reality.stored_sequence()
    assert newest == world.fleet.events, f"the feed is at {newest}, not at {world.fleet.events}"
    wait_until(lambda: reality.fed_sequences() == {newest}, f"all processes hear of change {newest}")
    assert not reality.service.command("audit", "verify", "--dir", str(reality.service.dir)).returncode
    assert "Traceback" not in reality.broker.log
    assert "Traceback" not in reality.service.log
