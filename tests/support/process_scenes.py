"""Scenes for `tests.support.stepped_processes`: what two processes of a service may be asked at the same time.

    world = World(stage)
    every_choice(lambda choices: world.play(renew_and_revoke, choices))

A scene prepares what it needs under names of its own, so that all orders share a database; it says who does what, and
what may have come of it. What must be true at every moment whatever is done is in `tests.support.seen_from_outside`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from cryptography import x509

from provisioning.enrolment.approvals import ApprovalService
from provisioning.enrolment.attempt import TokenCredential
from provisioning.errors import Code, Pending, Refused
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.store.groups import NewKey
from tests.support.fleet import Fleet, successor_csr
from tests.support.interleavings import Choices
from tests.support.requests import csr_der
from tests.support.seen_from_outside import Outsider
from tests.support.stepped_processes import Act, Killed, Stage
from tests.support.ways import claim, enrol, group, pending

SUPERSEDED: Final = RevocationReason.SUPERSEDED
ISSUED: Final = "issued"
DONE: Final = "done"
Found = Mapping[str, str]
"""What became of each call: `ISSUED`, `DONE`, or the code of its refusal."""


@dataclass
class Scene:
    """What processes do, and what may come of it."""

    acts: Mapping[str, Act]
    may_be: Callable[[Found], object] = lambda _found: True
    """Whether these outcomes can be, of calls that were not interrupted."""
    at_last: Callable[[Found], object] = lambda _found: True
    """The same, also if something was lost."""
    may_be_refused: bool = False
    """Whether UNAVAILABLE may be an answer, though nothing was lost."""


@dataclass
class World:
    """The processes and their store, in one order after another."""

    stage: Stage
    outsider: Outsider
    number: int = 0
    seen: dict[tuple[tuple[str, str], ...], int] = field(default_factory=dict)
    """How often which outcomes came."""
    results: dict[str, Any] = field(default_factory=dict)
    """What each call of the last order returned, or raised."""

    def __post_init__(self) -> None:
        self.first, self.second = (each.fleet for each in list(self.stage.processes.values())[:2])

    def name(self, kind: str = "meter") -> str:
        """Return a name that only this order has."""
        return f"{kind}-{self.number}"

    def call(self, awaitable: Any) -> Any:
        """Have the first process do something before an order begins, or after it."""
        return next(iter(self.stage.processes.values())).call(awaitable)

    def play(
        self, scene: Callable[[World], Scene], choices: Choices, *, lost: Collection[str] = (), **how: Any
    ) -> dict[str, Any]:
        """Prepare a scene, play it in one order, and check what must be true of any."""
        self.number += 1
        for process in self.stage.processes.values():
            process.fleet.clock.advance(timedelta(seconds=5))
            process.call(_reserve(process.fleet))
        self.outsider.begin(self.first.clock())
        prepared = scene(self)
        found: dict[str, Any] = {}
        now = self.first.clock

        def look() -> None:
            self.outsider.look(now())

        try:
            found = self.results = self.stage.play(prepared.acts, choices, lost=lost, look=look, **how)
            for name in {each[:-1] for each in lost}:
                self.stage.processes[name].open_sessions()
            self.outsider.check(now())
            outcomes = {name: outcome(each) for name, each in found.items()}
            interrupted = {each[:-1] for each in lost}
            for name, each in outcomes.items():
                allowed = prepared.may_be_refused or name in interrupted
                assert allowed or each != Code.UNAVAILABLE.value, f"{name} is refused with 503"
            assert prepared.at_last(outcomes), outcomes
            if not interrupted:
                assert prepared.may_be(outcomes), outcomes
        except Exception as error:
            error.add_note("\n".join((f"{scene.__name__}, number {self.number}: {found}", *self.stage.told)))
            raise
        kind = tuple(sorted(outcomes.items()))
        self.seen[kind] = self.seen.get(kind, 0) + 1
        return found


def outcome(result: object) -> str:
    if isinstance(result, x509.Certificate):
        return ISSUED
    if isinstance(result, Refused):
        return result.code.value
    if isinstance(result, Pending | Killed):
        return type(result).__name__
    return DONE


async def _reserve(fleet: Fleet) -> None:
    """Have numbers for what comes: a reservation is one transaction more, in one order of sixty."""
    if len(fleet.serial_numbers._reserved) < 40:  # With fewer than half a block, a certificate reserves the next.
        await fleet.serial_numbers._reserve(fleet.clock())


def revoking(name: str) -> Act:
    return lambda fleet: fleet.revocation.revoke_device(name, SUPERSEDED, by="admin")


def renewing(certificate: x509.Certificate) -> Act:
    csr = successor_csr(certificate)
    return lambda fleet: fleet.reenrol(certificate, csr)


def enrolling(name: str, token: str, csr: bytes | None = None) -> Act:
    csr = csr or csr_der(names=[name])
    return lambda fleet: fleet.enrolment.enrol(csr, TokenCredential(name, token))


def enrol_and_revoke(world: World) -> Scene:
    """The device is there already; its token is void as soon as it is revoked."""
    name = world.name()
    world.call(group(world.first, "token", name=world.name("line"), new_key=NewKey.REPLACE))
    first = world.call(world.first.token(name, world.name("line")))
    world.call(world.first.enrolment.enrol(csr_der(names=[name]), TokenCredential(name, first)))
    token = world.call(world.first.token(name, world.name("line")))
    return Scene(
        {"first": enrolling(name, token), "second": revoking(name)},
        lambda found: found["second"] == DONE and found["first"] in {ISSUED, Code.TOKEN_VOID.value},
    )


def renew_and_revoke(world: World) -> Scene:
    certificate = world.call(world.first.enrol(world.name()))
    return Scene(
        {"first": renewing(certificate), "second": revoking(world.name())},
        lambda found: found["second"] == DONE and found["first"] in {ISSUED, Code.CERTIFICATE_REVOKED.value},
    )


def renew_and_decommission(world: World) -> Scene:
    certificate = world.call(world.first.enrol(world.name()))
    decommission: Act = lambda fleet: fleet.revocation.decommission(world.name(), by="admin")  # noqa: E731
    return Scene(
        {"first": renewing(certificate), "second": decommission},
        lambda found: found["second"] == DONE and found["first"] in {ISSUED, Code.CERTIFICATE_REVOKED.value},
    )


def renew_and_suspend(world: World) -> Scene:
    certificate = world.call(world.first.enrol(world.name()))
    suspend: Act = lambda fleet: fleet.suspension.suspend_device(world.name(), by="admin")  # noqa: E731
    return Scene(
        {"first": renewing(certificate), "second": suspend},
        lambda found: found["second"] == DONE and found["first"] in {ISSUED, Code.CERTIFICATE_SUSPENDED.value},
    )


def suspend_and_resume(world: World) -> Scene:
    name = world.name()
    world.call(world.first.enrol(name))
    world.call(world.first.suspension.suspend_device(name, by="admin"))
    return Scene(
        {
            "first": lambda fleet: fleet.suspension.suspend_device(name, by="admin"),
            "second": lambda fleet: fleet.suspension.resume_device(name, by="anna"),
        },
        lambda found: set(found.values()) == {DONE},
    )


def resume_and_revoke(world: World) -> Scene:
    name = world.name()
    world.call(world.first.enrol(name))
    world.call(world.first.suspension.suspend_device(name, by="admin"))
    return Scene(
        {"first": lambda fleet: fleet.suspension.resume_device(name, by="admin"), "second": revoking(name)},
        lambda found: found["second"] == DONE,
    )


def last_place_of_a_claim(world: World) -> Scene:
    line, batch = world.name("line"), world.name("batch")
    world.call(group(world.first, "claim", name=line))
    shared = world.call(claim(world.first, 1, batch, line))
    return Scene(
        {
            "first": lambda fleet: enrol(fleet, world.name("left"), certificate=shared),
            "second": lambda fleet: enrol(fleet, world.name("right"), certificate=shared),
        },
        lambda found: sorted(found.values()) == sorted((ISSUED, Code.CLAIM_EXHAUSTED.value)),
    )


def last_room_of_a_group(world: World) -> Scene:
    line = world.name("line")
    world.call(group(world.first, "token", name=line, maximum_devices=1))
    left, right = (world.name(side) for side in ("left", "right"))
    tokens = [world.call(world.first.token(name, line)) for name in (left, right)]
    return Scene(
        {"first": enrolling(left, tokens[0]), "second": enrolling(right, tokens[1])},
        lambda found: sorted(found.values()) == sorted((ISSUED, Code.GROUP_FULL.value)),
    )


def pace_of_a_group(world: World) -> Scene:
    line = world.name("line")
    world.call(group(world.first, "token", name=line, certificates_per_minute=1))
    left, right = (world.name(side) for side in ("left", "right"))
    tokens = [world.call(world.first.token(name, line)) for name in (left, right)]
    return Scene(
        {"first": enrolling(left, tokens[0]), "second": enrolling(right, tokens[1])},
        lambda found: sorted(found.values()) == sorted((ISSUED, Code.RATE_LIMITED.value)),
    )


def one_token_twice(world: World) -> Scene:
    token = world.call(world.first.token(world.name()))
    return Scene(
        {"first": enrolling(world.name(), token), "second": enrolling(world.name(), token)},
        lambda found: sorted(found.values()) == sorted((ISSUED, Code.TOKEN_USED.value)),
    )


def one_request_twice(world: World) -> Scene:
    """A device that has not heard the answer, and asks another process: it gets the same certificate."""
    token, csr = world.call(world.first.token(world.name())), csr_der(names=[world.name()])

    def same(found: Found) -> bool:
        first, second = world.results["first"], world.results["second"]
        return set(found.values()) == {ISSUED} and bool(first == second)

    return Scene({name: enrolling(world.name(), token, csr) for name in ("first", "second")}, same)


def one_key_of_two(world: World) -> Scene:
    key = generate_key()
    left, right = (world.name(side) for side in ("left", "right"))
    tokens = [world.call(world.first.token(name)) for name in (left, right)]
    return Scene(
        {
            "first": enrolling(left, tokens[0], csr_der(key, names=[left])),
            "second": enrolling(right, tokens[1], csr_der(key, names=[right])),
        },
        lambda found: sorted(found.values()) == sorted((ISSUED, Code.KEY_REUSED.value)),
    )


def approve_and_deny(world: World) -> Scene:
    """Two operators, and the device, which asks again."""
    name, line, key = world.name(), world.name("line"), generate_key()
    world.call(group(world.first, "approval", name=line))
    number = world.call(pending(world.first, name, key=key, label=line))

    def decide(*, approve: bool) -> Act:
        return lambda fleet: ApprovalService(fleet.database, fleet.clock).decide(number, approve=approve, by="anna")

    def asked(found: Found) -> bool:
        if found["third"] == ISSUED:
            return found["first"] == DONE and found["second"] in {DONE, Code.APPROVAL_DECIDED.value}
        after_the_denial = found["first"] == Code.APPROVAL_DECIDED.value
        return (
            (found["first"] == DONE or after_the_denial)
            and found["second"] == DONE
            and found["third"] in {"Pending", Code.APPROVAL_DENIED.value}
        )

    acts = {"first": decide(approve=True), "second": decide(approve=False)}
    csr = csr_der(key, names=[name])
    return Scene(acts | {"third": lambda fleet: fleet.enrolment.enrol(csr, None, line)}, asked)


def renew_expired_and_revoke(world: World) -> Scene:
    name, line = world.name(), world.name("line")
    world.call(group(world.first, "token", name=line, renewal_grace=timedelta(days=7), lifetime=timedelta(hours=1)))
    token = world.call(world.first.token(name, line))
    certificate = world.call(world.first.enrolment.enrol(csr_der(names=[name]), TokenCredential(name, token)))
    for process in world.stage.processes.values():
        process.fleet.clock.advance(timedelta(minutes=90))
    return Scene(
        {"first": renewing(certificate), "second": revoking(name)},
        lambda found: found["second"] == DONE and found["first"] in {ISSUED, Code.CERTIFICATE_REVOKED.value},
    )


def two_batches(world: World) -> Scene:
    """The same devices, named in opposite order: whoever locked them one by one would wait for the other for ever."""
    names = [world.name(side) for side in ("left", "right")]
    for name in names:
        world.call(world.first.enrol(name))
    return Scene(
        {
            "first": lambda fleet: fleet.revocation.revoke_batch(names, (), SUPERSEDED, by="admin"),
            "second": lambda fleet: fleet.suspension.suspend_batch(names[::-1], (), by="anna"),
        },
        lambda found: found["first"] == DONE,
    )


def two_revocations(world: World) -> Scene:
    """Two that write to the feed, about different devices."""
    names = [world.name(side) for side in ("left", "right")]
    for name in names:
        world.call(world.first.enrol(name))
    return Scene(
        {"first": revoking(names[0]), "second": revoking(names[1])}, lambda found: set(found.values()) == {DONE}
    )


def reserve_and_issue(world: World) -> Scene:
    """Both have no serial numbers left."""
    names = [world.name(side) for side in ("left", "right")]
    tokens = [world.call(world.first.token(name)) for name in names]
    for process in world.stage.processes.values():
        process.fleet.serial_numbers._reserved.clear()
    return Scene(
        {"first": enrolling(names[0], tokens[0]), "second": enrolling(names[1], tokens[1])},
        lambda found: set(found.values()) == {ISSUED},
    )


SMALL: Final = (
    enrol_and_revoke,
    renew_and_revoke,
    renew_and_decommission,
    renew_and_suspend,
    suspend_and_resume,
    resume_and_revoke,
    last_place_of_a_claim,
    last_room_of_a_group,
    pace_of_a_group,
    one_token_twice,
    one_request_twice,
    one_key_of_two,
    renew_expired_and_revoke,
    two_batches,
    two_revocations,
    reserve_and_issue,
)
"""Of two processes."""
