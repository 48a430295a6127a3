"""Manufacturers' CRLs: which are taken, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.name import _ASN1Type
from sqlalchemy import select, text
from sqlalchemy.engine import Connection
from structlog.testing import capture_logs

from provisioning.api.metrics import ManufacturersCollector
from provisioning.ca.der import BIT_STRING, SEQUENCE, children, element
from provisioning.doctor.doctor_manufacturers import manufacturer_findings
from provisioning.enrolment import manufacturer_lists as lists_of_manufacturers
from provisioning.enrolment.groups import parse_ways
from provisioning.enrolment.manufacturer_lists import ManufacturerListService
from provisioning.enrolment.manufacturer_watch import ManufacturerWatch
from provisioning.enrolment.manufacturers import ManufacturerChange, ManufacturerService
from provisioning.errors import Code, Refused
from provisioning.pki.revocation import unpack
from provisioning.store import audit, manufacturer_lists
from provisioning.store.audit import Action
from provisioning.store.manufacturer_tables import manufacturer_revocations
from provisioning.store.manufacturers import LapsedLists
from tests.support.crl import crl, impostor_of, pem, scope
from tests.support.fleet import Fleet
from tests.support.manufacturer import Manufacturer
from tests.support.requests import NOON
from tests.support.ways import HOUR, enrol, give_list, group, listed, nothing, refusal, register, set_lapsed

DAY = timedelta(days=1)
COMPROMISE = x509.ReasonFlags.key_compromise
HOLD = x509.ReasonFlags.certificate_hold
SHARD = "http://pki.acme.example/{}.crl"


def with_negative(acme: Manufacturer) -> bytes:
    """Return acme's list of a long serial number and of a negative one, which the library makes no list of."""
    long, positive = (1 << 159) - 1, 0x7001
    listed_ = listed(acme, long, positive)
    signed = next(children(listed_)).replace(b"\x02\x02\x70\x01", b"\x02\x02\xf0\x01")
    _, algorithm, _ = children(listed_)
    key = acme.held.key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = b"\x00" + key.sign(signed, ec.ECDSA(hashes.SHA256()))
    return element(SEQUENCE, signed + algorithm + element(BIT_STRING, signature))


async def test_there_is_an_end_to_the_parts_of_a_list(
    fleet: Fleet, acme: Manufacturer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists_of_manufacturers, "MAXIMUM_LISTS", 1)
    await give_list(fleet, listed(acme))
    with pytest.raises(Refused, match="INVALID_REQUEST: acme has 1 lists"):
        await give_list(fleet, listed(acme, point=scope(SHARD.format(1))))
    await give_list(fleet, listed(acme, number=2))
    with pytest.raises(Refused, match="distribution point has more than 2000 characters"):
        await give_list(fleet, listed(acme, point=scope(SHARD.format("x" * 2000))))


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"number": 4, "age": timedelta(hours=-1)}, "CRL_OLDER: number 4, though made later than number 5"),
        ({"number": 4}, "CRL_OLDER: number 4 of 2027-03-01 12:00:00 UTC; number 5 of"),
        ({"number": 5, "life": 2 * DAY}, "CRL_OLDER"),
        ({"number": 6, "age": HOUR}, "CRL_OLDER: number 6 of 2027-03-01 11:00:00"),
    ],
)
async def test_a_list_of_before_releases_nobody(
    fleet: Fleet, acme: Manufacturer, facts: dict[str, Any], words: str
) -> None:
    idevid = acme.idevid("SN17")[0]
    await give_list(fleet, listed(acme, idevid, number=5))
    fleet.clock.advance(HOUR)
    with pytest.raises(Refused, match=f"INVALID_REQUEST: the list cannot be used: {words}"):
        await give_list(fleet, listed(acme, **facts))
    assert await refusal(fleet, "SN17", certificate=idevid) is Code.MANUFACTURER_REVOKED


async def test_a_manufacturer_that_numbers_anew_needs_a_word_and_a_later_date(fleet: Fleet, acme: Manufacturer) -> None:
    await give_list(fleet, listed(acme, number=None))  # Its number is its time: 1 803 902 400.
    with pytest.raises(Refused, match="CRL_OLDER"):
        await give_list(fleet, listed(acme, number=1), renumbered=True)
    fleet.clock.advance(HOUR)
    later = listed(acme, number=1, now=fleet.clock())
    with pytest.raises(Refused, match=r"CRL_OLDER: .*--renumbered"):
        await give_list(fleet, later)
    assert (await give_list(fleet, later, renumbered=True)).stored.number == 1


async def test_a_list_may_take_long_to_be_compared_with_the_one_before(
    fleet: Fleet, acme: Manufacturer, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, limits = manufacturer_lists.put, []

    def looked_at(connection: Connection, *said: Any) -> Any:
        if connection.dialect.name == "postgresql":
            limits.append(connection.scalar(text("SHOW idle_in_transaction_session_timeout")))
        return put(connection, *said)

    monkeypatch.setattr(manufacturer_lists, "put", looked_at)
    assert (await give_list(fleet, listed(acme, 7))).changed
    assert set(limits) <= {"1min"}, "others are ended after five seconds without a word"


async def test_a_list_that_is_given_again_changes_nothing(fleet: Fleet, acme: Manufacturer) -> None:
    der = listed(acme, 7, number=1 << 159)
    first = await give_list(fleet, der)
    fleet.clock.advance(HOUR)
    again = await give_list(fleet, pem(der))
    assert (first.changed, again.changed, again.stored) == (True, False, first.stored)
    await set_lapsed(fleet, LapsedLists.ACCEPT)
    await set_lapsed(fleet, LapsedLists.ACCEPT)
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    told = [(each.action, each.actor, each.subject, json.loads(each.details)) for each in entries[-2:]]
    facts = {
        "about": [], "crl_number": str(1 << 159), "entries": 1, "next_update": "2027-03-02T12:00:00Z",
        "released": 0, "revoked": 1, "sha256": first.stored.sha256.hex(), "this_update": "2027-03-01T12:00:00Z",
    }  # fmt: skip
    assert told == [
        (Action.MANUFACTURER_LIST_TAKEN, "admin", "acme", facts),
        (Action.MANUFACTURER_CHANGED, "anna", "acme", {"lapsed_lists": "accept"}),
    ]


async def test_the_store_has_what_the_newest_list_says_and_nothing_else(fleet: Fleet, acme: Manufacturer) -> None:
    before: dict[int, x509.ReasonFlags | None] = dict.fromkeys(range(1, 3001), HOLD)
    after: dict[int, x509.ReasonFlags | None] = dict.fromkeys(range(11, 3011), HOLD)
    after |= {20: COMPROMISE, 1 << 158: None}
    facts: dict[str, Any] = {"now": NOON, "age": timedelta(), "life": DAY}
    await give_list(fleet, crl(acme.held, before, **facts))
    taken = await give_list(fleet, crl(acme.held, after, number=2, **facts))
    assert (taken.revoked, taken.released, taken.stored.entries) == (11, 10, 3001)
    rows = select(manufacturer_revocations.c.serial, manufacturer_revocations.c.entry)
    stored = {int(serial, 16): entry for serial, entry in await fleet.database.read(
        lambda connection: connection.execute(rows).all())}  # fmt: skip
    found = {serial: unpack((b"", serial), entry) for serial, entry in stored.items()}
    assert {serial: x509.ReasonFlags(each.reason) for serial, each in found.items()} == {
        serial: reason or x509.ReasonFlags.unspecified for serial, reason in after.items()
    }
    assert {each.revoked_at for each in found.values()} == {NOON}


UNUSABLE: dict[str, Callable[[Manufacturer], bytes]] = {
    "CRL_MALFORMED: is empty": lambda _: b"",
    "CRL_MALFORMED: holds no CRL": lambda acme: acme.pem.encode(),
    "CRL_MALFORMED: not a CRL": lambda acme: listed(acme)[:-9],
    "CRL_UNSUPPORTED: 2 lists": lambda acme: pem(listed(acme), listed(acme)),
    "CRL_UNSUPPORTED: a delta": lambda acme: listed(acme, base=1, number=2),
    "CRL_UNSUPPORTED: an indirect CRL": lambda acme: listed(acme, point=scope(indirect=True)),
    "CRL_UNSUPPORTED: a CRL number of more than 20 octets": lambda acme: listed(acme, number=1 << 160),
    "CRL_UNSUPPORTED: a serial number is negative, or": with_negative,
    "CRL_BAD_SIGNATURE": lambda acme: listed(acme, signed_by=impostor_of(acme.held)),
    "CRL_WRONG_ISSUER": lambda _: listed(Manufacturer("Other", begin=NOON)),
    "CRL_EXPIRED: nextUpdate was 2027-03-01 11:00:00 UTC": lambda acme: listed(acme, age=2 * HOUR, life=HOUR),
    "CRL_NOT_YET_VALID": lambda acme: listed(acme, age=-HOUR),
}


@pytest.mark.parametrize("words", UNUSABLE)
async def test_what_is_wrong_with_a_list_is_said_and_it_is_not_used(
    fleet: Fleet, acme: Manufacturer, words: str
) -> None:
    with pytest.raises(Refused, match=f"INVALID_REQUEST: the list cannot be used: {words}"):
        await give_list(fleet, UNUSABLE[words](acme))
    await enrol(fleet, "SN17", certificate=acme.idevid("SN17")[0])


async def test_a_list_of_nobody_is_refused(fleet: Fleet, acme: Manufacturer) -> None:
    with pytest.raises(Refused, match="MANUFACTURER_UNKNOWN"):
        await give_list(fleet, listed(acme), "other")
    service = ManufacturerService(fleet.database, fleet.clock, nothing)
    for call in (service.find("other"), service.change("other", ManufacturerChange(), by="anna")):
        with pytest.raises(Refused, match="MANUFACTURER_UNKNOWN"):
            await call


async def test_the_last_list_of_who_makes_no_more_is_taken_where_lapsed_ones_are_accepted(
    fleet: Fleet, acme: Manufacturer
) -> None:
    idevid = acme.idevid("SN17")[0]
    await set_lapsed(fleet, LapsedLists.ACCEPT)
    await give_list(fleet, listed(acme, idevid, age=2 * HOUR, life=HOUR))
    assert await refusal(fleet, "SN17", certificate=idevid) is Code.MANUFACTURER_REVOKED
    await enrol(fleet, "SN18", certificate=acme.idevid("SN18")[0])


async def test_a_manufacturer_s_name_is_the_same_in_strings_of_every_kind(fleet: Fleet, acme: Manufacturer) -> None:
    printable = Manufacturer(begin=NOON - DAY, key=acme.key, strings=_ASN1Type.PrintableString)
    stolen, good = (acme.idevid(number, issuer=printable.name)[0] for number in ("SN17", "SN18"))
    await enrol(fleet, "SN18", certificate=good)
    await give_list(fleet, listed(printable, stolen))
    assert await refusal(fleet, "SN17", certificate=stolen) is Code.MANUFACTURER_REVOKED
    await register(fleet, printable)  # Its certificate was renewed, and says it in these strings from now on.
    assert await refusal(fleet, "SN17", certificate=stolen) is Code.MANUFACTURER_REVOKED
    await enrol(fleet, "SN19", certificate=acme.idevid("SN19")[0])


async def test_the_doctor_says_when_the_next_list_is_due(fleet: Fleet, acme: Manufacturer) -> None:
    async def found() -> list[tuple[str, str]]:
        said = await fleet.database.read(lambda connection: list(manufacturer_findings(connection, fleet.clock())))
        return [(each.verdict, each.detail) for each in said]

    assert await found() == []
    await give_list(fleet, listed(acme))
    fleet.clock.advance(18 * HOUR)
    assert await found() == [("ok", "CRLs not expiring soon: acme")]
    fleet.clock.advance(HOUR)
    assert await found() == [("warning", "acme's CRL expires on 2027-03-02 12:00 UTC; the next one is not here")]
    part = listed(acme, point=scope(SHARD.format(1)), now=fleet.clock())
    await give_list(fleet, part)
    fleet.clock.advance(6 * HOUR)
    gone = "the first of acme's 2 CRLs expired on 2027-03-02 12:00 UTC; the next one is not here"
    assert await found() == [("warning", gone)]
    fleet.clock.advance(DAY)
    assert await found() == [("failed", "acme's CRLs expired on 2027-03-03 07:00 UTC: its devices are refused")]
    await set_lapsed(fleet, LapsedLists.ACCEPT)
    assert await found() == []


async def test_a_list_is_awaited_by_nobody_where_no_device_comes_in_by_its_ca(fleet: Fleet, acme: Manufacturer) -> None:
    async def found() -> list[tuple[str, str]]:
        said = await fleet.database.read(lambda connection: list(manufacturer_findings(connection, fleet.clock())))
        return [(each.verdict, each.detail) for each in said]

    root = Manufacturer("Root", begin=NOON - DAY)
    await group(fleet, name="nobody")
    service = ManufacturerService(fleet.database, fleet.clock, nothing)
    await service.add(name="root", group="nobody", name_prefix="", pem=root.pem, by="admin")
    await give_list(fleet, listed(root), "root")
    await give_list(fleet, listed(acme, life=3 * DAY))
    assert list(await fleet.database.read(manufacturer_lists.awaited)) == ["acme"]
    fleet.clock.advance(19 * HOUR)
    due = ("warning", "root's CRL expires on 2027-03-02 12:00 UTC; the next one is not here")
    assert await found() == [due, ("ok", "CRLs not expiring soon: acme")]
    fleet.clock.advance(6 * HOUR)
    lapsed = "root's CRLs expired on 2027-03-02 12:00 UTC: what it has revoked since is unknown"
    assert (await found())[0] == ("warning", lapsed)
    await fleet.groups.change("nobody", {"ways": parse_ways(["manufacturer"])}, by="admin")
    assert (await found())[0] == ("failed", "root's CRLs expired on 2027-03-02 12:00 UTC: its devices are refused")


async def test_a_list_that_is_made_no_more_is_removed_with_what_it_says(fleet: Fleet, acme: Manufacturer) -> None:
    part = scope(SHARD.format(1))
    first, both, second = acme.idevid("SN1")[0], acme.idevid("SN2")[0], acme.idevid("SN3")[0]
    whole = (await give_list(fleet, listed(acme, first, both))).stored
    old = (await give_list(fleet, listed(acme, both, second, point=part))).stored
    service = ManufacturerListService(fleet.database, fleet.clock)
    for wrong, name, code in (
        (b"x" * 32, "acme", "MANUFACTURER_LIST_UNKNOWN"),
        (old.sha256, "other", "MANUFACTURER_UNKNOWN"),
    ):
        with pytest.raises(Refused, match=code):
            await service.remove(name, wrong, by="anna")
    removed = await service.remove("acme", old.sha256, by="anna")
    assert (removed.stored, removed.released) == (old, 1)
    await enrol(fleet, "SN3", certificate=second)
    assert await refusal(fleet, "SN2", certificate=both) is Code.MANUFACTURER_REVOKED, "the other list names it, too"
    with pytest.raises(Refused, match="MANUFACTURER_LIST_UNKNOWN"):
        await service.remove("acme", old.sha256, by="anna")
    assert (await service.remove("acme", whole.sha256, by="anna")).released == 2
    await enrol(fleet, "SN2", certificate=both)
    rows = await fleet.database.read(lambda connection: connection.execute(select(manufacturer_revocations)).all())
    assert rows == []
    entries = await fleet.database.read(lambda connection: audit.about(connection, "list removed", 9))
    assert [(each.actor, each.subject) for each in entries] == [("anna", "acme")] * 2
    facts = {"about": [SHARD.format(1)], "crl_number": "1", "entries": 2, "released": 1, "sha256": old.sha256.hex()}
    assert json.loads(entries[0].details) == facts


async def test_the_service_says_once_that_a_list_is_awaited(fleet: Fleet, acme: Manufacturer) -> None:
    watch = ManufacturerWatch(fleet.database, fleet.clock)

    async def said() -> list[str]:
        with capture_logs() as logs:
            await watch.look()
        return [each["waiting"] for each in logs if each["event"] == "manufacturer's list awaited"]

    assert (await said(), watch.ends) == ([], {})
    await give_list(fleet, listed(acme))
    assert (await said(), watch.ends) == ([], {"acme": NOON + DAY})
    told = [
        each for family in ManufacturersCollector(lambda: watch.ends, dict, {}).collect() for each in family.samples
    ]
    assert [(each.labels["manufacturer"], each.value) for each in told] == [("acme", (NOON + DAY).timestamp())]
    fleet.clock.advance(19 * HOUR)
    assert (await said(), await said()) == (["soon"], [])
    fleet.clock.advance(6 * HOUR)
    assert (await said(), await said()) == (["all"], [])
    await give_list(fleet, listed(acme, number=2, now=fleet.clock()))
    assert await said() == []
    fleet.clock.advance(2 * DAY)
    assert await said() == ["all"]
    await ManufacturerService(fleet.database, fleet.clock, nothing).end("acme", by="admin")
    assert (await said(), watch.ends) == ([], {})


async def test_a_list_that_releases_most_of_those_before_needs_an_operators_word(
    fleet: Fleet, acme: Manufacturer
) -> None:
    serials = range(1, 41)
    first = listed(acme, *serials)
    await give_list(fleet, first)
    refused = r"no more that number 1 says are revoked: they could enrol again\. .*\(--fewer\)"
    for left in ((), serials[:19], (*serials[:10], *range(100, 200))):
        with pytest.raises(Refused, match=refused):
            await give_list(fleet, listed(acme, *left, number=2))
    again = await give_list(fleet, first)
    assert (again.changed, again.stored.entries) == (False, 40), "nothing of what was refused is kept"
    taken = await give_list(fleet, listed(acme, *serials[:20], number=2))
    assert (taken.changed, taken.released) == (True, 20)
    assert (await give_list(fleet, listed(acme, *serials[:10], number=3))).released == 10, "so few may be, of any list"
    await give_list(fleet, listed(acme, *serials[:21], number=4))
    with pytest.raises(Refused, match=r"names 11 of the 21 certificates no more"):
        await give_list(fleet, listed(acme, *serials[:10], number=5))
    assert (await give_list(fleet, listed(acme, number=5), fewer=True)).released == 21

    generous = ManufacturerListService(fleet.database, fleet.clock, released_share=1.0)
    await give_list(fleet, listed(acme, *serials, number=6))
    assert (await generous.take("acme", listed(acme, number=7), by="admin")).released == 40
