"""Many that are suspended, resumed or decommissioned together: all or nothing, each told, nobody held up for long."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import TokenCredential
from provisioning.errors import Code, Refused, RefusedItem, RefusedTogether
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.revocation import batch, recording
from provisioning.revocation.portions import Portions
from provisioning.revocation.service import RevocationService
from provisioning.revocation.suspension import SuspensionService
from provisioning.store import audit, devices
from provisioning.store.devices import DeviceState
from provisioning.store.revocations import EventKind
from tests.support.fleet import Fleet, successor_csr
from tests.support.many_certificates import (
    Died,
    dying_after,
    events,
    make_portions_small,
    many_of,
    serials_of,
    unfinished,
)
from tests.support.requests import csr_der
from tests.support.ways import claim, group
from tests.support.ways import enrol as enrol_by_claim

HOLD = RevocationReason.CERTIFICATE_HOLD
CEASED = RevocationReason.CESSATION_OF_OPERATION
NAMES = ["meter-3", "meter-1", "meter-2"]

Doing = Callable[[Fleet, list[str], list[str]], Coroutine[Any, Any, Any]]
DOINGS: dict[str, Doing] = {
    "suspended": lambda fleet, names, serials: fleet.suspension.suspend_batch(names, serials, by="anna"),
    "resumed": lambda fleet, names, serials: fleet.suspension.resume_batch(names, serials, by="anna"),
    "decommissioned": lambda fleet, names, _: fleet.revocation.decommission_batch(names, by="anna"),
    "revoked": lambda fleet, names, serials: fleet.revocation.revoke_batch(
        names, serials, RevocationReason.SUPERSEDED, by="anna"
    ),
}


async def states(fleet: Fleet, *names: str) -> list[DeviceState]:
    found = await fleet.database.read(lambda connection: devices.find_all(connection, names))
    return [each.state for each in found]


async def audited(fleet: Fleet, *actions: str) -> list[tuple[str, str, list[str]]]:
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 999))
    return [
        (each.action, each.subject, json.loads(each.details)["serials"]) for each in entries if each.action in actions
    ]


async def refused(awaitable: Coroutine[Any, Any, object]) -> RefusedTogether:
    with pytest.raises(RefusedTogether) as caught:
        await awaitable
    return caught.value


async def test_many_are_suspended_and_resumed_in_one_step_and_told_in_the_order_in_which_they_were_named(
    fleet: Fleet,
) -> None:
    issued = {name: await fleet.enrol(name) for name in ("meter-1", "meter-2", "meter-3", "meter-4")}
    second = await fleet.reenrol(issued["meter-1"], successor_csr(issued["meter-1"]))
    serials = {name: serials_of([each]) for name, each in issued.items()}
    serials["meter-1"] += serials_of([second])
    fleet.told.clear()

    upper = [serials["meter-4"][0]]
    suspended = await fleet.suspension.suspend_batch([*NAMES, "meter-1"], upper, by="anna")
    assert suspended.changed
    assert [(each.device, each.serial) for each in suspended.revoked] == [
        (name, serial) for name in (*NAMES, "meter-4") for serial in serials[name]
    ]
    assert [each.sequence for each in suspended.revoked] == [1, 2, 3, 4, 5]
    assert {each.reason for each in suspended.revoked} == {HOLD}
    assert fleet.told == ["feed", "crl"], "the neighbours hear once"
    held = DeviceState.SUSPENDED
    assert await states(fleet, *NAMES, "meter-4") == [held, held, held, DeviceState.ACTIVE]
    expected = [(name, serials[name]) for name in (*NAMES, "meter-4")]
    assert await audited(fleet, "suspended") == [("suspended", *each) for each in expected]

    again = await fleet.suspension.suspend_batch(NAMES, upper, by="bert")
    assert (again.changed, again.revoked) == (False, suspended.revoked)
    resumed = await fleet.suspension.resume_batch(NAMES, upper, by="anna")
    assert resumed.changed
    assert [each.serial for each in resumed.released] == [each.serial for each in suspended.revoked]
    assert [each.sequence for each in resumed.released] == [6, 7, 8, 9, 10]
    assert fleet.told == ["feed", "crl"] * 2
    assert set(await states(fleet, *NAMES, "meter-4")) == {DeviceState.ACTIVE}
    again_resumed = await fleet.suspension.resume_batch(NAMES, upper, by="bert")
    assert (again_resumed.changed, again_resumed.released) == (False, [])
    assert await audited(fleet, "suspended", "resumed") == [
        *(("suspended", *each) for each in expected),
        *(("resumed", *each) for each in expected),
    ]
    assert [each.kind for each in await events(fleet)] == [EventKind.REVOKED] * 5 + [EventKind.RELEASED] * 5


async def test_many_are_decommissioned_in_one_step_with_their_tokens(fleet: Fleet) -> None:
    for name in NAMES:
        await fleet.enrol(name)
    await fleet.revocation.revoke_device("meter-1", RevocationReason.SUPERSEDED, by="anna")
    token = await fleet.token("meter-2")
    done = await fleet.revocation.decommission_batch([*NAMES, *NAMES], by="anna")
    assert [(each.device, each.reason) for each in done.revoked] == [
        ("meter-3", CEASED),
        ("meter-1", RevocationReason.SUPERSEDED),
        ("meter-2", CEASED),
    ]
    assert set(await states(fleet, *NAMES)) == {DeviceState.DECOMMISSIONED}
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 999))
    voided = {
        each.subject: json.loads(each.details)["tokens_voided"] for each in entries if each.action == "decommissioned"
    }
    assert voided == {"meter-3": 0, "meter-1": 0, "meter-2": 1}
    with pytest.raises(Refused, match="TOKEN_VOID"):
        await fleet.enrolment.enrol(csr_der(names=["meter-2"]), TokenCredential("meter-2", token))
    again = await fleet.revocation.decommission_batch(NAMES, by="anna")
    assert (again.changed, again.revoked) == (False, done.revoked)


@pytest.mark.parametrize("doing", DOINGS)
async def test_who_cannot_be_is_named_and_nothing_is_done_to_anybody(fleet: Fleet, doing: str) -> None:
    certificate = await fleet.enrol("meter-1")
    if doing == "resumed":
        await fleet.suspension.suspend_device("meter-1", by="anna")
    before = (await states(fleet, "meter-1"), await events(fleet))
    fleet.told.clear()
    names = ["nobody", "meter-1", "neither"]
    refusal = await refused(DOINGS[doing](fleet, names, ["abc", *serials_of([certificate])]))
    unknown = [
        RefusedItem("device", name, Code.DEVICE_UNKNOWN, f"no device is called {name!r}")
        for name in ("nobody", "neither")
    ]
    if doing != "decommissioned":
        unknown.append(RefusedItem("serial", "abc", Code.SERIAL_UNKNOWN, "no certificate has the serial number 'abc'"))
    assert list(refusal.items) == unknown
    assert refusal.code is Code.DEVICE_UNKNOWN
    assert refusal.detail.startswith("no device is called 'nobody', 'neither'; ")
    assert refusal.detail.endswith(f"; nothing of this request was {doing}")
    assert (await states(fleet, "meter-1"), await events(fleet)) == before
    assert fleet.told == []


async def test_every_reason_not_to_suspend_or_resume_is_told_of_whom_it_is_true(fleet: Fleet) -> None:
    await fleet.enrol("good")
    gone, held = await fleet.enrol("gone"), await fleet.enrol("held")
    await fleet.revocation.revoke_device("gone", RevocationReason.SUPERSEDED, by="anna")
    await fleet.suspension.suspend_device("held", by="anna")
    await fleet.database.write(
        lambda connection: devices.add(connection, "provisioning", Role.SERVICE, None, fleet.clock())
    )
    final = serials_of([gone])
    refusal = await refused(fleet.suspension.suspend_batch(["good", "gone", "provisioning"], final, by="anna"))
    assert [(each.kind, each.name, each.code) for each in refusal.items] == [
        ("device", "gone", Code.REVOCATION_FINAL),
        ("device", "provisioning", Code.PROTECTED),
        ("serial", final[0], Code.REVOCATION_FINAL),
    ]
    refusal = await refused(fleet.suspension.resume_batch(["good", "gone"], serials_of([gone, held]), by="anna"))
    assert [(each.name, each.code) for each in refusal.items] == [
        ("gone", Code.REVOCATION_FINAL),
        (final[0], Code.REVOCATION_FINAL),
        (serials_of([held])[0], Code.DEVICE_SUSPENDED),
    ]
    both = await fleet.suspension.resume_batch(["held"], serials_of([held]), by="anna")
    assert [each.serial for each in both.released] == serials_of([held]), "with its device, and once"


async def test_one_of_many_certificates_follows_its_device_in_portions(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its certificates the newest are told, as many as are few: of all devices together there may be any number."""
    make_portions_small(monkeypatch)
    every = await many_of(fleet, "meter-1")
    others = [await fleet.enrol(name) for name in ("meter-2", "meter-3")]
    names = ["meter-2", "meter-1", "meter-3"]
    told = serials_of([others[0], every[4], every[3], others[1]])
    suspended = await fleet.suspension.suspend_batch(names, [], by="anna")
    assert (suspended.changed, [each.serial for each in suspended.revoked]) == (True, told)
    assert {each.reason for each in suspended.revoked} == {HOLD}
    assert await unfinished(fleet) == []
    again = await fleet.suspension.suspend_batch(names, [], by="anna")
    assert not again.changed
    assert sorted(again.revoked, key=repr) == sorted(suspended.revoked, key=repr)
    resumed = await fleet.suspension.resume_batch(names, [], by="anna")
    assert (resumed.changed, [each.serial for each in resumed.released]) == (True, told)
    assert set(await states(fleet, *names)) == {DeviceState.ACTIVE}
    assert not (await fleet.suspension.resume_batch(names, [], by="anna")).changed
    done = await fleet.revocation.decommission_batch(names, by="anna")
    assert (done.changed, [each.serial for each in done.revoked]) == (True, told)
    assert {each.reason for each in done.revoked} == {CEASED}
    again = await fleet.revocation.decommission_batch(names, by="anna")
    assert not again.changed
    assert sorted(again.revoked, key=repr) == sorted(done.revoked, key=repr)
    assert await unfinished(fleet) == []
    assert [each.sequence for each in await events(fleet)] == list(range(1, 22))
    assert {each.serial for each in await events(fleet)} == set(serials_of([*every, *others]))


@pytest.mark.parametrize("doing", ["suspended", "resumed", "decommissioned"])
async def test_who_dies_in_the_middle_has_decided_all_of_it_and_the_next_start_does_the_rest(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, doing: str
) -> None:
    make_portions_small(monkeypatch)
    every = {name: await many_of(fleet, name) for name in ("meter-1", "meter-2")}
    few = await fleet.enrol("meter-3")
    names = [*every, "meter-3"]
    if doing == "resumed":
        await fleet.suspension.suspend_batch(names, [], by="anna")
    with dying_after(1), pytest.raises(Died):
        await DOINGS[doing](fleet, names, [])
    decided = DeviceState.DECOMMISSIONED if doing == "decommissioned" else DeviceState.SUSPENDED
    few_is = DeviceState.ACTIVE if doing == "resumed" else decided
    assert await states(fleet, *names) == [decided, decided, few_is]
    for certificate in (*every["meter-1"], *every["meter-2"]):
        with pytest.raises(Refused):
            await fleet.reenrol(certificate, successor_csr(certificate))
    if doing == "resumed":
        await fleet.reenrol(few, successor_csr(few))

    await RevocationService(fleet.database, fleet.clock, ()).portions.finish_left()
    assert await unfinished(fleet) == []
    after = DeviceState.ACTIVE if doing == "resumed" else decided
    assert await states(fleet, *names) == [after] * 3
    newest = {each.serial: each.kind for each in await events(fleet)}
    kind = EventKind.RELEASED if doing == "resumed" else EventKind.REVOKED
    assert newest == dict.fromkeys(serials_of([*every["meter-1"], *every["meter-2"], few]), kind)


async def test_more_certificates_than_a_transaction_may_look_at_follow_in_portions_whoever_has_them(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"meter-{number}" for number in range(9)]
    issued = [await fleet.enrol(name) for name in names]
    monkeypatch.setattr(batch, "TOGETHER", 3)
    portions: list[str] = []
    portion = Portions._device_portion

    def noted(self: Portions, connection: Connection, name: str) -> object:
        portions.append(name)
        return portion(self, connection, name)

    monkeypatch.setattr(Portions, "_device_portion", noted)
    suspended = await fleet.suspension.suspend_batch(names, [], by="anna")
    assert sorted(portions) == names[3:]
    assert [each.serial for each in suspended.revoked] == serials_of(issued)
    assert await audited(fleet, "suspended") == [
        *(("suspended", name, serials_of([each])) for name, each in zip(names[:3], issued, strict=False)),
        *(("suspended", name, recording.IN_WHAT_FOLLOWS) for name in names[3:]),
        *(sorted(("suspended", name, serials_of([each])) for name, each in zip(names[3:], issued[3:], strict=True))),
    ]
    resumed = await fleet.suspension.resume_batch(names, [], by="anna")
    assert [each.serial for each in resumed.released] == serials_of(issued)
    assert set(await states(fleet, *names)) == {DeviceState.ACTIVE}
    revoked = await fleet.revocation.revoke_batch(names, [], RevocationReason.SUPERSEDED, by="anna")
    assert [each.serial for each in revoked.revoked] == serials_of(issued)


@pytest.mark.parametrize("room", [0, batch.TOGETHER])
@pytest.mark.parametrize(
    "later", ["resume", "suspend", "suspend one of no hold", "revoke", "resume together", "decommission together"]
)
async def test_what_is_decided_next_of_a_device_that_waits_for_its_portion_is_what_holds(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, later: str, room: int
) -> None:
    """It has few certificates, so that whoever decides about it alone need not look for what is left."""
    certificate = await fleet.enrol("meter-1")
    monkeypatch.setattr(batch, "TOGETHER", 0)
    if later == "suspend":
        await fleet.suspension.suspend_device("meter-1", by="anna")
    resumes = later in {"suspend", "suspend one of no hold"}
    decide = fleet.suspension.resume_batch if resumes else fleet.suspension.suspend_batch
    with dying_after(0), pytest.raises(Died):
        await decide(["meter-1"], [], by="anna")
    assert await unfinished(fleet) == ["meter-1"]
    monkeypatch.setattr(batch, "TOGETHER", room)
    match later:
        case "resume":
            await fleet.suspension.resume_device("meter-1", by="bert")
        case "suspend" | "suspend one of no hold":
            await fleet.suspension.suspend_device("meter-1", by="bert")
        case "revoke":
            await fleet.revocation.revoke_device("meter-1", RevocationReason.SUPERSEDED, by="bert")
        case "resume together":
            await fleet.suspension.resume_batch(["meter-1"], [], by="bert")
        case _:
            await fleet.revocation.decommission_batch(["meter-1"], by="bert")
    await RevocationService(fleet.database, fleet.clock, ()).portions.finish_left()
    assert await unfinished(fleet) == []
    (state,) = await states(fleet, "meter-1")
    serial = serials_of([certificate])[0]
    last = [(each.kind, each.reason) for each in await events(fleet) if each.serial == serial][-1:]
    match later:
        case "resume" | "resume together":
            assert (state, last in ([], [(EventKind.RELEASED, HOLD)])) == (DeviceState.ACTIVE, True)
        case "suspend" | "suspend one of no hold":
            assert (state, last) == (DeviceState.SUSPENDED, [(EventKind.REVOKED, HOLD)])
        case "revoke":
            assert (state, last) == (DeviceState.REVOKED, [(EventKind.REVOKED, RevocationReason.SUPERSEDED)])
        case _:
            assert (state, last) == (DeviceState.DECOMMISSIONED, [(EventKind.REVOKED, CEASED)])


async def test_an_end_that_was_begun_is_finished_before_another_of_many(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_portions_small(monkeypatch)
    await many_of(fleet)
    with dying_after(1), pytest.raises(Died):
        await fleet.revocation.revoke_device("meter-1", RevocationReason.SUPERSEDED, by="anna")
    done = await fleet.revocation.decommission_batch(["meter-1"], by="bert")
    assert {each.reason for each in done.revoked} == {RevocationReason.SUPERSEDED}
    assert await states(fleet, "meter-1") == [DeviceState.DECOMMISSIONED]
    assert await unfinished(fleet) == []


async def test_a_hold_that_is_a_trial_s_does_not_end_with_the_suspension_of_its_device(fleet: Fleet) -> None:
    other = await fleet.enrol("meter-0")
    await fleet.reenrol(other, successor_csr(other))  # So that certificates are not numbered like their devices.
    await group(fleet, "claim", "token")
    shared = await claim(fleet)
    trials = [await enrol_by_claim(fleet, name, certificate=shared) for name in ("meter-1", "meter-2")]
    names, serials = ["meter-1", "meter-2"], serials_of(trials)
    assert (await fleet.suspension.suspend_batch(names, [], by="anna")).changed
    resumed = await fleet.suspension.resume_batch(names, [], by="anna")
    assert (resumed.changed, resumed.released) == (True, [])
    for doing in ("suspended", "resumed"):
        refusal = await refused(DOINGS[doing](fleet, [], serials))
        assert [(each.name, each.code) for each in refusal.items] == [(each, Code.ON_TRIAL) for each in serials]
    await fleet.reenrol(trials[0], successor_csr(trials[0]))


async def test_what_has_ended_is_suspended_only_if_it_is_named_itself(fleet: Fleet) -> None:
    """It may be good for a renewal yet. The newest has not surely ended, whatever our clock says."""
    certificate = await fleet.enrol("meter-1")
    fleet.clock.advance(timedelta(days=31))
    newest = await fleet.enrol("meter-1")
    fleet.clock.advance(timedelta(days=31))
    whole = await fleet.suspension.suspend_batch(["meter-1"], [], by="anna")
    assert (whole.changed, [each.serial for each in whole.revoked]) == (True, serials_of([newest]))
    named = await fleet.suspension.suspend_batch([], serials_of([certificate]), by="anna")
    assert (named.changed, [each.serial for each in named.revoked]) == (True, serials_of([certificate]))


async def test_fifty_cost_hardly_more_statements_than_one(fleet: Fleet) -> None:
    """On PostgreSQL, where a statement is a journey; on SQLite a device has one more, which is a call."""
    names = [f"meter-{number:02}" for number in range(50)]
    for name in names:
        await fleet.enrol(name)
    counted: list[str] = []
    engine = fleet.database._writer._engine
    if engine.dialect.name != "postgresql":
        return
    from provisioning.store.loop_waits import LoopConnection  # Only PostgreSQL needs its driver.

    execute = LoopConnection.execute

    def noted(self: Any, query: Any, *rest: Any, **more: Any) -> Any:
        counted.append(str(query))
        return execute(self, query, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LoopConnection, "execute", noted)
        numbers = {}
        for count in (1, 49):
            some, names = names[:count], names[count:]
            for doing in ("suspended", "resumed", "decommissioned"):
                counted.clear()
                await DOINGS[doing](fleet, some, [])
                numbers[doing, count] = len(counted)
    for doing in ("suspended", "resumed", "decommissioned"):
        assert numbers[doing, 49] <= numbers[doing, 1] + 2, numbers


@pytest.mark.parametrize("doing", DOINGS)
async def test_what_is_named_twice_is_named_once(fleet: Fleet, doing: str) -> None:
    first, second = [await fleet.enrol(name) for name in ("meter-1", "meter-2")]
    single = [] if doing == "decommissioned" else serials_of([second])
    if doing == "resumed":
        await fleet.suspension.suspend_batch(["meter-1"], single, by="anna")
    done = await DOINGS[doing](fleet, ["meter-1", "meter-1"], single * 2)
    told = done.released if doing == "resumed" else done.revoked
    assert [each.serial for each in told] == [*serials_of([first]), *single]
    entries = await audited(fleet, doing)
    assert [name for _, name, _ in entries] == ["meter-1", *("meter-2" for _ in single)]
    unknown = (await refused(DOINGS[doing](fleet, ["nobody", "nobody"], []))).items
    assert [each.name for each in unknown] == ["nobody"]


async def test_the_feed_has_the_events_of_a_batch_before_its_caller_is_answered(fleet: Fleet) -> None:
    for name in NAMES:
        await fleet.enrol(name)
    story: list[object] = []

    async def heard(sequence: int) -> None:
        story.append(sequence)

    announced = lambda changed: story.append(len(changed))  # noqa: E731 - in one line with what it is for
    service = RevocationService(fleet.database, fleet.clock, (announced,), heard=heard)
    for _ in range(2):
        outcome = await service.revoke_batch(NAMES, [], RevocationReason.SUPERSEDED, by="anna")
        story.append(sorted(each.sequence for each in outcome.revoked))
    assert story == [3, 3, [1, 2, 3], [1, 2, 3]], "the second time there is nothing to wait for"


async def test_the_feed_has_the_events_of_a_suspension_before_its_caller_is_answered(fleet: Fleet) -> None:
    """Whoever is told that many are suspended, or resumed, may try it at once."""
    for name in NAMES:
        await fleet.enrol(name)
    story: list[object] = []

    async def heard(sequence: int) -> None:
        story.append(sequence)

    announced = lambda changed: story.append(len(changed))  # noqa: E731 - in one line with what it is for
    service = SuspensionService(fleet.database, fleet.clock, (announced,), heard=heard)
    for _ in range(2):
        suspended = await service.suspend_batch(NAMES, [], by="anna")
        story.append(sorted(each.sequence for each in suspended.revoked))
    for _ in range(2):
        resumed = await service.resume_batch(NAMES, [], by="anna")
        story.append(sorted(each.sequence for each in resumed.released))
    assert story == [3, 3, [1, 2, 3], [1, 2, 3], 3, 6, [4, 5, 6], []], "there is something to wait for once each"


async def test_the_entries_of_a_batch_are_written_by_our_own_encoder(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's takes as long as the rest of the entry, and is used where one fact is of a type that ours lacks."""
    for name in NAMES:
        await fleet.enrol(name)
    monkeypatch.setattr(audit._DETAILS, "_library", None)
    await fleet.suspension.suspend_batch(NAMES, [], by="anna")
    await fleet.suspension.resume_batch(NAMES, [], by="anna")
    await fleet.revocation.revoke_batch(NAMES, [], RevocationReason.KEY_COMPROMISE, by="anna")
    assert len(await audited(fleet, "suspended", "resumed", "revoked")) == 3 * len(NAMES)
