"""The memory of the door: what it keeps, what it counts, and that nobody can make it grow or push others out."""

from __future__ import annotations

import pytest

from broker.admission.peer import Peer
from broker.admission.refusal import RefusalCode, Refused
from broker.engine.history import LONGEST_SHOWN, MOST_OF_ONE, Event, Happened, History
from broker.mqtt.codes import ReasonCode
from provisioning.pki.identity import Identity
from tests.support.pki import shared_device
from tests.support.wire import MemoryBroker, will


class Stranger:
    """Somebody whom TLS has not let in."""

    peer: Peer | None = None
    refusal: Refused | None = None

    def __init__(self, host: str) -> None:
        self.address = f"{host}:50000"


def all_known(history: History) -> list[Event]:
    return [event for of_one in history.known() for event in of_one]


def story(history: History) -> list[tuple[str, str]]:
    return [(str(event.what), str(event.code)) for event in all_known(history)]


def test_a_life_of_a_client_is_told_in_order() -> None:
    broker = MemoryBroker()
    meter = broker.device("meter-1")
    broker.device("meter-1")
    meter.received()
    assert story(broker.engine.history) == [
        ("admitted", ""),
        ("closed", "SESSION_TAKEN_OVER"),
        ("admitted", ""),
    ]
    event = all_known(broker.engine.history)[1]
    assert (event.client_id, event.name, event.host) == ("meter-1", "meter-1", "192.0.2.1")
    assert event.serial == f"{shared_device('meter-1').certificate.serial_number:x}"


def test_an_identifier_with_an_escape_sequence_is_found_by_what_it_is_and_by_what_is_shown() -> None:
    broker = MemoryBroker()
    broker.service("backend", client_id="backend-\x1b[2J")
    (event,) = all_known(broker.engine.history)
    domain = event.identity.trust_domain if isinstance(event.identity, Identity) else ""
    for text in ("backend-\x1b[2J", "backend-\\x1b[2J", f"{domain}/backend-\\x1b[2J"):
        assert event.is_about(text, ""), text
    assert not event.is_about("backend-[2J", "")


@pytest.mark.parametrize("asked", ["2001:db8::7", "[2001:db8::7]", "[2001:db8::7]:50000"])
def test_an_address_of_ipv6_is_found_with_and_without_its_brackets(asked: str) -> None:
    event = Event(Happened.REFUSED, "NO_CERTIFICATE", "", "[2001:db8::7]:50000", None, "", "", 0.0)
    assert event.host == "2001:db8::7"
    assert event.is_about(asked, "")
    assert not event.is_about(asked.replace("7", "8"), "")


def test_a_refusal_and_a_denial_are_told_with_their_words() -> None:
    broker = MemoryBroker()
    refused = broker.open(shared_device("meter-1"))
    refused.connect(client_id="other", expect=ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)
    meter = broker.device("meter-1")
    meter.publish("fleet/elsewhere", b"", qos=1)
    assert story(broker.engine.history) == [
        ("refused", "CLIENT_ID_MISMATCH"),
        ("admitted", ""),
        ("denied", "NOT_AUTHORIZED"),
    ]
    events = all_known(broker.engine.history)
    assert "'other' is not that of the certificate" in events[0].detail
    assert events[2].detail == "publish denied: fleet/elsewhere"


def test_whoever_is_refused_is_found_by_what_he_asked_for_and_counted_whatever_that_is() -> None:
    broker = MemoryBroker()
    for claimed in ("first", "x" * 1000, "x" * 1000):
        broker.open(shared_device("meter-1")).connect(client_id=claimed, expect=ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)
    first, second = all_known(broker.engine.history)
    assert first.is_about("first", "")
    assert (second.times, second.client_id) == (2, "x" * LONGEST_SHOWN)
    history = History(100)
    for claimed in ("made-up-1", "made-up-2"):
        history.note(Happened.REFUSED, Stranger("192.0.2.7"), "EXPIRED", "", claimed, 0.0)
    (event,) = history.strangers("192.0.2.7")
    assert (event.times, event.client_id) == (2, "made-up-2")


class Notes:
    """A witness that keeps what it sees."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, int]] = []

    def saw(self, event: Event) -> None:
        if event.what is Happened.DENIED:
            self.seen.append((event.code, event.detail, event.times))

    def told(self, event: str, **facts: object) -> None:
        raise AssertionError((event, facts))


def test_what_is_denied_beyond_the_first_times_is_told_by_kind_at_the_end() -> None:
    broker, notes = MemoryBroker(), Notes()
    broker.engine.history.witness = notes
    meter = broker.device("meter-1")
    for _ in range(50):
        meter.publish("fleet/elsewhere", b"", qos=1)
    for _ in range(3):
        meter.subscribe("fleet/elsewhere/#")
    assert notes.seen == [("NOT_AUTHORIZED", "publish denied: fleet/elsewhere", 1)] * 10
    meter.leave()
    assert notes.seen[10:] == [
        ("NOT_AUTHORIZED", "publish denied: and more", 40),
        ("NOT_AUTHORIZED", "subscription denied: and more", 3),
    ]
    assert sum(times for _, _, times in notes.seen) == (
        broker.engine.metrics.publishes_denied + broker.engine.metrics.subscriptions_denied
    )


def test_who_goes_on_and_on_is_told_of_once_a_minute() -> None:
    broker, notes = MemoryBroker(), Notes()
    broker.engine.history.witness = notes
    meter = broker.device("meter-1", keep_alive=0)
    for _ in range(40):
        meter.publish("fleet/elsewhere", b"", qos=1)
    broker.advance(61.0)
    for _ in range(5):
        meter.publish("fleet/elsewhere", b"", qos=1)
    assert notes.seen[10:] == [("NOT_AUTHORIZED", "publish denied: and more", 31)]
    meter.leave()
    assert notes.seen[11:] == [("NOT_AUTHORIZED", "publish denied: and more", 4)]


def test_who_connects_again_for_every_few_denials_fills_no_log() -> None:
    broker, notes = MemoryBroker(), Notes()
    broker.engine.history.witness = notes

    def visit(name: str, denied: int) -> list[tuple[str, int]]:
        """Return what is told of a connection of *name* that is denied so often."""
        before = len(notes.seen)
        meter = broker.device(name)
        for _ in range(denied):
            meter.publish("fleet/elsewhere", b"", qos=1)
        meter.leave()
        return [(detail, times) for _, detail, times in notes.seen[before:]]

    one_by_one = ("publish denied: fleet/elsewhere", 1)
    assert visit("meter-1", 6) == [one_by_one] * 6
    assert visit("meter-1", 6) == [*[one_by_one] * 4, ("publish denied: and more", 2)]
    for _ in range(20):
        assert visit("meter-1", 10) == [("publish denied: and more", 10)]
    assert visit("meter-2", 10) == [one_by_one] * 10, "another device"
    broker.advance(121.0)
    assert visit("meter-1", 11) == [*[one_by_one] * 10, ("publish denied: and more", 1)]
    assert sum(times for _, _, times in notes.seen) == broker.engine.metrics.publishes_denied


def test_the_same_again_is_counted() -> None:
    broker = MemoryBroker()
    for _ in range(5):
        broker.advance(1)
        refused = broker.open(shared_device("meter-1"))
        refused.connect(will=will("fleet/x"), client_id="meter-1", expect=ReasonCode.NOT_AUTHORIZED)
    (event,) = all_known(broker.engine.history)
    assert (event.times, event.first, event.last) == (5, 1001.0, 1005.0)


def test_one_key_keeps_its_newest_events() -> None:
    history = History(1000)
    for number in range(100):
        history.note(Happened.REFUSED, Stranger("192.0.2.1"), f"CODE_{number}", "", "", float(number))
    events = history.strangers("192.0.2.1")
    assert [event.last for event in events] == [float(each) for each in range(100 - MOST_OF_ONE, 100)]
    assert len(history) == MOST_OF_ONE


@pytest.mark.parametrize(("certificates", "kept"), [(2, 2), (50, MOST_OF_ONE - 7)])
def test_whoever_has_revoked_certificates_of_an_identity_hides_nothing_of_it(certificates: int, kept: int) -> None:
    broker = MemoryBroker()
    for _ in range(4):
        broker.device("meter-1")  # Which takes over its own session.
    known = story(broker.engine.history)
    assert len(known) == 7
    thief = Stranger("192.0.2.66")
    uri = str(all_known(broker.engine.history)[0].identity)
    for number in range(100):
        serial = f"{number % certificates:x}"
        thief.refusal = Refused(RefusalCode.REVOKED, ReasonCode.NOT_AUTHORIZED, "revoked", identity=uri, serial=serial)
        broker.engine.history.note(Happened.REFUSED, thief, "REVOKED", "revoked", str(number), 2000.0 + number)
    assert story(broker.engine.history) == [*known, *[("refused", "REVOKED")] * kept]
    assert all_known(broker.engine.history)[-1].last == 2099.0
    assert len(broker.engine.history) == len(known) + kept


@pytest.mark.parametrize(
    ("certificates", "details", "kept"),
    [(1, 40, MOST_OF_ONE // 2), (3, 40, MOST_OF_ONE // 2), (40, 1, MOST_OF_ONE // 2), (1, 1, 2)],
    ids=["one, other words", "three, other words", "forty", "one"],
)
@pytest.mark.parametrize("first", [True, False], ids=["before", "meanwhile"])
def test_nobody_hides_why_another_certificate_is_refused(
    certificates: int, details: int, kept: int, first: bool
) -> None:
    history = History(100)

    def refused(serial: str, host: str, words: str, now: float) -> None:
        party = Stranger(host)
        party.refusal = Refused(RefusalCode.REVOKED, ReasonCode.NOT_AUTHORIZED, words, identity="m", serial=serial)
        history.note(Happened.REFUSED, party, "REVOKED", words, words, now)

    if first:
        refused("own", "192.0.2.1", "revoked", 1.0)
    device = Stranger("192.0.2.1")
    device.refusal = Refused(RefusalCode.REVOKED, ReasonCode.NOT_AUTHORIZED, "", identity="m", serial="new")
    for number in range(MOST_OF_ONE - 1):
        history.note(Happened.CLOSED, device, f"CODE_{number}", "", "m", 2.0 + number)
    for number in range(40):
        if number == 20:
            refused("own", "192.0.2.1", "revoked", 50.0)
        refused(f"{number % certificates}", "192.0.2.66", f"words {number % details}", 100.0 + number)
    events = all_known(history)
    assert [event.times for event in events if event.serial == "own"] == [1 + first]
    assert len([event for event in events if event.what is Happened.REFUSED]) == kept
    assert len(events) == MOST_OF_ONE


def test_a_certificate_that_is_not_valid_yet_is_one_event_whatever_the_clock_says() -> None:
    history, thief = History(100), Stranger("192.0.2.66")
    for identity, serial in (("m", "a1"), ("", "")):
        thief.refusal = Refused(
            RefusalCode.NOT_YET_VALID, ReasonCode.NOT_AUTHORIZED, "", identity=identity, serial=serial
        )
        for second in range(3):
            history.note(Happened.REFUSED, thief, "NOT_YET_VALID", f"the clock says {second}", "", float(second))
    (event,) = all_known(history)
    assert (event.times, event.detail, event.first) == (3, "the clock says 2", 0.0)
    assert len(history.strangers("192.0.2.66")) == 3, "without a certificate these may be different clients"


def test_strangers_push_out_strangers_and_never_the_fleet() -> None:
    broker = MemoryBroker(max_history=40)
    history = broker.engine.history
    for number in range(20):
        broker.device(f"meter-{number % 4}")
    known = story(history)
    for number in range(10_000):
        history.note(Happened.REFUSED, Stranger(f"2001:db8::{number:x}"), "NO_CERTIFICATE", "x" * 999, "", number)
        history.turned_away(f"198.51.100.{number}", "TOO_MANY_CONNECTIONS", number)
    assert story(history) == known
    assert len(history) == len(known) + 10
    assert not history.strangers("2001:db8::0")
    (last,) = history.strangers("2001:db8::270f")
    assert (last.times, len(last.detail)) == (1, 300)


def test_who_has_been_silent_longest_is_forgotten_first() -> None:
    history = History(4 * 4)
    for host in ("a", "b", "c", "d", "a"):
        history.turned_away(host, f"CODE_{host}{len(history)}", 1.0)
    assert not history.strangers("b")
    assert [len(history.strangers(host)) for host in "acd"] == [2, 1, 1]


@pytest.mark.parametrize("most", [0, 3])
def test_a_history_of_nothing_keeps_nothing(most: int) -> None:
    history = History(most)
    history.turned_away("192.0.2.1", "TOO_MANY_CONNECTIONS", 1.0)
    assert len(history) == 0


class Witness:
    """What an audit log would have."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def saw(self, event: Event) -> None:
        self.seen.append(event.code)

    def told(self, event: str, **facts: object) -> None:
        raise AssertionError(event, facts)


def note(history: History, party: Stranger, *codes: str) -> None:
    for number, code in enumerate(codes):
        history.note(Happened.REFUSED, party, code, "", "", float(number))


def test_who_looks_while_events_wait_finds_them_in_order() -> None:
    history, stranger = History(100), Stranger("192.0.2.1")
    note(history, stranger, "A")
    history.hold()
    note(history, stranger, "B", "C")
    assert len(history._strangers) == 1
    assert [event.code for event in history.strangers("192.0.2.1")] == ["A", "B", "C"]
    note(history, stranger, "D")
    history.turned_away("192.0.2.1", "E", 9.0)
    assert len(history) == 5
    note(history, stranger, "F", "G", "H")
    history.release()
    assert history.settle(1)
    note(history, stranger, "I")
    assert [event.code for event in history.strangers("192.0.2.1")] == list("ABCDEFGHI")
    note(history, stranger, "J")
    assert len(history._strangers) == 10
    assert not history.settle()


def test_few_wait_and_none_if_there_is_an_audit_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.engine.history.MOST_WAITING", 2)
    history, stranger = History(100), Stranger("192.0.2.1")
    history.hold()
    note(history, stranger, "A", "B", "C")
    assert len(history._strangers) == 1
    history = History(100)
    witness = history.witness = Witness()
    history.hold()
    note(history, stranger, "A", "B")
    assert witness.seen == ["A", "B"]
    assert len(history._strangers) == 2
