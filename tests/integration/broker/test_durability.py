"""What was acknowledged outlives the broker: kill -9 under load, a disk that is full for a while, a restart."""

from __future__ import annotations

import contextlib
import errno
import random
import resource
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.mqtt.codes import QoS, ReasonCode
from broker.mqtt.packets import Puback, Publish, Pubrec, Suback, Subscribe, SubscriptionRequest
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.failing_disk import FailingDisk
from tests.support.pki import Held, Pki
from tests.support.tls_client import TlsClient
from tests.support.traffic import Publisher, Stream, Subscriber
from tests.support.wire import KEPT, V311, id_of, publication, will

KILLS = 5
TOPIC = "fleet/meters/meter/telemetry"


@pytest.fixture
def durable(pki: Pki, tmp_path: Path) -> BrokerProcess:
    """A broker that a test may kill; it does not run yet."""
    return BrokerProcess.with_files(tmp_path / "b", pki)


@pytest.fixture
def meter_held(pki: Pki) -> Held:
    return pki.device("meter")


@contextlib.contextmanager
def traffic(broker: BrokerProcess, pki: Pki, meter: Held, qos: int) -> Iterator[tuple[Publisher, Subscriber]]:
    """A publisher and a subscriber at *qos* that have found each other."""
    anchors = broker.dir / "anchors.pem"

    def port() -> int:
        return broker.port

    subscriber = Subscriber(port, anchors, "backend", pki.service("backend").credential, qos, "fleet/meters/#")
    publisher = Publisher(port, anchors, "meter", meter.credential, qos, TOPIC)
    with subscriber:
        assert subscriber.subscribed.wait(60)
        with publisher:
            yield publisher, subscriber


@contextlib.contextmanager
def ticking(broker: BrokerProcess, pki: Pki) -> Iterator[Subscriber]:
    """Somebody else, who publishes and listens at QoS 0."""
    anchors, topic = broker.dir / "anchors.pem", "fleet/ticks/ticker/telemetry"
    listener = Subscriber(lambda: broker.port, anchors, "listener", pki.service("listener").credential, 0, topic)
    ticker = Stream(lambda: broker.port, anchors, "ticker", pki.device("ticker", "ticks").credential, topic)
    with listener:
        assert listener.subscribed.wait(60)
        with ticker:
            yield listener


def check_intact(database: Path) -> None:
    """Make sure that the database is whole and holds no message that nobody will get."""
    with contextlib.closing(sqlite3.connect(database)) as opened:
        assert opened.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert opened.execute("PRAGMA foreign_key_check").fetchall() == []
        orphans = "SELECT count(*) FROM messages WHERE id NOT IN (SELECT message FROM deliveries)"
        assert opened.execute(orphans).fetchone() == (0,)
        lost = "SELECT count(*) FROM deliveries WHERE message NOT IN (SELECT id FROM messages)"
        assert opened.execute(lost).fetchone() == (0,)


def kill(broker: BrokerProcess) -> None:
    """Kill *broker* in the middle of whatever it does; start it again, on a database that is whole."""
    assert broker.stop(signal.SIGKILL) == -signal.SIGKILL
    check_intact(broker.dir / "state" / "broker.db")
    broker.start()


@pytest.mark.parametrize("qos", [1, 2])
def test_kill_9_under_load_loses_nothing_acknowledged_and_doubles_nothing_at_qos2(
    durable: BrokerProcess, pki: Pki, meter_held: Held, qos: int
) -> None:
    moments = random.Random(qos)
    with (
        durable,
        traffic(durable, pki, meter_held, qos) as (publisher, subscriber),
        ticking(durable, pki) as listener,
    ):
        for _ in range(KILLS):
            ticks = len(listener.got)
            wait_until(lambda: len(listener.got) > ticks, "others are served at QoS 0")
            before = len(publisher.acknowledged)
            wait_until(lambda: len(publisher.acknowledged) > before, "messages are acknowledged")
            time.sleep(moments.uniform(0, 0.4))  # Not for luck: the moment of death is what is tried.
            kill(durable)
        publisher.finish()
        wait_until(lambda: set(subscriber.got) >= set(publisher.acknowledged), "all that was acknowledged arrives")
        ticks = len(listener.got)
        wait_until(lambda: len(listener.got) > ticks, "others are served at QoS 0")
    assert listener.got == sorted(set(listener.got)), "doubled, or out of order, at QoS 0"
    assert "Traceback" not in durable.log
    assert publisher.connections >= KILLS
    assert len(publisher.acknowledged) == len(set(publisher.acknowledged))
    if qos == 2:
        assert subscriber.got == sorted(set(subscriber.got)), "doubled, or out of order"


@pytest.mark.parametrize("qos", [1, 2])
def test_kill_9_under_load_costs_a_share_nothing_and_no_two_members_get_the_same_at_qos2(
    durable: BrokerProcess, pki: Pki, meter_held: Held, qos: int
) -> None:
    """Whom a message was given to is on disk before he has it: after a kill it is his, and no other member's."""
    anchors = durable.dir / "anchors.pem"
    moments = random.Random(qos)

    def port() -> int:
        return durable.port

    with durable, contextlib.ExitStack() as stack:
        members = []
        for name in ("worker-1", "worker-2", "worker-3"):
            credential = pki.service(name).credential
            member = Subscriber(port, anchors, name, credential, qos, "$share/workers/fleet/meters/#")
            members.append(stack.enter_context(member))
            assert member.subscribed.wait(60)
        publisher = stack.enter_context(Publisher(port, anchors, "meter", meter_held.credential, qos, TOPIC))
        for _ in range(KILLS):
            for member in members:
                before = len(member.got)
                wait_until(lambda: len(member.got) > before, "each member gets some")
            time.sleep(moments.uniform(0, 0.4))  # Not for luck: the moment of death is what is tried.
            kill(durable)
        publisher.finish()
        acknowledged = set(publisher.acknowledged)
        wait_until(
            lambda: {number for member in members for number in member.got} >= acknowledged,
            "all that was acknowledged arrives",
        )
    if qos == 2:
        got = sorted(number for member in members for number in member.got)
        assert got == sorted(set(got)), "doubled"


@pytest.mark.parametrize("qos", [1, 2])
def test_a_full_disk_is_said_and_costs_nothing_acknowledged(
    durable: BrokerProcess, pki: Pki, meter_held: Held, qos: int
) -> None:
    with durable, traffic(durable, pki, meter_held, qos) as (publisher, subscriber):
        wait_until(lambda: len(publisher.acknowledged) > 50, "messages are acknowledged")
        resource.prlimit(durable.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        wait_until(lambda: durable.events("STORE_FAILED"), "the store fails")
        if qos == 1:  # What is under way waits, and is answered when its subscriber has acknowledged it.
            wait_until(lambda: len(publisher.refused) > 20, "messages are refused")
        with TlsClient(durable.port, durable.dir / "anchors.pem", pki.device("new").credential) as newer:
            newer.connect(client_id="new")
            newer.send(publication("fleet/meters/new/x", b"-1 ", qos, packet_id=1))
            answers: type[Puback | Pubrec] = Puback if qos == 1 else Pubrec
            refusal = newer.expect(answers)
            assert refusal.reason_code is ReasonCode.QUOTA_EXCEEDED
            newer.check_alive()
        older = TlsClient(durable.port, durable.dir / "anchors.pem", pki.device("old").credential, version=V311)
        with older:  # It cannot be told in a packet.
            older.connect(client_id="old", clean_start=True)
            older.send(publication("fleet/meters/old/x", b"-1 ", qos, packet_id=1))
            older.expect_end()
        acknowledged = len(publisher.acknowledged)
        resource.prlimit(durable.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        wait_until(lambda: len(publisher.acknowledged) > acknowledged + 50, "the broker recovers")
        assert len(durable.events("STORE_WRITTEN")) == 1
        kill(durable)
        publisher.finish()
        wait_until(lambda: set(subscriber.got) >= set(publisher.acknowledged), "all that was acknowledged arrives")
    assert not set(subscriber.got) & set(publisher.refused), "refused, and delivered all the same"
    if qos == 2:
        assert subscriber.got == sorted(set(subscriber.got))


@pytest.mark.parametrize(
    ("number", "qos", "only_syncs"),
    [(errno.EIO, 1, False), (errno.EROFS, 2, False), (errno.EIO, 1, True)],
    ids=["bad", "read-only", "takes what it does not keep"],
)
def test_a_disk_that_fails_is_said_and_costs_nothing_acknowledged(
    durable: BrokerProcess, pki: Pki, meter_held: Held, tmp_path: Path, number: int, qos: int, only_syncs: bool
) -> None:
    """Nor where only a sync tells: what is acknowledged has been through it."""
    disk, usual = FailingDisk(tmp_path), durable.environment
    durable.environment = usual | disk.environment
    with durable, traffic(durable, pki, meter_held, qos) as (publisher, subscriber):
        wait_until(lambda: len(publisher.acknowledged) > 50, "messages are acknowledged")
        disk.fail(number, only_syncs=only_syncs)
        wait_until(lambda: durable.events("STORE_FAILED"), "the store fails")
        with TlsClient(durable.port, durable.dir / "anchors.pem", pki.device("new").credential) as newer:
            newer.connect(client_id="new")
            newer.send(publication("fleet/meters/new/x", b"-1 ", qos, packet_id=1))
            answers: type[Puback | Pubrec] = Puback if qos == 1 else Pubrec
            refusal = newer.expect(answers)
            assert refusal.reason_code is ReasonCode.QUOTA_EXCEEDED
        acknowledged = len(publisher.acknowledged)
        disk.recover()
        wait_until(lambda: len(publisher.acknowledged) > acknowledged + 50, "the broker recovers")
        assert len(durable.events("STORE_WRITTEN")) == 1
        assert durable.stop(signal.SIGKILL) == -signal.SIGKILL
        check_intact(durable.dir / "state" / "broker.db")
        durable.environment = usual
        durable.start()
        publisher.finish()
        wait_until(lambda: set(subscriber.got) >= set(publisher.acknowledged), "all that was acknowledged arrives")
    assert not set(subscriber.got) & set(publisher.refused), "refused, and delivered all the same"
    assert -1 not in subscriber.got
    if qos == 2:
        assert subscriber.got == sorted(set(subscriber.got))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_keeps_sessions_subscriptions_messages_and_wills(
    durable: BrokerProcess, pki: Pki, meter_held: Held, number: signal.Signals
) -> None:
    anchors = durable.dir / "anchors.pem"
    backend, watcher = pki.service("backend").credential, pki.service("watcher").credential
    with durable:
        with TlsClient(durable.port, anchors, backend) as client:
            client.connect(client_id="backend", **KEPT)
            client.subscribe("fleet/+/+/telemetry", qos=2)
        with TlsClient(durable.port, anchors, watcher) as client:
            client.connect(client_id="watcher", **KEPT)
            client.subscribe("fleet/meters/meter/event", qos=1)
        dying = TlsClient(durable.port, anchors, meter_held.credential)
        with dying:
            dying.connect(client_id="meter", will=will("fleet/meters/meter/event", b"gone", 1), **KEPT)
            for payload in (b"one", b"two"):
                dying.publish(TOPIC, payload, qos=1, content_type="text")
            dying.publish("fleet/meters/meter/state", b"on", qos=1, retain=True)
            durable.stop(number)
        durable.start()
        with TlsClient(durable.port, anchors, backend) as client:
            assert client.connect(client_id="backend", **KEPT).session_present
            for payload in (b"one", b"two"):
                message = client.expect(Publish)
                assert (message.payload, message.qos, message.properties.content_type) == (payload, 1, "text")
                client.send(Puback(id_of(message)))
            client.send(Subscribe(9, (SubscriptionRequest("fleet/meters/meter/state", QoS.AT_LEAST_ONCE),)))
            answers = {type(each): each for each in (client.next_packet(), client.next_packet())}  # In either order.
            assert (answers[Publish].payload, answers[Publish].retain) == (b"on", True)  # type: ignore[union-attr]
            assert Suback in answers
        with TlsClient(durable.port, anchors, watcher) as client:
            assert client.connect(client_id="watcher", **KEPT).session_present
            assert client.expect(Publish).payload == b"gone"  # Its client is not back in time.
        with TlsClient(durable.port, anchors, meter_held.credential) as client:
            assert client.connect(client_id="meter", **KEPT).session_present


def test_time_goes_on_over_kill_9_and_what_a_share_holds_is_not_lost(
    durable: BrokerProcess, pki: Pki, meter_held: Held
) -> None:
    """Sessions end at their time, a will comes after its delay, and another member gets what one had, who is gone."""
    anchors = durable.dir / "anchors.pem"
    credentials = {name: pki.service(name).credential for name in ("brief", "worker", "watcher")}

    def come(name: str, expiry: float) -> TlsClient:
        client = TlsClient(durable.port, anchors, credentials[name])
        answer = client.connect(client_id=name, clean_start=False, session_expiry_interval=expiry)
        present[name] = answer.session_present
        return client

    present: dict[str, bool] = {}
    with durable:
        for name, expiry in (("brief", 3), ("worker", 600)):
            with come(name, expiry) as member:
                member.subscribe("$share/workers/fleet/meters/+/telemetry", qos=1)
                member.leave()
        with come("watcher", 600) as watcher:
            watcher.subscribe("fleet/meters/meter/event", qos=1)
        meter = TlsClient(durable.port, anchors, meter_held.credential)
        last = will("fleet/meters/meter/event", b"gone", 1, will_delay_interval=2)
        meter.connect(client_id="meter", clean_start=False, session_expiry_interval=600, will=last)
        for number in range(10):
            meter.publish(TOPIC, b"%d" % number, qos=1)
        meter.socket.close()  # The delay of its will begins while this broker lives.
        wait_until(lambda: durable.events("closed", client="meter"), "its end is seen")
        kill(durable)
        with come("worker", 600) as worker, come("watcher", 600) as watcher:
            got: list[int] = []
            while len(got) < 10:
                message = worker.expect(Publish)
                worker.send(Puback(id_of(message)))
                got.append(int(message.payload))
            assert sorted(got) == list(range(10))
            message = watcher.expect(Publish)
            assert (message.payload, message.qos) == (b"gone", 1)
            watcher.send(Puback(id_of(message)))
            for client in (worker, watcher):
                client.check_alive()  # And nothing else has come.
        with come("brief", 3):
            pass
    assert present == {"brief": False, "worker": True, "watcher": True}


def test_without_persistence_nothing_is_kept(pki: Pki, tmp_path: Path, meter_held: Held) -> None:
    broker = BrokerProcess.with_files(tmp_path / "b", pki, "--no-persistence")
    anchors = tmp_path / "b" / "anchors.pem"
    with broker:
        with TlsClient(broker.port, anchors, meter_held.credential) as client:
            client.connect(client_id="meter", session_expiry_interval=600)
        broker.stop()
        broker.start()
        with TlsClient(broker.port, anchors, meter_held.credential) as client:
            assert not client.connect(client_id="meter", clean_start=False).session_present
    assert not (tmp_path / "b" / "state" / "broker.db").exists()


def test_a_second_broker_on_the_same_database_is_refused(durable: BrokerProcess, pki: Pki, tmp_path: Path) -> None:
    with durable:
        second = BrokerProcess.with_files(tmp_path / "b", pki)
        code, said = second.fail()
    assert code == 1
    assert "broker.db is in use by another broker: give each its own state_dir" in said
    assert "Traceback" not in said


def test_a_database_that_is_none_is_said(durable: BrokerProcess) -> None:
    (durable.dir / "state").mkdir()
    (durable.dir / "state" / "broker.db").write_text("no database at all" * 100)
    code, said = durable.fail()
    assert code == 1
    assert "broker.db cannot be used as the broker's database" in said
    assert "Traceback" not in said


def test_a_reason_is_known(durable: BrokerProcess, pki: Pki) -> None:
    with durable, TlsClient(durable.port, durable.dir / "anchors.pem", pki.device("m").credential) as client:
        client.connect(client_id="m")
        answer = client.publish("fleet/meters/another/x", qos=1)
        assert answer is not None
        assert answer.reason_code is ReasonCode.NOT_AUTHORIZED
        assert str(answer.properties.reason_string).startswith("NOT_AUTHORIZED: m may not publish to")


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced by a backup"])
def test_a_database_that_is_no_longer_there_is_not_written_and_not_begun_anew_in_silence(
    durable: BrokerProcess, pki: Pki, meter_held: Held, replaced: bool
) -> None:
    path = durable.dir / "state" / "broker.db"
    log, other = (path.with_name(f"broker.db-{end}") for end in ("wal", "shm"))
    backup = durable.dir / "backup.db"
    with durable:
        durable.stop()
        shutil.copy(path, backup)
        durable.start()
        with traffic(durable, pki, meter_held, 1) as (publisher, subscriber):
            wait_until(lambda: len(publisher.acknowledged) > 50, "messages are acknowledged")
            path.unlink()
            if replaced:
                shutil.copy(backup, path)
            wait_until(lambda: durable.events("STORE_FAILED"), "the store fails")
            wait_until(lambda: len(publisher.refused) > 20, "messages are refused")
            publisher.finish()
            wait_until(lambda: set(subscriber.got) >= set(publisher.acknowledged), "what was acknowledged arrives")
        (said,) = durable.events("STORE_FAILED")
        assert "broker.db was deleted, or another file is in its place: put it back; or stop" in said["detail"]
        durable.stop(signal.SIGTERM if replaced else signal.SIGKILL)
        code, told = durable.fail()
        assert code == 1
        assert ("is not the file that broker.db-wal beside" if replaced else "broker.db is missing, or empty,") in told
        assert "Traceback" not in told + durable.log
        for each in (log, other):
            each.unlink()
        durable.start()
        assert len(durable.events("STORE_CREATED")) == (1 if replaced else 2)


def test_a_log_that_is_deleted_under_way_costs_nothing_acknowledged(
    durable: BrokerProcess, pki: Pki, meter_held: Held
) -> None:
    with durable, traffic(durable, pki, meter_held, 1) as (publisher, subscriber):
        wait_until(lambda: len(publisher.acknowledged) > 50, "messages are acknowledged")
        (durable.dir / "state" / "broker.db-wal").unlink()
        wait_until(lambda: durable.events("STORE_FAILED"), "the store fails")
        (said,) = durable.events("STORE_FAILED")
        assert "broker.db-wal was deleted: nothing is lost; stop the broker in order (SIGTERM)" in said["detail"]
        kill(durable)
        acknowledged = len(publisher.acknowledged)
        wait_until(lambda: len(publisher.acknowledged) > acknowledged + 50, "the broker goes on")
        publisher.finish()
        wait_until(lambda: set(subscriber.got) >= set(publisher.acknowledged), "all that was acknowledged arrives")
    assert not set(subscriber.got) & set(publisher.refused), "refused, and delivered all the same"
