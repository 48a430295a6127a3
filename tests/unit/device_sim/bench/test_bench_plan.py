from __future__ import annotations

import re
import time
from collections import Counter
from io import StringIO
from pathlib import Path
from random import Random

import pytest
import typer
from rich.console import Console

from device_sim.bench.bench import Client, Figures
from device_sim.bench.benchmarking import _nobody, payloads
from device_sim.bench.keyring import Party
from device_sim.bench.payload import AlteredPayload, Stamp, payload, stamp_of, this_clock
from device_sim.bench.plan import InvalidPlan, Kind, Plan, topic_for
from device_sim.bench.show import summary
from device_sim.bench.sizes import sizes_in
from device_sim.link.closure import Closure, Layer


def test_a_topic_is_each_clients_own() -> None:
    assert topic_for("fleet/%g/%c/%i/100%%", 7, "meter-7", "meters") == "fleet/meters/meter-7/7/100%"
    assert topic_for("plain", 7, "meter-7", "meters") == "plain"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"topic": "a/%u"}, "%u is not known; there are %i, %c, %g"),
        ({"topic": ""}, "-t: name a topic"),
        ({"topic": "a", "size": sizes_in("15")}, "-s 15: a payload carries its time"),
        ({"topic": "a", "size": sizes_in("15-64")}, "-s 15-64: a payload carries its time"),
    ],
)
def test_a_plan_that_cannot_be_is_told(fields: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidPlan, match=words):
        Plan(Kind.PUB, 1, 1.0, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("64", {64: 1.0}),
        ("20-22", {20: 1 / 3, 21: 1 / 3, 22: 1 / 3}),
        ("64:3, 1024:1", {64: 0.75, 1024: 0.25}),
    ],
)
def test_sizes_are_drawn_as_often_as_they_say(text: str, drawn: dict[int, float]) -> None:
    source, sizes = Random(1), sizes_in(text)
    found = Counter(sizes.draw(source) for _ in range(3000))
    assert found.keys() == drawn.keys()
    assert all(found[size] / 3000 == pytest.approx(share, abs=0.05) for size, share in drawn.items())


@pytest.mark.parametrize(
    ("size", "message", "file", "words"),
    [
        ("many", None, None, "-s 'many' is no size: write 256, 64-1024, or 64:70,1024:30"),
        ("64:", None, None, "is no size"),
        ("", None, None, "is no size"),
        ("64:1,,", None, None, "is no size"),
        (",".join(["64:1"] * 101), None, None, "is no size"),
        ("9-8", None, None, "-s 9-8: the smaller one comes first, 8-9"),
        ("64:0", None, None, "a weight is 1 to 1000000"),
        ("1000001", None, None, "a payload has 1000000 bytes at most"),
        ("64", "mine", None, "-s: a payload of your own has its size; leave it out"),
        (None, "mine", "theirs", "leave one of them out"),
        (None, "x" * 1_000_001, None, "--message: 1000001 bytes; 1000000 at most"),
        (None, None, "nowhere", "--payload-file nowhere cannot be read: No such file"),
        (None, None, "/dev/zero", "--payload-file /dev/zero cannot be read: "),
    ],
)
def test_what_cannot_be_published_is_told(size: str | None, message: str | None, file: str | None, words: str) -> None:
    with pytest.raises(typer.BadParameter, match=re.escape(words)):
        payloads(size, message, None if file is None else Path(file))


def test_a_payload_is_words_or_a_file_and_without_either_it_has_a_size(tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"\xff\0")
    assert payloads(None, "\udcff\u00e4", None) == {"content": b"\xff\xc3\xa4"}
    assert payloads(None, "", None) == {"content": b""}
    assert payloads(None, None, tmp_path / "body") == {"content": b"\xff\0"}
    assert payloads("16-20", None, None) == {"size": sizes_in("16-20")}
    assert payloads(None, None, None) == {}


def test_who_only_connects_needs_no_topic() -> None:
    assert Plan(Kind.CONN, 1, 1.0).topic == ""


@pytest.mark.parametrize(("size", "numbered"), [(16, False), (17, False), (31, False), (32, True), (5000, True)])
def test_a_payload_says_when_it_was_due_and_which_it_is(size: int, numbered: bool) -> None:
    body = payload(Stamp(12345.678901, 2**32 - 1, 70_000, 2**40, 2, 0xFFFE), size)
    assert len(body) == size
    stamp = stamp_of(body)
    assert stamp is not None
    assert stamp.due == pytest.approx(12345.678901, abs=1e-6)
    assert stamp.clock == 0xFFFE
    told = (stamp.benchmark, stamp.client, stamp.number, stamp.qos)
    assert told == ((2**32 - 1, 70_000, 2**40, 2) if numbered else (0, 0, 0, 0))


@pytest.mark.parametrize("size", [32, 33, 5000])
def test_a_numbered_payload_with_any_other_byte_or_of_another_size_is_altered(size: int) -> None:
    body = payload(Stamp(12345.678901, 1, 2, 3, 1), size)
    others = [
        body[:at] + bytes((body[at] ^ 1,)) + body[at + 1 :] for at in {4, 8, 15, 16, 20, 24, 31, size // 2, size - 1}
    ]
    for altered in (*others, body[:-1], body + b"\0", body[:5]):
        with pytest.raises(AlteredPayload):
            stamp_of(altered)


@pytest.mark.parametrize("body", [b"", b"0123456789abcdef", b"fleet\2" + bytes(9), b"fleet\1" + bytes(26), b"fsq"])
def test_other_peoples_payloads_have_no_time(body: bytes) -> None:
    assert stamp_of(body) is None


def test_a_message_that_the_broker_left_no_room_for_is_trouble() -> None:
    """It has no latency, and the percentiles are those of the rest."""
    assert not Figures(published=3, acknowledged=3).troubled
    assert Figures(published=3, acknowledged=3, held_back=1).troubled


@pytest.mark.parametrize("kind", Kind)
def test_where_there_was_no_message_a_benchmark_of_messages_has_not_succeeded(kind: Kind) -> None:
    """None was lost, doubled or late: of a topic that nobody publishes to, all figures are good."""
    plan = Plan(kind, 2, 1.0, topic="a")
    figures = Figures(subscribed=2, publishers=2 * (kind is Kind.PUB), subscribers=2 * (kind is Kind.SUB))
    figures.admitted.record(0.01)
    told = StringIO()
    Console(file=told, width=100).print(summary(plan, figures))
    missed = {Kind.CONN: None, Kind.PUB: "published", Kind.SUB: "received"}[kind]
    assert (figures.idle, figures.troubled) == (missed, kind is not Kind.CONN)
    assert (f"no message was {missed}" in told.getvalue()) == figures.troubled
    figures.published = figures.received = 1
    assert (figures.idle, figures.troubled) == (None, False)


def test_a_stored_message_is_received_and_its_age_is_no_latency() -> None:
    figures = Figures(subscribers=1)
    client = Client(Party(1, "meter-1", "meters", None), "a", figures)
    client.since = time.monotonic() - 1.0
    # A stamp has whole nanoseconds, not the very same moment; and the machine may have been booted a minute ago.
    for due in (client.since / 2, client.since + 0.5):
        client.received("a", payload(Stamp(due, clock=this_clock()), 16))
    assert (figures.received, figures.end_to_end.count) == (2, 1)
    assert figures.end_to_end.highest < 3_000_000


@pytest.mark.parametrize(("seconds", "words"), [(20.0, "50/s, 90/s when all had connected"), (10.5, "95/s")])
def test_the_rate_of_all_clients_is_not_that_of_those_who_connect_one_by_one(seconds: float, words: str) -> None:
    """Of a thousand clients that connect within ten seconds, the average said half of what they then publish."""
    figures = Figures(publishers=9, published=1000, while_connecting=(100, 0), seconds=seconds, connecting_seconds=10.0)
    told = StringIO()
    Console(file=told, width=200).print(summary(Plan(Kind.PUB, 9, 1.0, topic="a"), figures))
    assert f"1000 messages published, {words}\n" in told.getvalue()


@pytest.mark.parametrize("size", [16, 32])
def test_another_machines_time_is_no_latency(size: int) -> None:
    """Its clock may be days ahead of this one: each message would have come at once, and all percentiles be 0."""
    figures = Figures(subscribers=1, subscribed=1)
    client = Client(Party(1, "meter-1", "meters", None), "a", figures)
    client.since = time.monotonic() - 1.0
    for due in (client.since + 86400.0, client.since + 0.5):
        client.received("a", payload(Stamp(due, 7, 1, 1, 0, this_clock() ^ 1), size))
    assert (figures.received, figures.end_to_end.count, figures.other_clock) == (2, 0, 2)
    told = StringIO()
    Console(file=told, width=200).print(summary(Plan(Kind.SUB, 1, 1.0, topic="a"), figures))
    assert "2 of them are of a machine or a boot, whose clock is not this one's" in told.getvalue()


@pytest.mark.parametrize(
    ("seconds", "refusal", "words"),
    [
        (0.5, None, "it ended after 0.5 s, before there:1 had let anybody in"),
        (15.0, None, "nobody gets in at there:1: tcp timeout"),
        (0.5, Closure(Layer.TCP, "refused", "Connection refused", 0.0), "nobody gets in at there:1: tcp refused"),
    ],
)
def test_who_ends_it_at_once_is_not_told_of_firewalls(seconds: float, refusal: Closure | None, words: str) -> None:
    said = _nobody("there:1", Figures(seconds=seconds, first_refusal=refusal))
    assert said.startswith(words)
    assert ("firewall" in said) == (seconds == 15.0)
