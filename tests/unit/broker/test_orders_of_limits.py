"""Whatever the order in which clients come, wait and go, limits, bans and policies change: each place is given once.

What must hold: of a limit's places none is given twice, nor lost when its holder is gone; nobody is admitted who was
banned before; and once a policy is in force nothing is granted, delivered or kept that it does not permit.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.admission import trust as trust_module
from broker.admission.bundle import TrustBundle
from broker.admission.policy import Kind, Rules, Section, TopicPolicy
from broker.admission.trust import Trust
from broker.engine.history import Event, Happened
from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.packets import Puback, Publish, Suback, Subscribe
from broker.reload import policy_change
from provisioning.pki.role import Role
from tests.support.interleavings import Choices, every_order, some_orders
from tests.support.pki import shared_device, shared_service
from tests.support.stepped_scene import OLD, PKI, Scene, Steps
from tests.support.stored import StoredBroker
from tests.support.wire import KEPT, V5, MemoryBroker, WireClient, connect_packet, publication, request, will

pytestmark = pytest.mark.hypothesis
BACKEND = shared_service("backend")
RULES = Rules(("#",), (), ("#",))
SERVICES = Section(Kind.ROLE, Role.SERVICE, RULES)
OPEN = TopicPolicy([SERVICES, Section(Kind.ROLE, Role.DEVICE, RULES)])
ONLY_A = TopicPolicy([SERVICES, Section(Kind.ROLE, Role.DEVICE, Rules(("a",), (), ("a",)))])


@pytest.fixture(autouse=True)
def _unlogged() -> Iterator[None]:
    with capture_logs():  # A line takes longer than a step.
        yield


@contextlib.contextmanager
def slow_broker(directory: Path, numbers: Iterator[int], **limits: Any) -> Iterator[StoredBroker]:
    """A broker whose disk writes when the test says so."""
    place = directory / str(next(numbers))
    place.mkdir()
    broker = StoredBroker(place, **limits)
    with contextlib.closing(broker):
        broker.held = True
        yield broker


class Instances(Scene):
    """A service with at most two instances besides that of its own name."""

    def comes(self, name: str, *, clean_start: bool = False, expiry: int = 600) -> Steps:
        client = self.broker.open(BACKEND)
        self.clients.append(client)
        asked: dict[str, Any] = {"clean_start": clean_start, "session_expiry_interval": expiry}
        client.send(connect_packet(V5, client_id=name, **asked))
        yield lambda: client.connection.session is not None or client.closed
        if not client.closed:
            client.leave()

    def check(self, after: str) -> None:
        super().check(after)
        registry = self.broker.engine.registry
        taken = [each for each in registry.all() if each.client_id != "backend"]
        owner = taken[0].owner if taken else None
        assert len(taken) <= 2, "a place was given twice"
        assert owner is None or registry.instances(owner) == len(taken), "miscounted"


def test_no_more_instances_than_allowed_and_no_place_is_lost(tmp_path: Path) -> None:
    numbers = iter(range(1_000_000))

    def run(choices: Choices) -> None:
        with slow_broker(tmp_path, numbers, max_instances=2, max_connects_per_identity=0) as broker:
            scene = Instances(broker, tmp_path)
            for _ in scene.comes("backend-1"):
                pass
            every_order(
                {
                    "the first anew": scene.comes("backend-1", clean_start=True),
                    "the first for a moment": scene.comes("backend-1", expiry=0),
                    "the second": scene.comes("backend-2", expiry=1),
                    "the third": scene.comes("backend-3", expiry=1),
                    "the disk": scene.writes(4),
                    "time": passes(scene, 3.0),
                },
                choices,
                scene.check,
            )
            broker.held = False
            broker.settle()
            for each in scene.clients:
                each.vanish()
            broker.advance(700)
            broker.keep_fresh()
            assert not broker.engine.registry.all()
            for name in ("backend-4", "backend-5"):
                late = broker.open(BACKEND)
                late.connect(client_id=name)
            broker.open(BACKEND).connect(client_id="backend-6", expect=ReasonCode.QUOTA_EXCEEDED)

    some_orders(run, 8, 1_000)


def passes(scene: Scene, seconds: float) -> Steps:
    scene.broker.advance(seconds)
    yield from ()


class Banned(Scene):
    """Where who is admitted although banned before is noted."""

    is_banned = False

    def saw(self, event: Event) -> None:
        super().saw(event)
        if event.what is Happened.ADMITTED:
            self.wrong += [event] * self.is_banned

    def check(self, after: str) -> None:
        super().check(after)
        bans = self.broker.engine.guard._bans
        self.is_banned = any(until > self.broker.now for until, _ in bans.values())


def test_nobody_is_admitted_who_was_banned_before_and_attempts_are_counted_once(tmp_path: Path) -> None:
    """A device comes and is lost again and again, while one of its connections waits for the disk."""
    numbers = iter(range(1_000_000))

    def run(choices: Choices) -> None:
        limits = {"flapping_count": 3, "max_connects_per_identity": 5, "ban_seconds": 60}
        with slow_broker(tmp_path, numbers, **limits) as broker:
            scene = Banned(broker, tmp_path)

            def comes_and_goes(*, clean_start: bool) -> Steps:
                number = len(scene.clients)
                for _ in scene.connects(OLD, clean_start=clean_start, session_expiry_interval=600):
                    pass
                client = scene.clients[number]
                yield lambda: client.connection.session is not None or client.closed
                client.vanish()

            every_order(
                {
                    "the first": comes_and_goes(clean_start=False),
                    "the second": comes_and_goes(clean_start=True),
                    "the third": comes_and_goes(clean_start=True),
                    "the fourth": comes_and_goes(clean_start=False),
                    "the fifth": comes_and_goes(clean_start=True),
                    "the sixth": comes_and_goes(clean_start=False),
                    "the disk": scene.writes(4),
                },
                choices,
                scene.check,
            )
            broker.held = False
            broker.settle()
            scene.check("all")
            answers = Counter(scene.answers.values())
            assert answers[ReasonCode.SUCCESS] <= 5
            assert answers[ReasonCode.CONNECTION_RATE_EXCEEDED] <= 1, "the sixth at most exceeds the rate"

    some_orders(run, 8, 1_000)


def test_there_is_room_for_two_cas_whichever_come_first_and_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_module, "_MOST_PATHS", 2)
    ends = PKI.now + timedelta(seconds=100)
    brief = PKI.authority("Brief CA", PKI.root, not_after=ends)
    authorities = [brief, PKI.authority("Lasting CA", PKI.root), PKI.authority("Third CA", PKI.root)]
    held = [PKI.device("meter-1", issuer=each) for each in authorities]

    def run(choices: Choices) -> None:
        broker = MemoryBroker(max_connects_per_identity=0)
        bundle = TrustBundle("", [PKI.root.certificate])
        trust = Trust([bundle])
        broker.engine.admission.believe(trust)
        known: set[int] = set()

        def comes(which: int, times: int) -> Steps:
            for number in range(times):
                if number:
                    yield
                client = broker.open(held[which], path=[each.der for each in (held[which], authorities[which])])
                client.send(connect_packet(V5, client_id="meter-1"))
                answer = client.next_packet(Connack)
                is_over = broker.wall > ends
                if which not in known and len(known) == 2 and is_over:
                    known.discard(0)
                has_room = which in known or len(known) < 2
                if has_room:
                    known.add(which)
                expected = ReasonCode.SUCCESS if has_room else ReasonCode.QUOTA_EXCEEDED
                if which == 0 and is_over:
                    expected = ReasonCode.NOT_AUTHORIZED
                assert answer.reason_code is expected, (which, answer)
                assert trust.paths_of(bundle) == len(known) <= 2

        def time() -> Steps:
            broker.advance(200.0)
            broker.keep_fresh()
            yield from ()

        every_order({"brief": comes(0, 2), "lasting": comes(1, 2), "third": comes(2, 2), "time": time()}, choices)

    some_orders(run, 12, 1_000)


def test_once_a_policy_is_in_force_nothing_is_granted_delivered_or_kept_that_it_forbids(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(policy_change, "_SESSIONS_A_STEP", 1)

    def run(choices: Choices) -> None:
        broker = MemoryBroker(policy=OPEN, max_connects_per_identity=0)
        watcher = broker.open(BACKEND)
        watcher.connect(client_id="backend")
        watcher.subscribe("#", qos=1)
        clients: dict[str, WireClient] = {}
        for name in ("meter-1", "meter-2"):
            clients[name] = broker.open(shared_device(name))
            clients[name].connect(client_id=name, **KEPT)
            clients[name].publish("b", b"before", qos=1)
        watcher.received()
        change = policy_change.change(broker.engine, ONLY_A, lambda: broker.now)
        in_force = False

        def reloads() -> Steps:
            nonlocal in_force
            with contextlib.suppress(StopIteration):
                while True:
                    change.send(None)
                    in_force = True
                    yield

        def publishes() -> Steps:
            for number in range(3):
                if not clients["meter-1"].closed:
                    clients["meter-1"].send(publication("b", b"%d" % in_force, 1, packet_id=10 + number))
                yield

        def subscribes() -> Steps:
            for number, name in enumerate(("meter-2", "meter-1")):
                if not clients[name].closed:
                    clients[name].send(Subscribe(20 + number, (request("b", 1), request("a", 1))))
                yield

        def leaves_a_will() -> Steps:
            client = clients["meter-3"] = broker.open(shared_device("meter-3"))
            yield
            left = will("b", b"%d" % in_force, will_delay_interval=60)
            client.send(connect_packet(V5, client_id="meter-3", will=left, **KEPT))
            yield
            client.vanish()

        def check(after: str) -> None:
            for packet in watcher.received():
                if isinstance(packet, Publish):
                    watcher.acknowledge(packet)
                    assert packet.payload == b"0", f"published when it was forbidden: {after}"
            for client in clients.values():
                for packet in client.received():
                    match packet:
                        case Suback(_, (first, _)):
                            assert in_force is (first is ReasonCode.NOT_AUTHORIZED), f"granted: {after}"
                        case Puback(_, reason):
                            assert in_force is (reason is ReasonCode.NOT_AUTHORIZED), f"permitted: {after}"
                        case Connack(reason) if client is clients.get("meter-3"):
                            assert in_force is (reason is ReasonCode.NOT_AUTHORIZED), f"a will was taken: {after}"

        every_order(
            {
                "the reload": reloads(),
                "who publishes": publishes(),
                "who subscribes": subscribes(),
                "who leaves a will": leaves_a_will(),
            },
            choices,
            check,
        )
        for session in broker.engine.registry.all():
            assert session is watcher.session or "b" not in session.subscriptions
            assert session.will is None, "its topic is forbidden"
        broker.advance(120)
        broker.keep_fresh()
        check("all")

    some_orders(run, 10, 1_000)
