"""REV cases of CRLs: lists that revoke, release, lapse, lie and come late, against a real broker that reads a file."""

from __future__ import annotations

import contextlib
import signal
import ssl
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from broker.mqtt.codes import QoS, ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.packets import Pingreq, Pingresp, Puback, Publish, Suback, Subscribe, SubscriptionRequest
from provisioning.ca.crl import CrlIssuer, CrlRequest, entry_of
from provisioning.pki.crl import parse, read_entries
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.tls import client_context
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.crl import at, crl, impostor_of, pem, scope
from tests.support.listed import ListedBroker, answer, replace_file
from tests.support.pki import Held, Pki, pem_of
from tests.support.tls_client import TlsClient
from tests.support.web import WebServer
from tests.support.websocket_client import upgraded
from tests.support.wire import KEPT, V5, connect_packet, id_of

IN = (ReasonCode.SUCCESS, "")
REVOKED = (ReasonCode.NOT_AUTHORIZED, "REVOKED")
SUSPENDED = (ReasonCode.BANNED, "SUSPENDED")
MISSING = (ReasonCode.SERVER_UNAVAILABLE, "CRL_MISSING")
EXPIRED = (ReasonCode.SERVER_UNAVAILABLE, "CRL_EXPIRED")
HOLD = x509.ReasonFlags.certificate_hold
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[ListedBroker]:
    """A broker that several tests share: each revokes its own devices, with a number of its own."""
    broker = ListedBroker(tmp_path_factory.mktemp("listed"), pki)
    with broker.process:
        yield broker


def test_rev_18_a_list_closes_the_live_session_and_refuses_the_next(listed: ListedBroker, name: str) -> None:
    device, other = listed.pki.device(name), listed.pki.device(f"other-{name}")
    with listed.client(device) as client, listed.client(other) as neighbour:
        client.connect(client_id=name)
        neighbour.connect()
        listed.revoke(device)
        farewell = client.farewell()
        neighbour.check_alive()
    assert farewell.reason_code is ReasonCode.ADMINISTRATIVE_ACTION
    assert farewell.properties.reason_string == "REVOKED: certificate revoked (keyCompromise)"
    assert listed.answer(device) == REVOKED


def test_rev_19_who_is_no_longer_in_the_list_is_admitted_again(listed: ListedBroker, name: str) -> None:
    device = listed.pki.device(name)
    listed.number += 1
    listed.publish(crl(listed.pki.issuing, {device.certificate.serial_number: HOLD}, number=listed.number))
    assert listed.answer(device) == SUSPENDED
    listed.revoke()
    assert listed.answer(device) == IN


def test_a_delta_that_is_read_before_its_base_revokes_when_that_has_come(tmp_path: Path, pki: Pki) -> None:
    folder, device = tmp_path / "lists", pki.device("m")
    folder.mkdir()
    replace_file(folder / "complete.crl", crl(pki.issuing, number=1))
    with (
        BrokerProcess.with_files(tmp_path / "b", pki, crlfile=folder, crl_check_seconds=0.1) as broker,
        TlsClient(broker.port, pki.anchors, device.credential) as client,
    ):
        client.connect(client_id="m")
        replace_file(folder / "a-delta.crl", crl(pki.issuing, [device], number=5, base=4))
        wait_until(lambda: broker.events("CRL_NO_BASE"), "the delta is read")
        client.check_alive()
        replace_file(folder / "complete.crl", crl(pki.issuing, number=4))
        assert "REVOKED" in str(client.farewell().properties.reason_string)
        assert answer(broker, pki.anchors, device) == REVOKED


def test_rev_23_an_empty_list_admits(listed: ListedBroker, name: str) -> None:
    listed.revoke()
    assert listed.answer(listed.pki.device(name)) == IN


def test_rev_24_pem_and_several_lists_in_a_file_are_read(listed: ListedBroker, name: str) -> None:
    device = listed.pki.device(name)
    listed.number += 1
    mine = crl(listed.pki.issuing, [device], number=listed.number)
    listed.publish(pem_of(listed.pki.root.certificate) + pem(crl(listed.pki.root), mine))
    wait_until(lambda: listed.answer(device) == REVOKED, "the second list in the file counts")


def test_rev_25_a_delta_revokes_and_releases(listed: ListedBroker, name: str) -> None:
    first, second = listed.pki.device(name), listed.pki.device(f"second-{name}")
    listed.number += 3
    complete = crl(listed.pki.issuing, [first], number=listed.number - 2)
    removed = {first.certificate.serial_number: x509.ReasonFlags.remove_from_crl}
    delta = crl(listed.pki.issuing, removed | {second.certificate.serial_number: None}, number=listed.number, base=1)
    with listed.client(second) as client:
        client.connect()
        listed.publish(complete)
        assert listed.answer(first) == REVOKED
        client.check_alive()
        listed.publish(pem(complete, delta))
        client.farewell()
    assert listed.answer(first) == IN
    assert listed.answer(second) == REVOKED


@pytest.mark.parametrize("case", ["another CA's", "badly signed", "cut off", "empty file", "expired", "played back"])
def test_rev_26_what_is_wrong_with_a_list_leaves_the_old_one(listed: ListedBroker, name: str, case: str) -> None:
    pki = listed.pki
    revoked, good = pki.device(name), pki.device(f"good-{name}")
    listed.revoke(revoked)
    later, impostor = listed.number + 1, impostor_of(pki.issuing)
    content, code = {
        "another CA's": (crl(Pki().issuing, [good], number=later), "CRL_BAD_SIGNATURE"),  # It has our CA's name.
        "badly signed": (crl(pki.issuing, [good], signed_by=impostor, number=later), "CRL_BAD_SIGNATURE"),
        "cut off": (crl(pki.issuing, [good], number=later)[:-20], "CRL_MALFORMED"),
        "empty file": (b"", "CRL_MALFORMED"),
        "expired": (crl(pki.issuing, [good], age=2 * HOUR, number=later), "CRL_EXPIRED"),
        "played back": (crl(pki.issuing, number=1, age=HOUR / 2), "CRL_OLDER"),
    }[case]
    with listed.client(good) as client:
        client.connect()
        listed.publish(content)
        assert listed.problems[-1] == code
        client.check_alive()
    assert listed.answer(revoked) == REVOKED
    assert listed.answer(good) == IN


def test_rev_11_a_serial_number_counts_under_its_issuer_only(tmp_path: Path, pki: Pki, name: str) -> None:
    other = pki.authority("Another CA", pki.root)
    device, foreign = pki.device(name), pki.device(f"foreign-{name}", issuer=other)
    unseen = pki.authority("Unseen CA", pki.root)
    late = pki.device(f"late-{name}", issuer=unseen)
    lists = (crl(pki.issuing, [foreign]), crl(other, [device]), crl(unseen, [late]), crl(pki.root))
    broker = ListedBroker(tmp_path, pki, pem(*lists), crl_policy="advisory")
    with broker.process:
        assert broker.answer(late) == REVOKED, "the list of a CA that nobody has seen before counts at once"
        assert broker.answer(device) == IN
        assert broker.answer(foreign) == IN, "its serial number is in the other CA's list"
        broker.publish(pem(crl(other, [foreign], number=2)))
        wait_until(lambda: broker.answer(foreign) == REVOKED, "its own CA's list counts")


def test_rev_28_a_list_of_nobody_we_trust_is_not_used(tmp_path: Path, pki: Pki, name: str) -> None:
    stranger = pki.authority("Stranger")
    broker = ListedBroker(tmp_path, pki, crl(stranger))
    with broker.process:
        assert "CRL_WRONG_ISSUER" in broker.problems
        assert broker.answer(pki.device(name)) == MISSING
        broker.revoke()
        assert broker.answer(pki.device(name)) == IN


def test_rev_20_a_revoked_intermediate_puts_out_everybody_below_it(tmp_path: Path, pki: Pki, name: str) -> None:
    plant = pki.authority("Plant CA", pki.root)
    device, other = pki.device(name, issuer=plant), pki.device(f"other-{name}")
    files = tmp_path / "lists"
    files.mkdir()
    for authority in (pki.root, plant, pki.issuing):
        (files / f"{authority.certificate.serial_number}.crl").write_bytes(crl(authority))
    root_list = files / f"{pki.root.certificate.serial_number}.crl"
    broker = BrokerProcess.with_lists(tmp_path / "b", pki, anchors=pem_of(pki.root.certificate), crlfile=files)
    with (
        broker,
        TlsClient(broker.port, pki.anchors, device.credential) as client,
        TlsClient(broker.port, pki.anchors, other.credential) as neighbour,
    ):
        # The list of a CA that only clients bring is understood as soon as the first has brought it: it waits so long.
        client.connect(client_id=name)
        neighbour.connect()
        replace_file(root_list, crl(pki.root, [plant], number=2))
        farewell = client.farewell()
        assert str(farewell.properties.reason_string).startswith("ISSUER_REVOKED: the CA CN=Plant CA is revoked")
        neighbour.check_alive()
        assert answer(broker, pki.anchors, device) == (ReasonCode.NOT_AUTHORIZED, "ISSUER_REVOKED")


def test_rev_21_an_anchor_that_its_own_issuer_revokes_is_revoked(tmp_path: Path, pki: Pki, name: str) -> None:
    broker = ListedBroker(tmp_path, pki, pem(crl(pki.issuing), crl(pki.root)))
    with broker.process, broker.client(pki.device(name)) as client:
        client.connect()
        broker.publish(crl(pki.root, [pki.issuing], number=2))
        client.farewell()
        assert broker.answer(pki.device(name))[1] == "ISSUER_REVOKED"


@pytest.mark.parametrize(
    ("policy", "missing", "expired"),
    [("require", MISSING, EXPIRED), ("grace 90m", MISSING, IN), ("grace 10s", MISSING, EXPIRED), ("advisory", IN, IN)],
)
def test_rev_22_no_list_and_an_expired_list_by_policy(
    tmp_path: Path, pki: Pki, name: str, policy: str, missing: tuple[ReasonCode, str], expired: tuple[ReasonCode, str]
) -> None:
    device, revoked = pki.device(name), pki.device(f"revoked-{name}")
    broker = ListedBroker(tmp_path, pki, crl(pki.root), crl_policy=policy)
    with broker.process:
        assert broker.answer(device) == missing
        broker.revoke(revoked, age=2 * HOUR)
        assert broker.answer(device) == expired
        assert broker.answer(revoked) == REVOKED, "whom an expired list names is revoked under any policy"
        assert "CRL_EXPIRED" in broker.problems


def test_rev_29_a_list_lapses_under_a_live_session(tmp_path: Path, pki: Pki, name: str) -> None:
    device = pki.device(name)
    broker = ListedBroker(tmp_path, pki)
    with broker.process, broker.client(device) as client:
        client.connect()
        broker.revoke(age=timedelta(0), life=timedelta(seconds=2))
        wait_until(lambda: "CRL_LATE" in broker.problems, "lateness is an alarm")
        wait_until(lambda: "CRL_EXPIRED" in broker.problems, "expiry is another")
        client.check_alive()
        assert broker.answer(pki.device(f"new-{name}")) == EXPIRED
        broker.revoke()
        assert broker.answer(pki.device(f"new-{name}")) == IN


def test_rev_30_a_shard_is_asked_for_its_certificates_only(tmp_path: Path, pki: Pki, name: str) -> None:
    first, second = "http://pki.example/1.crl", "http://pki.example/2.crl"
    mine = pki.device(name, extensions=[x509.CRLDistributionPoints(at(first))])
    others = pki.device(f"other-{name}", extensions=[x509.CRLDistributionPoints(at(second))])
    broker = ListedBroker(tmp_path, pki, crl(pki.issuing, point=scope(first, users_only=True)))
    with broker.process:
        assert broker.answer(mine) == IN
        assert broker.answer(others) == MISSING
        broker.publish(crl(pki.issuing, [mine], number=2, point=scope(first, users_only=True)))
        assert broker.answer(mine) == REVOKED


def test_rev_31_a_list_at_a_url_is_fetched_again(tmp_path: Path, pki: Pki, name: str, web: WebServer) -> None:
    device = pki.device(name)
    web.pages["/ca.crl"] = crl(pki.issuing, freshest=f"{web.url}/delta.crl")
    web.pages["/delta.crl"] = crl(pki.issuing, number=2, base=1)
    broker = BrokerProcess.with_lists(tmp_path, pki, crl_urls=f"{web.url}/ca.crl", crl_refresh_seconds=0.2)
    with broker, TlsClient(broker.port, pki.anchors, device.credential) as client:
        client.connect()
        wait_until(lambda: web.requests["/delta.crl"] and web.not_modified, "the delta, and nothing twice")
        web.pages["/delta.crl"] = crl(pki.issuing, [device], number=3, base=1)
        client.farewell()
        del web.pages["/ca.crl"]
        wait_until(lambda: broker.events("CRL_UNREADABLE"), "a list that cannot be fetched is an alarm")
        assert answer(broker, pki.anchors, pki.device(f"other-{name}")) == IN


def test_rev_32_the_list_that_a_certificate_names_is_fetched_before_it_is_let_in(
    tmp_path: Path, pki: Pki, name: str, web: WebServer
) -> None:
    point = x509.CRLDistributionPoints(at(f"{web.url}/ca.crl"))
    good = pki.device(name, extensions=[point])
    bad = pki.device(f"bad-{name}", extensions=[point])
    nowhere = x509.CRLDistributionPoints(at(f"{web.url}/missing.crl"))
    lost = Pki()
    web.pages["/ca.crl"] = crl(pki.issuing, [bad])
    anchors = pki.anchors.encode() + lost.anchors.encode()
    broker = BrokerProcess.with_lists(tmp_path, pki, "--crl-from-certificates", anchors=anchors)
    with broker, contextlib.ExitStack() as stack:
        assert answer(broker, pki.anchors, bad) == REVOKED
        assert answer(broker, pki.anchors, good) == IN
        assert web.requests["/ca.crl"] == 1
        assert answer(broker, pki.anchors, lost.device("lost", extensions=[nowhere])) == MISSING
        assert answer(broker, pki.anchors, lost.device("silent")) == MISSING
        client = stack.enter_context(TlsClient(broker.port, pki.anchors, good.credential))
        client.connect()
        client.check_alive()


@pytest.mark.parametrize("tls", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2])
def test_rev_33_a_resumed_session_is_judged_by_the_lists_too(
    tmp_path: Path, pki: Pki, name: str, tls: ssl.TLSVersion
) -> None:
    plant = pki.authority("Plant CA", pki.root)
    device = pki.device(name, issuer=plant)
    lists = (crl(plant), crl(pki.root))
    broker = ListedBroker(tmp_path, pki, pem(*lists), allow_tls12=True)
    context = client_context(pki.anchors, device.credential, allow_tls12=True)
    context.maximum_version = tls
    with broker.process:
        session = None
        for _ in range(2):
            with TlsClient(broker.process.port, "", context=context, session=session) as client:
                assert client.socket.session_reused == (session is not None)
                client.connect(client_id=name)
                session = client.leave()
        broker.publish(pem(crl(plant, [device], number=2)))
        with TlsClient(broker.process.port, "", context=context, session=session) as client:
            assert client.socket.session_reused
            client.connect(expect=ReasonCode.NOT_AUTHORIZED)


def test_rev_34_a_list_of_a_hundred_thousand_stops_nobody(tmp_path: Path, pki: Pki, name: str) -> None:
    device, revoked = pki.device(name), pki.device(f"revoked-{name}")
    issuer = CrlIssuer(pki.issuing.certificate, pki.issuing.key)
    now = datetime.now(UTC)
    serials = [x509.random_serial_number() for _ in range(100_000)] + [revoked.certificate.serial_number]
    entries = {each: entry_of(each, now, RevocationReason.KEY_COMPROMISE) for each in serials}
    broker = ListedBroker(tmp_path, pki)
    with broker.process, broker.client(device) as client, broker.client(revoked) as victim:
        client.connect()
        victim.connect()
        for number in (2, 3, 4):  # A machine that others use stops him now and then, too, but not with each list.
            content = issuer.issue(issuer.prepare(CrlRequest(number, now - timedelta(minutes=1), now + HOUR, entries)))
            begun = time.perf_counter()
            assert read_entries(parse(content), lambda: None).keys() == entries.keys()
            at_a_stretch = time.perf_counter() - begun
            replace_file(broker.file, content)
            waits = []
            while not broker.process.events("CRL in use", number=number):
                begun = time.perf_counter()
                client.check_alive()
                waits.append(time.perf_counter() - begun)
            if number == 2:
                victim.farewell()
            if max(waits) < at_a_stretch / 2 and statistics.median(waits) < at_a_stretch / 50:
                break
    assert len(waits) > 10
    # A thousandth is usual. Whoever is stopped meanwhile waits for as long as it takes to read all, and where it is
    # read in portions that are too large, most of the time.
    assert max(waits) < at_a_stretch / 2
    assert statistics.median(waits) < at_a_stretch / 50


def test_rev_35_what_a_waiting_client_has_sent_already_is_not_lost(
    tmp_path: Path, pki: Pki, name: str, web: WebServer
) -> None:
    device = pki.device(name, extensions=[x509.CRLDistributionPoints(at(f"{web.url}/ca.crl"))])
    web.pages["/ca.crl"] = crl(pki.issuing)
    broker = BrokerProcess.with_lists(tmp_path, pki, "--crl-from-certificates")
    with broker, TlsClient(broker.port, pki.anchors, device.credential) as client:
        client.send(
            connect_packet(V5, client_id=name),
            Subscribe(1, (SubscriptionRequest(f"fleet/meters/{name}/cmd/#", QoS.AT_MOST_ONCE),)),
            Pingreq(),
        )
        assert client.expect(Connack).reason_code is ReasonCode.SUCCESS
        client.expect(Suback)
        client.expect(Pingresp)


def test_rev_27_websocket_is_the_same_door(tmp_path: Path, pki: Pki, name: str) -> None:
    device = pki.device(name)
    broker = ListedBroker(tmp_path, pki, websocket_port=0)
    with broker.process:
        port = int(broker.process.urls[1].rpartition(":")[2])
        with upgraded(port, pki, device) as live:
            live.connect(client_id=name)
            broker.revoke(device)
            assert str(live.farewell().properties.reason_string).startswith("REVOKED: ")
        with upgraded(port, pki, device) as again:
            again.connect(expect=ReasonCode.NOT_AUTHORIZED)


def test_rev_43_lists_that_change_under_load_drop_nobody_and_lose_nothing(tmp_path: Path, pki: Pki, name: str) -> None:
    broker = ListedBroker(tmp_path, pki)
    topic = f"fleet/meters/{name}"
    with broker.process, contextlib.ExitStack() as stack:

        def client(held: Held) -> TlsClient:
            return stack.enter_context(broker.client(held))

        service = client(pki.service("backend"))
        service.connect()
        service.subscribe("fleet/#", qos=1)
        device = client(pki.device(name))
        device.connect(client_id=name)
        neighbours = [client(pki.device(f"n{number}-{name}")) for number in range(5)]
        for neighbour in neighbours:
            neighbour.connect()
        victims = [pki.device(f"v{number}-{name}") for number in range(10)]
        for number in range(1, 31):
            if number % 3 == 0:
                broker.number += 1
                replace_file(broker.file, crl(pki.issuing, victims[: number // 3], number=broker.number))
            if number % 10 == 0:
                broker.process.send_signal(signal.SIGHUP)
            device.publish(f"{topic}/state", str(number).encode(), qos=1)
            message = service.expect(Publish)
            assert message.payload == str(number).encode()
            service.send(Puback(id_of(message)))
        wait_until(lambda: broker.process.events("CRL in use", number=broker.number), "the last list is in use")
        for neighbour in neighbours:
            neighbour.check_alive()
        assert broker.answer(victims[-1]) == REVOKED


def test_rev_44_a_clock_that_is_a_little_off_changes_nothing(tmp_path: Path, pki: Pki, name: str) -> None:
    broker = ListedBroker(tmp_path, pki)
    device = pki.device(name)
    ahead = timedelta(minutes=4)
    with broker.process:
        broker.number += 1
        broker.publish(crl(pki.issuing, number=broker.number, age=-ahead))
        assert broker.process.events("CRL in use", number=broker.number)
        broker.publish(crl(pki.issuing, [device], number=broker.number + 1, age=-HOUR))
        assert broker.problems == ["CRL_NOT_YET_VALID"]
        assert broker.answer(device) == IN


def test_who_is_revoked_while_the_broker_is_away_finds_no_session_and_others_do(
    tmp_path: Path, pki: Pki, name: str
) -> None:
    broker = ListedBroker(tmp_path, pki)
    names = (name, f"other-{name}")
    revoked, other = map(pki.device, names)
    with broker.process:
        with broker.client(revoked) as first, broker.client(other) as second:
            for client, client_id in zip((first, second), names, strict=True):
                client.connect(client_id=client_id, **KEPT)
                client.subscribe(f"fleet/meters/{client_id}/cmd/#", qos=1)  # Answered when it is on disk.
            broker.process.stop(signal.SIGKILL)
        replace_file(broker.file, crl(pki.issuing, [revoked], number=2))
        broker.process.start()
        present = []
        for client_id in names:
            with broker.client(pki.device(client_id)) as client:  # With another certificate than before.
                present.append(client.connect(client_id=client_id, **KEPT).session_present)
    assert present == [False, True]
