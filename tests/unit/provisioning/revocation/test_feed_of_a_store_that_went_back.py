"""The feed of a store that went back while it fails, and what others have added to it meanwhile."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from cryptography import x509
from sqlalchemy import delete, select, update
from sqlalchemy.engine import Connection
from structlog.testing import capture_logs

from provisioning.ca.crl import CrlIssuer
from provisioning.ca.ocsp import CertificateStatus, Good
from provisioning.enrolment.attempt import TokenCredential
from provisioning.errors import Code, Refused
from provisioning.pki.revocation import certificate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.serial_number import serial_text
from provisioning.revocation import feed as feed_module
from provisioning.revocation import ocsp
from provisioning.revocation import publisher as publisher_module
from provisioning.revocation.feed import RevocationFeed
from provisioning.revocation.feed_event import FeedEvent
from provisioning.revocation.grounds import Grounds
from provisioning.revocation.of_authority import revoke_authority
from provisioning.revocation.publisher import CrlPlan, CrlPublisher
from provisioning.store import counters, crl_shards, tables
from provisioning.store.groups import Group, NewKey
from provisioning.store.tables import devices, revocation_events, revocations
from tests.support.fleet import Fleet, successor_csr
from tests.support.notes import PATIENCE
from tests.support.requests import csr_der

REMOVED = x509.CRLReason(x509.ReasonFlags.remove_from_crl)


async def revoke(fleet: Fleet, *names: str) -> None:
    """As another process does: nothing is announced."""
    for name in names:
        await fleet.enrol(name)
        await fleet.revocation.revoke_device(name, RevocationReason.UNSPECIFIED, by="admin")


async def go_back(fleet: Fleet, sequence: int) -> None:
    """Lose what came after the event *sequence*, as a standby that takes over may."""

    def lose(connection: Connection) -> None:
        for each in (revocations, revocation_events):
            connection.execute(delete(each).where(each.c.sequence > sequence))
        counters.put(connection, counters.REVOCATION, sequence)

    await fleet.database.write(lose)


async def test_a_store_that_went_back_is_told_of_also_if_it_fails_while_it_is_read_again(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []
    told: list[int] = []
    feed = RevocationFeed(
        fleet.database,
        60,
        lambda events: told.extend(each.sequence for each in events),
        on_lost=lambda: lost.append("lost"),
    )
    await feed.start()
    await revoke(fleet, "a", "b", "c")
    await feed._read_new()
    follower = await feed.subscribe(3)

    await go_back(fleet, 2)
    await revoke(fleet, "d")
    looks = 0
    page = feed._page

    async def failing(sequence: int, most: int = feed_module.BATCH) -> list[FeedEvent]:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise Refused(Code.UNAVAILABLE, "the store cannot be used now; try again")
        return await page(sequence, most)

    monkeypatch.setattr(feed, "_page", failing)
    with pytest.raises(Refused):
        await feed._read_new()
    with capture_logs() as logs:
        await feed._read_new()
    assert [each["code"] for each in logs] == ["STORE_WENT_BACK"]
    assert len(logs[0]["lost"]) == 1
    assert lost == ["lost"]
    assert [batch async for batch in follower.batches()] == [], "it returns, and is told"
    assert [event.sequence for event in await feed.after(2)] == [3], "that of d"
    assert told == [1, 2, 3, 3], "of which another process may have told nobody here"


async def test_who_is_reading_when_the_store_goes_back_does_not_skip_what_came_instead(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is new there had numbers already, some of which the follower has read: for other revocations."""
    monkeypatch.setattr(feed_module, "BATCH", 2)
    await revoke(fleet, "a", "b", "c", "d", "e")
    feed = RevocationFeed(fleet.database, 60)
    await feed.start()
    follower = await feed.subscribe(0)
    batches = follower.batches()
    read = [event for events, _ in (await anext(batches), await anext(batches)) for event in events]
    assert [each.sequence for each in read] == [1, 2, 3, 4]
    await go_back(fleet, 2)
    await revoke(fleet, "f", "g", "h", "i")
    assert [events async for events, _ in batches] == [], "no event that is behind others which it lacks"
    with pytest.raises(Refused) as caught, capture_logs() as logs:
        await feed.subscribe(4, read[-1].mark, by="broker-1")
    assert caught.value.code is Code.FEED_AHEAD
    assert [(each["log_level"], each["code"], each["follower"]) for each in logs] == [
        ("error", Code.FEED_AHEAD, "broker-1")
    ]


async def test_nor_does_who_comes_back_at_that_moment(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    await revoke(fleet, "a", "b", "c")
    feed = RevocationFeed(fleet.database, 60)
    await feed.start()
    (last,) = await feed._page(2)
    mark_of = feed._mark_of

    async def just_before(sequence: int) -> str | None:
        mark = await mark_of(sequence)
        await go_back(fleet, 1)
        await revoke(fleet, "d")
        await feed._read_new()
        return mark

    monkeypatch.setattr(feed, "_mark_of", just_before)
    follower = await feed.subscribe(3, last.mark)
    batches = follower.batches()
    told = asyncio.ensure_future(anext(batches, None))
    await asyncio.sleep(0)
    assert not told.done(), "it has not caught up: it lacks what d was revoked by"
    await revoke(fleet, "e", "f")
    await feed._read_new()
    assert await told is None


async def test_what_the_store_has_lost_lets_nobody_in_until_it_is_repeated_or_undone(fleet: Fleet) -> None:
    names = ("good", "revoked", "held", "resumed", "superseded")
    certificates = {name: await fleet.enrol(name) for name in names}
    feed = RevocationFeed(fleet.database, 60)
    await feed.start()
    await fleet.revocation.revoke_device("revoked", RevocationReason.UNSPECIFIED, by="admin")
    for name in ("held", "resumed"):
        await fleet.suspension.suspend_device(name, by="admin")
    await fleet.suspension.resume_device("resumed", by="admin")
    serial = f"{certificates['superseded'].serial_number:x}"
    await fleet.revocation.revoke_serial(serial, RevocationReason.SUPERSEDED, by="admin")
    await feed._read_new()

    async def lets_in(name: str) -> bool | Code:
        try:
            await fleet.reenrol(certificates[name], successor_csr(certificates[name]))
        except Refused as refused:
            return refused.code
        return True

    async def status(name: str) -> CertificateStatus:
        issuer, serial = certificate_key(certificates[name])
        key = issuer.hex(), serial_text(serial)
        return await fleet.database.read(lambda connection: ocsp._status(connection, key))

    await go_back(fleet, 0)
    as_before = update(devices).values(revoked_at=None, suspended_at=None)
    await fleet.database.write(lambda connection: connection.execute(as_before))
    assert await lets_in("revoked") is True, "nobody has compared yet, or knows that it is to be done"
    fleet.database.lost_ends.doubt()
    assert {name: await lets_in(name) for name in names} == dict.fromkeys(names, Code.UNAVAILABLE)
    with capture_logs():
        await feed._read_new()
    expected = {"revoked": Code.UNAVAILABLE, "held": Code.UNAVAILABLE}
    assert {name: await lets_in(name) for name in names} == dict.fromkeys(names, True) | expected
    assert isinstance(await status("good"), Good)
    for name in expected:
        with pytest.raises(Refused, match="has lost that certificate"):
            await status(name)
    with pytest.raises(Refused, match=r"has lost that certificate .* of revoked was ended \(unspecified\)"):
        await fleet.enrol("revoked")

    await fleet.revocation.revoke_device("revoked", RevocationReason.UNSPECIFIED, by="admin")
    await fleet.suspension.suspend_device("held", by="admin")
    await fleet.suspension.resume_device("held", by="admin")
    await feed._read_new()
    assert (await lets_in("revoked"), await lets_in("held")) == (Code.CERTIFICATE_REVOKED, True)
    await fleet.enrol("revoked")


@pytest.mark.parametrize("first", ["resumed", "superseded"])
async def test_what_was_ended_after_it_was_resumed_or_superseded_is_held_too(fleet: Fleet, first: str) -> None:
    certificate = await fleet.enrol("meter")
    feed = RevocationFeed(fleet.database, 60)
    await feed.start()
    if first == "resumed":
        await fleet.suspension.suspend_device("meter", by="admin")
        await fleet.suspension.resume_device("meter", by="admin")
    else:
        serial = f"{certificate.serial_number:x}"
        await fleet.revocation.revoke_serial(serial, RevocationReason.SUPERSEDED, by="admin")
    await fleet.revocation.revoke_device("meter", RevocationReason.KEY_COMPROMISE, by="admin")
    await feed._read_new()
    await go_back(fleet, 0)
    as_before = update(devices).values(revoked_at=None, suspended_at=None)
    await fleet.database.write(lambda connection: connection.execute(as_before))
    with capture_logs():
        await feed._read_new()
    with pytest.raises(Refused, match="has lost that certificate"):
        await fleet.reenrol(certificate, successor_csr(certificate))


async def test_what_was_repeated_before_the_look_is_told_as_such(fleet: Fleet) -> None:
    certificate = await fleet.enrol("meter")
    feed = RevocationFeed(fleet.database, 60)
    await feed.start()
    await fleet.revocation.revoke_device("meter", RevocationReason.UNSPECIFIED, by="admin")
    await feed._read_new()
    await go_back(fleet, 0)
    as_before = update(devices).values(revoked_at=None, suspended_at=None)
    await fleet.database.write(lambda connection: connection.execute(as_before))
    fleet.clock.advance(timedelta(seconds=5))
    await fleet.revocation.revoke_device("meter", RevocationReason.UNSPECIFIED, by="admin")  # As another process does.
    await feed._read_new()
    with pytest.raises(Refused) as refused:
        await fleet.reenrol(certificate, successor_csr(certificate))
    assert refused.value.code is Code.CERTIFICATE_REVOKED
    await fleet.enrol("meter")


async def lost_after(fleet: Fleet, feed: RevocationFeed, sequence: int = 0) -> None:
    """Lose what came after the event *sequence*, with what devices became by it, and have the feed compare."""
    await go_back(fleet, sequence)
    as_before = update(devices).values(revoked_at=None, suspended_at=None)
    await fleet.database.write(lambda connection: connection.execute(as_before))
    with capture_logs():
        await feed._read_new()


async def check_held(fleet: Fleet, *certificates: x509.Certificate) -> None:
    for each in certificates:
        with pytest.raises(Refused, match="has lost that certificate"):
            await fleet.reenrol(each, successor_csr(each))


async def test_what_was_read_before_the_start_and_what_is_lost_later_is_held_too(fleet: Fleet) -> None:
    """A process that was started in between knows the newest events, and a second standby may lack more of them."""
    first, second = await fleet.enrol("first"), await fleet.enrol("second")
    issuer, serial = certificate_key(second)

    def on_a_part(connection: Connection) -> int:
        (part,) = crl_shards.ensure(connection, "issuing-ca", "http://ca.example.org", 1)
        its = tables.certificates.c.serial == serial_text(serial)
        connection.execute(update(tables.certificates).where(its).values(crl_shard_id=part.id))
        return part.id

    part = await fleet.database.write(on_a_part)
    for name in ("first", "second"):
        await fleet.revocation.revoke_device(name, RevocationReason.KEY_COMPROMISE, by="admin")
    feed = RevocationFeed(fleet.database, 60)
    await feed.start()
    await lost_after(fleet, feed, 1)
    assert fleet.database.lost_ends.doubts == 1, "from then on: a writer may have had no new session"
    await check_held(fleet, second)
    await lost_after(fleet, feed)
    await check_held(fleet, first, second)
    lists = [fleet.database.lost_ends.listed(issuer.hex(), each) for each in (part, part + 1, None)]
    assert [{each.device for each in held} for held in lists] == [{"second"}, set(), {"first", "second"}]


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_a_doubt_from_before_the_feed_runs_is_settled_at_once(fleet: Fleet) -> None:
    feed = RevocationFeed(fleet.database, 60)
    await feed.start()
    fleet.database.lost_ends.doubt()
    running = asyncio.create_task(feed.run())
    async with asyncio.timeout(PATIENCE):
        while fleet.database.lost_ends.in_doubt:
            await asyncio.sleep(0)
    running.cancel()


async def test_what_was_replaced_by_a_lost_certificate_that_was_ended_is_held(fleet: Fleet) -> None:
    """The device has renewed and was revoked: with what it had before, the store would have it back."""
    await fleet.groups.create(Group("north", new_key=NewKey.REPLACE), by="admin")
    before = await fleet.enrol("meter")
    other = await fleet.enrol("other")
    feed = RevocationFeed(fleet.database, 60)
    await feed.start()
    for name in ("meter", "other"):
        await fleet.enrol(name)  # By another token: that replaces what there was.
    await fleet.revocation.revoke_device("meter", RevocationReason.UNSPECIFIED, by="admin")
    await feed._read_new()

    def lose(connection: Connection) -> None:
        for each in (revocations, revocation_events):
            connection.execute(delete(each))
        held = connection.execute(select(tables.certificates.c.id).order_by(tables.certificates.c.id)).scalars().all()
        connection.execute(update(tables.tokens).values(certificate_id=None, used_at=None))
        connection.execute(delete(tables.certificates).where(tables.certificates.c.id.in_(held[-2:])))

    await fleet.database.write(lose)
    await lost_after(fleet, feed)
    await check_held(fleet, before)
    await fleet.reenrol(other, successor_csr(other))
    await fleet.revocation.revoke_device("meter", RevocationReason.UNSPECIFIED, by="admin")
    await feed._read_new()
    with pytest.raises(Refused, match="was revoked"):
        await fleet.reenrol(before, successor_csr(before))
    await fleet.enrol("meter")


@pytest.mark.parametrize("was_known", [True, False], ids=["known device", "unknown device"])
async def test_what_was_ended_is_held_by_its_name_where_its_certificate_is_lost_as_well(
    fleet: Fleet, *, was_known: bool
) -> None:
    """The token that has bought it is unspent again, and was good for whoever has the device."""
    if was_known:
        await revoke(fleet, "meter")
    feed = RevocationFeed(fleet.database, 60)
    await feed.start()
    kept = feed.newest
    certificate = await fleet.enrol("meter")
    await fleet.revocation.revoke_device("meter", RevocationReason.UNSPECIFIED, by="admin")
    await feed._read_new()

    def lose(connection: Connection) -> None:
        for each in (revocations, revocation_events):
            connection.execute(delete(each).where(each.c.sequence > kept))
        last = select(tables.certificates.c.id).order_by(tables.certificates.c.id.desc()).limit(1).scalar_subquery()
        connection.execute(
            update(tables.tokens)
            .values(certificate_id=None, used_at=None)
            .where(tables.tokens.c.certificate_id == last)
        )
        connection.execute(delete(tables.certificates).where(tables.certificates.c.id == last))
        if not was_known:
            connection.execute(delete(tables.device_keys))
            connection.execute(delete(devices))

    await fleet.database.write(lose)
    await lost_after(fleet, feed, kept)
    issuer, serial = certificate_key(certificate)
    assert {each.serial for each in fleet.database.lost_ends.listed(issuer.hex(), None)} == {serial_text(serial)}
    with pytest.raises(Refused) as refused:
        await fleet.reenrol(certificate, successor_csr(certificate))
    assert refused.value.code is Code.CERTIFICATE_UNKNOWN
    token = await fleet.token("meter")
    with pytest.raises(Refused, match=r"has lost that certificate .* of meter was ended \(unspecified\)"):
        await fleet.enrolment.enrol(csr_der(names=["meter"]), TokenCredential("meter", token))
    await fleet.revocation.revoke_device("meter", RevocationReason.UNSPECIFIED, by="admin")
    with pytest.raises(Refused) as refused:
        await fleet.enrolment.enrol(csr_der(names=["meter"]), TokenCredential("meter", token))
    assert refused.value.code is not Code.UNAVAILABLE, "an operator has decided"
    await fleet.enrol("meter")


async def test_a_device_that_is_revoked_again_comes_back_though_there_is_no_event(fleet: Fleet) -> None:
    """Its certificate was superseded, and stays that: for another reason it is not revoked once more."""
    certificate = await fleet.enrol("meter")
    serial = f"{certificate.serial_number:x}"
    await fleet.revocation.revoke_serial(serial, RevocationReason.SUPERSEDED, by="admin")
    feed = RevocationFeed(fleet.database, 60)
    await feed.start()
    await fleet.revocation.revoke_device("meter", RevocationReason.KEY_COMPROMISE, by="admin")
    await feed._read_new()
    as_before = update(revocations).values(reason="superseded", sequence=1)
    await fleet.database.write(lambda connection: connection.execute(as_before))
    await lost_after(fleet, feed, 1)
    with pytest.raises(Refused, match="has lost that certificate"):
        await fleet.enrol("meter")
    await fleet.revocation.revoke_device("meter", RevocationReason.UNSPECIFIED, by="admin")
    await feed._read_new()
    for _ in range(2):
        await fleet.enrol("meter")
        await revoke(fleet, "other")  # What is held changes by it, but not what was decided.
        await feed._read_new()


async def test_a_device_whose_certificate_was_revoked_before_is_held_by_its_name(fleet: Fleet) -> None:
    """Its token is good again, which the revocation of the device had voided."""
    certificate = await fleet.enrol("meter")
    serial = f"{certificate.serial_number:x}"
    await fleet.revocation.revoke_serial(serial, RevocationReason.UNSPECIFIED, by="admin")
    feed = RevocationFeed(fleet.database, 60)
    await feed.start()
    await fleet.revocation.revoke_device("meter", RevocationReason.KEY_COMPROMISE, by="admin")
    await feed._read_new()
    as_before = update(revocations).values(reason="unspecified", sequence=1)
    await fleet.database.write(lambda connection: connection.execute(as_before))
    await lost_after(fleet, feed, 1)
    with pytest.raises(Refused, match="has lost that certificate"):
        await fleet.enrol("meter")


async def test_nothing_of_a_ca_whose_revocation_is_lost_is_good_and_it_issues_nothing(fleet: Fleet) -> None:
    certificate = await fleet.enrol("meter")
    feed = RevocationFeed(fleet.database, 60)
    await feed.start()
    revoked = Grounds(RevocationReason.CA_COMPROMISE)
    await fleet.database.write(
        lambda connection: revoke_authority(connection, "issuing-ca", revoked, by="admin", now=fleet.clock())
    )
    await feed._read_new()

    def lose(connection: Connection) -> None:
        connection.execute(delete(tables.unfinished_authority_ends))
        connection.execute(
            update(tables.authorities).values(state="active").where(tables.authorities.c.kind == "issuing")
        )

    await fleet.database.write(lose)
    await lost_after(fleet, feed)
    with pytest.raises(Refused, match="of ca:issuing-ca was ended"):
        await fleet.reenrol(certificate, successor_csr(certificate))
    with pytest.raises(Refused, match="of ca:issuing-ca was ended"):
        await fleet.enrol("other")


async def test_what_is_held_stays_on_the_lists_until_it_is_decided(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "_COMPARING_SECONDS", 0)
    certificates = [await fleet.enrol(name) for name in ("revoked", "resumed")]
    issuing = fleet.authority.issuing_ca
    url = "http://ca.example.org/crl/issuing-ca.delta.crl"
    plan = CrlPlan(
        "issuing-ca",
        counters.crl_counter("issuing-ca"),
        timedelta(hours=1),
        0.01,
        lambda: CrlIssuer(issuing.certificate, issuing.key),
        url,
    )

    async def sleep(seconds: float) -> None:
        fleet.clock.advance(timedelta(seconds=seconds))

    publisher = CrlPublisher(fleet.database, plan, fleet.clock, sleep)
    await publisher.start()
    feed = RevocationFeed(fleet.database, 60, on_lost=publisher.read_again)
    await feed.start()

    async def listed() -> tuple[set[int], set[int]]:
        """Return what is revoked by the complete list, and by the delta."""
        publisher._complete_after = 0.0  # A complete list is affordable.
        await publisher.publish_changes()
        found = []
        for each in (publisher.current, publisher.delta):
            assert each is not None
            entries = {entry.serial_number: entry for entry in x509.load_der_x509_crl(each.der)}
            found.append(
                {
                    serial
                    for serial, entry in entries.items()
                    if REMOVED not in [each.value for each in entry.extensions]
                }
            )
        return found[0], found[1]

    serials = {each.serial_number for each in certificates}
    await fleet.revocation.revoke_device("revoked", RevocationReason.KEY_COMPROMISE, by="admin")
    await fleet.suspension.suspend_device("resumed", by="admin")
    await feed._read_new()
    assert await listed() == (serials, serials)
    await lost_after(fleet, feed)
    assert await listed() == (serials, serials)
    fleet.database.lost_ends.doubt()
    with pytest.raises(Refused, match="which ones cannot be found out"):
        await publisher.publish()
    await feed._read_new()
    await fleet.revocation.revoke_device("revoked", RevocationReason.UNSPECIFIED, by="admin")
    await fleet.suspension.suspend_device("resumed", by="admin")
    await fleet.suspension.resume_device("resumed", by="admin")
    await feed._read_new()
    left = {certificates[0].serial_number}
    assert await listed() == (left, left)
