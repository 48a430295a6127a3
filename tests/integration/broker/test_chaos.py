"""All at once, at random: kill -9, disks that are full or fail, takeovers, wills, sessions that expire, a share.

The other tests try one of these at a time. Here they meet: a broker is killed while its disk is full, a session ends
while its batch is tried again, a will waits through both. Everybody keeps what it was told, and compares it at the end.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
import resource
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker.mqtt.codes import QoS, ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.packets import Publish, Subscribe, SubscriptionRequest
from tests.integration.broker.test_durability import check_intact
from tests.support.acting_thread import ActingThread
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.failing_disk import FailingDisk
from tests.support.pki import Pki
from tests.support.tls_client import Ended, TlsClient
from tests.support.traffic import Publisher, Subscriber
from tests.support.wire import V5, connect_packet, will

SECONDS = 12.0
_LONG = 3600
_UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


class Trouble:
    """What happens to the broker. `kills` and `failures` tell whether anything has, between two moments."""

    def __init__(self, broker: BrokerProcess, disk: FailingDisk | None, seed: int) -> None:
        """*disk*: one that also fails otherwise than by being full."""
        self.kills = 0
        self.failures = 0
        self._broker = broker
        self._disk = disk
        self._random = random.Random(seed)

    def run(self, seconds: float, taken_over: Callable[[], None]) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self._wait(0.3, 2.0)
            match self._random.choice(["kill", "fail", "fail", "fail and kill", "take over"]):
                case "kill":
                    self._kill()
                case "take over":
                    taken_over()
                case way:
                    self.failures += 1
                    self._fail()
                    self._wait(0.2, 1.5)
                    if way == "fail and kill":
                        self._kill()
                    else:
                        self._recover()

    def _fail(self) -> None:
        if self._disk is None:
            resource.prlimit(self._broker.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        else:
            number, syncs = self._random.choice([(errno.ENOSPC, False), (errno.EIO, False), (errno.EIO, True)])
            self._disk.fail(number, only_syncs=syncs)

    def _recover(self) -> None:
        if self._disk is None:
            resource.prlimit(self._broker.pid, resource.RLIMIT_FSIZE, _UNLIMITED)
        else:
            self._disk.recover()

    def _wait(self, least: float, most: float) -> None:
        time.sleep(self._random.uniform(least, most))  # Not for luck: the moment is what is tried.

    def _kill(self) -> None:
        self.kills += 1
        assert self._broker.stop(signal.SIGKILL) == -signal.SIGKILL
        if self._disk is not None and self._disk.fails:
            self._disk.recover()
        check_intact(self._broker.dir / "state" / "broker.db")
        self._broker.start()


class Clerk(ActingThread):
    """Lets clients begin and end, and notes what must come of it."""

    longest = 60

    def __init__(self, name: str, broker: BrokerProcess, pki: Pki, trouble: Trouble, seed: int) -> None:
        super().__init__()
        self.must: set[int] = set()
        """The wills that must be sent."""
        self.must_not: set[int] = set()
        self.compared = 0
        """How many sessions were found as they had to be: there, or gone."""
        self.retained = (0, 0)
        """The last number that was acknowledged, and the last that was sent."""
        self._name, self._broker, self._pki, self._trouble = name, broker, pki, trouble
        self._random = random.Random(seed)
        self._numbers = itertools.count(1000 * seed + 1)
        self._credential = pki.device(name).credential
        self._acts = (self._dies, self._returns, self._leaves, self._expires, self._is_kept, self._begins_afresh)

    def _act(self) -> None:
        with contextlib.suppress(Refused):
            self._random.choice(self._acts)(next(self._numbers))

    def _client(self, name: str, **connect: Any) -> tuple[TlsClient, bool]:
        credential = self._credential if name == self._name else self._pki.device(name).credential
        client = TlsClient(self._broker.port, self._broker.dir / "anchors.pem", credential)
        try:
            client.send(connect_packet(V5, client_id=name, **connect))
            answer = client.expect(Connack)
        except BaseException:
            client.socket.close()
            raise
        if answer.reason_code is not ReasonCode.SUCCESS:
            client.socket.close()
            raise Refused
        return client, answer.session_present

    def _again(self, name: str, **connect: Any) -> tuple[TlsClient, bool]:
        while True:
            try:
                return self._client(name, **connect)
            except (OSError, Ended, Refused):
                time.sleep(0.02)

    def _stored(self, kills: int) -> bool:
        """Wait until all that was done is on disk; return False if the broker was killed since there were *kills*."""
        before, sent = self.retained
        while True:
            sent += 1
            self.retained = before, sent
            try:
                client, _ = self._client(self._name, clean_start=True)
                with client:
                    answer = client.publish(f"fleet/meters/{self._name}/state", b"%d" % sent, qos=1, retain=True)
            except (OSError, Ended, Refused):
                answer = None
            if answer is not None and not answer.reason_code.is_failure:
                self.retained = sent, sent
                return self._trouble.kills == kills
            time.sleep(0.02)

    # What clients do

    def _with_will(self, number: int, delay: int) -> tuple[TlsClient, str, dict[str, Any]]:
        name = f"client-{number}"
        last = will(f"fleet/meters/{name}/event", b"%d" % number, 2, will_delay_interval=delay)
        kept: dict[str, Any] = {"clean_start": False, "session_expiry_interval": _LONG}
        client, _ = self._client(name, will=last, **kept)
        return client, name, kept

    def _dies(self, number: int) -> None:
        kills = self._trouble.kills
        client, *_ = self._with_will(number, self._random.choice([0, 1, 2]))
        if self._stored(kills):
            self.must.add(number)
        client.socket.close()

    def _returns(self, number: int) -> None:
        client, name, kept = self._with_will(number, 20)
        client.socket.close()
        kills, gone = self._trouble.kills, time.monotonic()
        client, _ = self._again(name, **kept)
        client.leave()
        if self._stored(kills) and time.monotonic() - gone < 15:
            self.must_not.add(number)

    def _leaves(self, number: int) -> None:
        client, *_ = self._with_will(number, 0)
        kills = self._trouble.kills
        client.leave()
        if self._stored(kills):
            self.must_not.add(number)

    def _brief(self, number: int, seconds: int) -> tuple[str, float, bool]:
        name, kills = f"client-{number}", self._trouble.kills
        client, _ = self._client(name, clean_start=False, session_expiry_interval=seconds)
        client.leave()
        gone = time.monotonic()
        return name, gone, self._stored(kills)

    def _expires(self, number: int) -> None:
        name, gone, stored = self._brief(number, 1)
        time.sleep(max(0.0, gone + 2.5 - time.monotonic()))
        if stored:
            self._compare(name, present=False)

    def _is_kept(self, number: int) -> None:
        name, _, stored = self._brief(number, _LONG)
        if stored:
            self._stopping.wait(self._random.uniform(0, 2))
            self._compare(name, present=True)

    def _begins_afresh(self, number: int) -> None:
        failures = self._trouble.failures  # Before: while the store fails nobody waits for the end of a session.
        name, _, _ = self._brief(number, _LONG)
        client, _ = self._client(name, clean_start=True)
        client.leave()
        if self._trouble.failures == failures:
            self._stopping.wait(self._random.uniform(0, 2))
            self._compare(name, present=False)

    def _compare(self, name: str, *, present: bool) -> None:
        brief = self._random.random() < 0.5
        kept: dict[str, Any] = {} if brief else {"session_expiry_interval": _LONG}
        answered = True
        try:
            client, found = self._client(name, clean_start=False, **kept)
        except (OSError, Ended, Refused):
            answered = False
            client, found = self._again(name, clean_start=False, **kept)
        client.leave()
        if brief and present and not answered:
            return  # Resumed for one connection it ends with the broker, which may have been killed before CONNACK.
        assert found is present, f"{name}: its session is {'there' if found else 'gone'}"
        self.compared += 1


class Refused(Exception):
    """The broker does not admit a client now."""


@pytest.mark.parametrize(("disk_is", "seed"), [("full", 1), ("bad", 2)])
def test_whatever_happens_at_once_everybody_finds_what_it_was_told(
    pki: Pki, tmp_path: Path, disk_is: str, seed: int
) -> None:
    broker, disk = BrokerProcess.with_files(tmp_path / "b", pki), None
    if disk_is == "bad":
        disk = FailingDisk(tmp_path)
        broker.environment = broker.environment | disk.environment
    anchors, trouble = broker.dir / "anchors.pem", Trouble(broker, disk, seed)

    def port() -> int:
        return broker.port

    def subscriber(name: str, qos: int, topic_filter: str) -> Subscriber:
        return Subscriber(port, anchors, name, pki.service(name).credential, qos, topic_filter)

    def publisher(name: str, qos: int) -> Publisher:
        topic = f"fleet/meters/{name}/telemetry"
        return Publisher(port, anchors, name, pki.device(name).credential, qos, topic)

    rival = pki.service("backend").credential

    def take_over() -> None:
        with contextlib.suppress(OSError, Ended, AssertionError):
            client = TlsClient(broker.port, anchors, rival)
            client.connect(client_id="backend", clean_start=False, session_expiry_interval=_LONG)
            client.socket.close()

    listeners = {
        "backend": subscriber("backend", 2, "fleet/meters/twice/telemetry"),
        "once": subscriber("once", 1, "fleet/meters/once/telemetry"),
        "watcher": subscriber("watcher", 2, "fleet/meters/+/event"),
        **{name: subscriber(name, 2, "$share/w/fleet/meters/twice/telemetry") for name in ("worker-1", "worker-2")},
    }
    with broker, contextlib.ExitStack() as stack:
        for each in listeners.values():
            stack.enter_context(each)
            assert each.subscribed.wait(60)
        clerks = [Clerk(f"clerk-{number}", broker, pki, trouble, 10 * seed + number) for number in range(3)]
        publishers = [publisher("once", 1), publisher("twice", 2)]
        for source in publishers:
            stack.enter_context(source)
        for clerk in clerks:
            stack.enter_context(clerk)
        trouble.run(SECONDS, take_over)
        for noted in ("must", "must_not", "compared"):  # On a slow machine some may not have come to anything yet.
            wait_until(lambda: any(getattr(clerk, noted) for clerk in clerks), noted)
        for clerk in clerks:
            clerk.__exit__()
        for source in publishers:
            source.finish()
        once, twice = (set(each.acknowledged) for each in publishers)
        must = set().union(*(clerk.must for clerk in clerks))
        must_not = set().union(*(clerk.must_not for clerk in clerks))

        def shared() -> list[int]:
            return listeners["worker-1"].got + listeners["worker-2"].got

        wait_until(lambda: set(listeners["once"].got) >= once, "all at QoS 1 arrives")
        wait_until(lambda: set(listeners["backend"].got) >= twice, "all at QoS 2 arrives")
        wait_until(lambda: set(shared()) >= twice, "the share gets all")
        wait_until(lambda: set(listeners["watcher"].got) >= must, f"all wills arrive: {must}")
    got, wills = listeners["backend"].got, listeners["watcher"].got
    assert got == sorted(set(got)), "doubled, or out of order"
    assert len(shared()) == len(set(shared())), "doubled in the share"
    assert len(wills) == len(set(wills)), "a will was sent twice"
    assert not set(wills) & must_not, "a will was sent that was cancelled"
    for listener, source in (("once", publishers[0]), ("backend", publishers[1])):
        assert not set(listeners[listener].got) & set(source.refused), "refused, and delivered all the same"
    assert "Traceback" not in broker.log
    assert min(len(once), len(twice)) > 0
    check_intact(broker.dir / "state" / "broker.db")
    compare_figures(broker, pki, {clerk._name: clerk.retained for clerk in clerks})


def compare_figures(broker: BrokerProcess, pki: Pki, retained: dict[str, tuple[int, int]]) -> None:
    """Compare what the broker says of itself, after another start, with its database and with what it was given."""
    figures: dict[str, str] = {}
    auditor = pki.service("auditor").credential
    with broker, TlsClient(broker.port, broker.dir / "anchors.pem", auditor) as client:
        client.connect(client_id="auditor", clean_start=True)
        filters = ("$SYS/broker/#", "fleet/meters/+/state")
        client.send(Subscribe(1, tuple(SubscriptionRequest(each, QoS.AT_MOST_ONCE) for each in filters)))
        latest = ""
        while (latest, figures.get("clients/connected")) != ("uptime", "1"):  # It is published after the others.
            packet = client.next_packet()
            if isinstance(packet, Publish):
                latest = packet.topic.removeprefix("$SYS/broker/")
                figures[latest] = packet.payload.decode()
        broker.stop(signal.SIGTERM)
    for name, (acknowledged, sent) in retained.items():
        assert acknowledged <= int(figures[f"fleet/meters/{name}/state"]) <= sent
    with contextlib.closing(sqlite3.connect(broker.dir / "state" / "broker.db")) as opened:

        def count(what: str) -> int:
            (found,) = opened.execute(f"SELECT count(*) FROM {what}").fetchone()
            return int(found)

        assert int(figures["clients/total"]) == count("sessions") + 1
        assert int(figures["subscriptions/count"]) == count("subscriptions WHERE topic_filter NOT LIKE '$share/%'") + 2
        assert int(figures["shared_subscriptions/count"]) == count("subscriptions WHERE topic_filter LIKE '$share/%'")
