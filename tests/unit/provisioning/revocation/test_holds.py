"""A device's suspension and a certificate's own are independent: each ends only by its own resumption, in any order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random

import pytest
from cryptography import x509

from provisioning.enrolment.attempt import TokenCredential
from provisioning.errors import Code, Refused
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.holds import ReleaseOutcome, StillHeld
from provisioning.revocation.service import RevocationService
from provisioning.store import audit, revocations
from provisioning.store.groups import NewKey
from provisioning.store.revocations import EventKind
from tests.support.examples import IS_THOROUGH
from tests.support.fleet import Fleet, successor_csr
from tests.support.manufacturer import Manufacturer
from tests.support.many_certificates import (
    Died,
    dying_after,
    events,
    make_portions_small,
    many_of,
    said_by_ocsp,
    serials_of,
    stored,
)
from tests.support.requests import NOON
from tests.support.ways import HOUR, enrol, group, register

HOLD = RevocationReason.CERTIFICATE_HOLD
SUPERSEDED = RevocationReason.SUPERSEDED
NAME = "meter-1"
ALONE, TOGETHER = "alone", "together"


async def act(fleet: Fleet, way: str, what: str, *, device: bool = False, serial: str = "") -> ReleaseOutcome:
    """Have the device, or one certificate, suspended or resumed; in a request of its own, or in a batch."""
    if way == TOGETHER:
        named = [NAME] * device, [serial] * bool(serial)
        outcome = await getattr(fleet.suspension, f"{what}_batch")(*named, by="anna")
    elif device:
        outcome = await getattr(fleet.suspension, f"{what}_device")(NAME, by="anna")
    else:
        outcome = await getattr(fleet.suspension, f"{what}_serial")(serial, by="anna")
    found: ReleaseOutcome = outcome
    return found


async def decided(fleet: Fleet) -> list[tuple[str, dict[str, object]]]:
    """Return what the audit log says was suspended and resumed."""
    entries = await fleet.database.read(lambda connection: audit.about(connection, NAME, 99))
    words = {"suspended", "resumed"}
    return [(each.action, json.loads(each.details)) for each in entries if each.action in words]


@pytest.mark.parametrize("way", [ALONE, TOGETHER])
@pytest.mark.parametrize("own_first", [True, False], ids=["its own first", "its device's first"])
async def test_a_certificate_suspended_by_itself_stays_so_when_its_device_is_resumed(
    fleet: Fleet, way: str, own_first: bool
) -> None:
    held, other = await many_of(fleet, more=1)
    serial, others = serials_of([held, other])
    for device in (False, True) if own_first else (True, False):
        assert (await act(fleet, way, "suspend", device=device, serial="" if device else serial)).changed
    assert not (await act(fleet, way, "suspend", serial=serial)).changed
    assert len(await events(fleet)) == 2, "to everybody else it is one hold"

    fleet.told.clear()
    resumed = await act(fleet, way, "resume", device=True)
    assert (resumed.changed, [each.serial for each in resumed.released]) == (True, [others])
    assert list(resumed.still_held) == [StillHeld(serial, NAME, by_itself=True)]
    assert (await said_by_ocsp(fleet, held), await said_by_ocsp(fleet, other)) == (HOLD, None)
    again = await act(fleet, way, "resume", device=True)
    assert (again.changed, again.released, again.still_held) == (False, [], resumed.still_held)
    with pytest.raises(Refused, match="CERTIFICATE_SUSPENDED"):
        await fleet.reenrol(held, successor_csr(held))
    await fleet.reenrol(other, successor_csr(other))
    assert await said_by_ocsp(fleet, held) is HOLD

    last = await act(fleet, way, "resume", serial=serial)
    assert (last.changed, [each.serial for each in last.released], last.still_held) == (True, [serial], [])
    assert await said_by_ocsp(fleet, held) is None
    own, whole = ("suspended", {"serials": [serial], "by_themselves": [serial]}), [others]
    assert await decided(fleet) == [
        *(
            [own, ("suspended", {"serials": whole})]
            if own_first
            else [("suspended", {"serials": [serial, *whole]}), own]
        ),
        ("resumed", {"serials": whole, "still_suspended": [serial]}),
        ("resumed", {"serials": [serial], "by_themselves": [serial]}),
    ]


@pytest.mark.parametrize("way", [ALONE, TOGETHER])
async def test_resuming_a_certificate_does_not_undo_its_device_s_suspension(fleet: Fleet, way: str) -> None:
    held, other = await many_of(fleet, more=1)
    serial, others = serials_of([held, other])
    await act(fleet, way, "suspend", serial=serial)
    await act(fleet, way, "suspend", device=True)
    fleet.told.clear()
    resumed = await act(fleet, way, "resume", serial=serial)
    assert (resumed.changed, resumed.released) == (True, [])
    assert list(resumed.still_held) == [StillHeld(serial, NAME, by_itself=False)]
    assert (fleet.told, len(await events(fleet))) == ([], 2), "nothing has changed for anybody else"
    assert (await decided(fleet))[-1] == (
        "resumed",
        {"serials": [serial], "by_themselves": [serial], "still_suspended": [serial]},
    )
    with pytest.raises(Refused, match="DEVICE_SUSPENDED"):
        await act(fleet, way, "resume", serial=serial)
    assert await said_by_ocsp(fleet, held) is HOLD
    released = (await act(fleet, way, "resume", device=True)).released
    assert [each.serial for each in released] == [serial, others]


async def test_a_device_and_its_certificate_are_resumed_in_one_step(fleet: Fleet) -> None:
    serial, others = serials_of(await many_of(fleet, more=1))
    await act(fleet, ALONE, "suspend", serial=serial)
    await act(fleet, ALONE, "suspend", device=True)
    both = await fleet.suspension.resume_batch([NAME], [serial], by="anna")
    assert ([each.serial for each in both.released], both.still_held) == ([others, serial], [])
    assert (await decided(fleet))[-1] == ("resumed", {"serials": [others, serial], "by_themselves": [serial]})


@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize("way", [ALONE, TOGETHER])
@pytest.mark.parametrize("done", [0, 1], ids=["before its portion", "after its portion"])
async def test_a_certificate_is_suspended_and_resumed_by_itself_while_its_device_is_resumed_in_portions(
    fleet: Fleet, way: str, done: int
) -> None:
    """They are in the first portion, which a process that dies has not come to, or has: nobody has to wait."""
    *_, newer, newest = every = await many_of(fleet)
    first, second = serials_of([newest, newer])
    await act(fleet, way, "suspend", serial=second)
    await act(fleet, way, "suspend", device=True)
    with dying_after(done), pytest.raises(Died):
        await act(fleet, way, "resume", device=True)
    await act(fleet, way, "suspend", serial=first)
    assert [each.serial for each in (await act(fleet, way, "resume", serial=second)).released] == [second]
    assert (await said_by_ocsp(fleet, newest), await said_by_ocsp(fleet, newer)) == (HOLD, None)
    resumed = await act(fleet, way, "resume", device=True)
    assert list(resumed.still_held) == [StillHeld(first, NAME, by_itself=True)]
    assert [await said_by_ocsp(fleet, each) for each in every] == [*[None] * 4, HOLD]


async def test_nothing_is_issued_for_a_key_nor_on_its_word_while_a_certificate_for_it_is_suspended_by_itself(
    fleet: Fleet,
) -> None:
    """Who looks into a key suspends the certificate that he knows of; there may be others for it."""
    await group(fleet, "manufacturer", "token", new_key=NewKey.REPLACE, renewal_grace=HOUR)
    acme, key, another = Manufacturer(begin=NOON), generate_key(), generate_key()
    await register(fleet, acme)
    mine = acme.idevid(NAME)[0]
    first = await enrol(fleet, NAME, key=key, certificate=mine)
    second = await fleet.reenrol(first, successor_csr(first, key))
    third = await fleet.reenrol(second, successor_csr(second, key))
    token = TokenCredential(NAME, await fleet.token(NAME, "line"))

    def again() -> Awaitable[x509.Certificate]:
        return fleet.reenrol(second, successor_csr(second, key))

    def renewed() -> Awaitable[x509.Certificate]:
        return fleet.reenrol(third, successor_csr(third, key))

    every: list[Callable[[], Awaitable[x509.Certificate]]] = [
        again,
        renewed,
        lambda: fleet.reenrol(third, successor_csr(third, another)),
        lambda: enrol(fleet, NAME, key=key, certificate=mine),
        lambda: enrol(fleet, NAME, key=key, token=token),
    ]
    serial, *_ = serials_of([first])
    await act(fleet, ALONE, "suspend", serial=serial)
    told = f"CERTIFICATE_SUSPENDED: certificate {serial} of {NAME} is suspended, and nothing is issued for its key"
    for ask_for_it in every:
        with pytest.raises(Refused, match=told):
            await ask_for_it()
    await act(fleet, ALONE, "resume", serial=serial)
    assert await again() == third
    await act(fleet, TOGETHER, "suspend", serial=serial)
    fleet.clock.advance(third.not_valid_after_utc - fleet.clock() + HOUR / 2)
    with pytest.raises(Refused, match=told):
        await renewed()

    # An operator lets the device have another key, and what that replaces is no word about the first.
    later = TokenCredential(NAME, await fleet.token(NAME, "line"))
    other = await enrol(fleet, NAME, key=another, token=later)
    assert await said_by_ocsp(fleet, first) is SUPERSEDED
    with pytest.raises(Refused, match=f"KEY_REUSED: certificate {serial} of {NAME}, for this key, was suspended when"):
        await fleet.reenrol(other, successor_csr(other, key))
    await fleet.reenrol(other, successor_csr(other))


@dataclass
class Model:
    """What was decided, and nothing else: one device, and its certificates by their places."""

    suspended: bool = False
    own: set[int] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)
    issued: list[x509.Certificate] = field(default_factory=list)

    @property
    def serials(self) -> list[str]:
        return serials_of(self.issued)

    def said(self) -> list[RevocationReason | None]:
        """Return what everybody has to say of each certificate."""
        held = [self.suspended or place in self.own for place in range(len(self.issued))]
        return [SUPERSEDED if at in self.ended else HOLD if on_hold else None for at, on_hold in enumerate(held)]

    def decide(self, what: str, at: int | None) -> None:
        """Note a decision about the device, or the certificate at that place."""
        if at is None:
            self.suspended = what == "suspend"
        elif what == "revoke":
            self.ended.add(at)
        elif what == "suspend" and at not in self.ended:
            self.own.add(at)
        elif what == "resume":
            self.own.discard(at)


async def ask(awaitable: Awaitable[object]) -> None:
    """Await it; what was decided before may refuse it."""
    try:
        await awaitable
    except Refused as refused:
        if refused.code not in {Code.DEVICE_SUSPENDED, Code.REVOCATION_FINAL}:
            raise


async def one(fleet: Fleet, random: Random, model: Model, what: str, at: int | None) -> None:
    """Ask for one thing, and note it."""
    model.decide(what, at)
    serial = "" if at is None else model.serials[at]
    if what == "revoke":
        await ask(fleet.revocation.revoke_serial(serial, SUPERSEDED, by="anna"))
    else:
        await ask(act(fleet, random.choice([ALONE, TOGETHER]), what, device=at is None, serial=serial))


async def what_everybody_says(fleet: Fleet, model: Model) -> None:
    """Check that the store, OCSP, CRLs and the feed say what the model does."""
    said = model.said()
    every = await stored(fleet)
    assert [each.revocation.reason if each.revocation else None for each in every] == said
    assert [await said_by_ocsp(fleet, each) for each in model.issued] == said
    listed = await fleet.database.read(
        lambda connection: revocations.listed(connection, fleet.issuer.key_id, None, fleet.clock())
    )
    reasons = dict(zip(model.serials, said, strict=True))
    assert {f"{each.serial:x}": each.reason for each in listed} == {at: why for at, why in reasons.items() if why}
    fed: dict[str, RevocationReason] = {}
    for each in await fleet.database.read(lambda connection: revocations.after(connection, 0, 9999)):
        if each.kind is EventKind.REVOKED:
            assert fed.get(each.serial) in {None, HOLD}
            fed[each.serial] = each.reason
        else:
            assert fed.pop(each.serial) is HOLD
    assert fed == {at: why for at, why in reasons.items() if why}


async def own_ones_are_held(fleet: Fleet, model: Model) -> None:
    """Check what holds even of a device that is half suspended, or half resumed."""
    every = await stored(fleet)
    assert [at for at in sorted(model.own - model.ended) if not every[at].held_by_itself] == []


@pytest.mark.hypothesis
@pytest.mark.parametrize("seed", range(40) if IS_THOROUGH else [1, 2])
async def test_no_order_of_decisions_makes_a_certificate_good_without_its_own_resumption(
    fleet: Fleet, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by one, at the same time, in portions, by a process that dies between them, and renewed meanwhile."""
    random = Random(seed)
    if seed % 2:
        make_portions_small(monkeypatch)
    model = Model(issued=await many_of(fleet, NAME, 3))
    for _ in range(30):
        at = random.randrange(len(model.issued))
        own = random.choices(["suspend", "resume", "revoke"], [4, 3, 1])[0]
        whole = random.choice(["suspend", "resume"])
        match random.choice(["own", "own", "whole", "both at once", "dies", "renew"]):
            case "own":
                await one(fleet, random, model, own, at)
            case "whole":
                await one(fleet, random, model, whole, None)
            case "both at once":
                await asyncio.gather(one(fleet, random, model, own, at), one(fleet, random, model, whole, None))
            case "dies" if seed % 2:
                with dying_after(random.randrange(3)):
                    await asyncio.gather(one(fleet, random, model, whole, None), return_exceptions=True)
                await one(fleet, random, model, own, at)
                await own_ones_are_held(fleet, model)
                await RevocationService(fleet.database, fleet.clock, ()).portions.finish_left()
            case _:
                good = [each for each, said in zip(model.issued, model.said(), strict=True) if said is None]
                if good and len(model.issued) < 9:
                    csr = successor_csr(good[0], random.choice([None, generate_key()]))
                    model.issued.append(await fleet.reenrol(good[0], csr))
        await what_everybody_says(fleet, model)
