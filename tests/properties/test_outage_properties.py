"""Outages of the store, crashes and takeovers together: everybody finds what it was told.

Two devices publish at any QoS, retain and clear, and leave wills; three services subscribe, two of them in a share.
Sessions are resumed, begun afresh, brief, taken over, left to expire; the store fails, for one attempt or for long,
also so that only its fsync does, and the broker is killed at any point between, finding the batch that was tried in
SQLite's log, or not. What must come of it is what the peers were told (`tests.support.honest_peer`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from broker.mqtt.packets import Publish
from tests.support.examples import IS_THOROUGH, examples
from tests.support.honest_peer import SHARED, Fate, Ledger, Peer, Sent
from tests.support.pki import shared_device, shared_service
from tests.support.stored import StoredBroker

DEVICES = ("meter-1", "meter-2")
SERVICES = {"backend": 2, "worker-1": 2, "worker-2": 1}
"""With the QoS of their subscriptions; in the share it is 2."""
STEPS = (
    *[f"device {act}" for act in ("publish 1", "publish 2", "publish 2", "retain 1", "read")] * 3,
    *[f"device {act}" for act in ("publish 0", "retain 0", "retain 2", "clear 0", "clear 1", "clear 2")],
    *[f"device {act}" for act in ("connect", "clean", "brief", "vanish", "leave", "leave for good")],
    *[f"service {act}" for act in ("read", "read a little", "read a little", "subscribe 1", "connect")] * 3,
    *[f"service {act}" for act in ("clean", "brief", "vanish", "vanish", "leave", "leave for good")],
    *[f"service {act}" for act in ("subscribe 2", "subscribe 2", "subscribe 3", "unsubscribe 1", "unsubscribe 2")],
    *["broker write"] * 8,
    *[f"broker {act}" for act in ("fail", "fail to sync", "outage", "outage", "over", "killed", "killed later")],
    *[f"broker {act}" for act in ("wait", "wait for long")],
)
BEGINNING = [
    *[("service connect", name) for name in SERVICES],
    *[("device connect", name) for name in DEVICES],
    *[(f"service subscribe {each}", name) for each, name in ((1, "backend"), (3, "backend"), (1, "worker-2"))],
    *[("broker write", ""), ("service read", "backend"), ("service read", "worker-2")],
]


class Story:
    """The broker and its peers."""

    def __init__(self, directory: Path) -> None:
        self.ledger = Ledger()
        self.broker = StoredBroker(directory)
        self.broker.held = True
        self.out = False
        """Whether the store fails until further notice."""
        self.devices = [Peer(name, shared_device(name), self.ledger, leaves_wills=True) for name in DEVICES]
        self.services = [Peer(name, shared_service(name), self.ledger) for name in SERVICES]
        self.peers = {each.name: each for each in (*self.devices, *self.services)}

    def act(self, step: str, name: str) -> None:
        who, _, what = step.partition(" ")
        if who == "broker":
            self._act(what)
            return
        peer, (verb, *argument) = self.peers[name], what.split(" ", 1)
        match verb:
            case "connect" | "clean" | "brief":
                peer.connect(self.broker, clean=verb == "clean", brief=verb == "brief")
                peer.read(1)
            case "publish":
                peer.publish(int(argument[0]))
            case "retain" | "clear":
                peer.retain(int(argument[0]), clear=verb == "clear")
            case "subscribe":
                peer.subscribe(int(argument[0]), 2 if argument == ["2"] else SERVICES[name])
            case "unsubscribe":
                peer.unsubscribe(int(argument[0]))
            case "read":
                peer.read(2 if argument else 1000)
            case "vanish":
                peer.vanish()
            case "leave":
                peer.leave(for_good=bool(argument))

    def _act(self, what: str) -> None:
        match what:
            case "write":
                self._try(logged=False)
            case "fail" | "fail to sync":
                was, self.out = self.out, True
                self._try(logged=what == "fail to sync")
                self.out = was
            case "outage" | "over":
                self.out = what == "outage"
                self._try(logged=True)
            case "killed" | "killed later":
                self.broker = self.broker.killed(logged=what == "killed later")
                self.broker.held = True
                self.ledger.killed()
                for peer in self.peers.values():
                    peer.killed()
            case _:
                long = what == "wait for long"
                self.broker.keep_fresh()
                self.broker.advance(700 if long else 5)
                self.broker.keep_fresh()
                for peer in self.peers.values():
                    if long:
                        peer.expired()

    def _try(self, *, logged: bool) -> None:
        journal = self.broker.journal
        if self.out:
            if journal.dirty or journal.failed:
                self.broker.fail(logged=logged)
            return
        while self.broker.write():
            pass
        if not (journal.dirty or journal.failed):
            self.ledger.on_disk()
            for peer in self.peers.values():
                peer.on_disk()

    def settle(self) -> None:
        """Let everybody connect and finish."""
        self.out, self.broker.held = False, False
        for _ in range(3):
            self.broker.keep_fresh()
            self._rest()
            self.broker.advance(10)  # Wills that a crash has left are sent.
        self._rest()

    def _rest(self) -> None:
        self._try(logged=False)
        for _ in range(200):
            for peer in self.peers.values():
                if peer.client is None:
                    peer.connect(self.broker)
            came = [each.read() for each in self.peers.values()]
            if not any(came):
                return
        raise AssertionError("it does not come to rest")

    def check(self) -> None:
        ledger = self.ledger
        taken = {number: each for number, each in ledger.messages.items() if each.fate is Fate.TAKEN}
        refused = {number for number, each in ledger.messages.items() if each.fate is Fate.REFUSED}
        for peer in self.services:
            expected = {1: {number: each.first for number, each in taken.items()}, 3: ledger.wills}
            for identifier, sent in expected.items():
                since = peer.since.get(identifier)
                must = {number for number, at in sent.items() if since is not None and at > since}
                assert must <= peer.got[identifier], f"{peer.name} has lost {must - peer.got[identifier]}"
            assert not (peer.got[1] | peer.got[SHARED]) & refused, "refused, and delivered all the same"
            assert not ledger.cancelled & peer.got[3], "a will was sent that was cancelled"
        auditor = self.broker.service("auditor")
        auditor.subscribe("fleet/meters/+/state")
        found = {each.topic: each.payload for each in auditor.received() if isinstance(each, Publish)}
        for topic, changes in ledger.retained.items():
            possible = {
                each.payload for each in changes if each.fate is not Fate.REFUSED and not overwritten(each, changes)
            }
            if not any(each.fate is Fate.TAKEN for each in changes):
                possible.add(b"")
            assert found.get(topic, b"") in possible, f"{topic} is not what was retained"
        orphans = "SELECT * FROM messages WHERE id NOT IN (SELECT message FROM deliveries)"
        assert self.broker.store.rows(orphans) == []


def overwritten(change: Sent, changes: list[Sent]) -> bool:
    """Whether another was acknowledged that was not sent before *change* had been sent for the last time."""
    return any(each.fate is Fate.TAKEN and each.first > change.last for each in changes)


def play(steps: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        story = Story(Path(directory))
        try:
            for step, name in BEGINNING + steps:
                story.act(step, name)
                for peer in story.peers.values():
                    peer.look()
            story.settle()
            story.check()
        finally:
            story.broker.close()


_NAMES = {"device": DEVICES, "service": tuple(SERVICES), "broker": ("",)}


def named(step: str, choice: int) -> tuple[str, str]:
    """Return *step*, and who takes it."""
    names = _NAMES[step.partition(" ")[0]]
    return step, names[choice % len(names)]


@examples(80, derandomize=not IS_THOROUGH, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.builds(named, st.sampled_from(STEPS), st.integers(0, 5)), min_size=40, max_size=90))
def test_everybody_finds_what_it_was_told(steps: list[tuple[str, str]]) -> None:
    play(steps)
