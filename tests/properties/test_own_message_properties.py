"""What must hold of topics and payloads of a scenario's own, whatever they and the devices are called."""

from __future__ import annotations

import json
import re
import string

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from broker.mqtt.topics import check_topic_filter, check_topic_name, matches
from device_sim.telemetry.models import Model
from device_sim.telemetry.own_payload import ALWAYS, OwnPayload, own_payload
from device_sim.telemetry.own_topic import checked_topic, pattern_of, topic_of
from device_sim.telemetry.payload import UnreadableTelemetry
from device_sim.telemetry.seal import key_of
from device_sim.telemetry.stamp import NAME, fits, read_stamp, stamp_of

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,15}", fullmatch=True)
levels = st.sampled_from(["{name}", "{group}"]) | st.text("abfletp{}+#$%é\x00 ", max_size=6)
topics = st.lists(levels, max_size=6).map("/".join) | st.just("fleet/{group}/{name}/state")
pieces = st.sampled_from([f"{{{each}}}" for each in (*ALWAYS, "power_w", "alarm", "unknown")]) | st.text(
    string.ascii_lowercase + '{}%"\\é:,', max_size=6
)
templates = st.lists(pieces, max_size=8).map("".join)
numbers = st.integers(1, 2**40)
times = st.integers(0, 2**62)
VALUES = {"power_w": 512.5, "alarm": None}


@given(topics, names, names)
def test_a_topic_is_refused_or_each_device_has_one_of_its_own_that_its_group_s_filter_matches(
    text: str, name: str, group: str
) -> None:
    try:
        checked_topic(text)
    except ValueError:
        return
    topic = check_topic_name(topic_of(text, name, group))
    assert topic != topic_of(text, f"{name}x", group)
    assert matches(check_topic_filter(pattern_of(text, group)), topic)
    assert matches(pattern_of(text), topic)
    assert not any(matches(f"fleet/{group}/+/{end}", topic) for end in ("state", "ack", "cmd/#")) or group == "fleet"


@given(templates, names, names, numbers, st.integers(0, 4_000_000_000_000))
@example("{{name}}%(name)s%s%%", "m", "g", 1, 0)
def test_a_template_is_refused_or_filled_as_one_that_replaces_word_by_word(
    text: str, name: str, group: str, number: int, milliseconds: int
) -> None:
    words = {"name": name, "group": group, "number": str(number), "power_w": "512.5", "alarm": "null"}
    used = set(re.findall(r"\{([A-Za-z_][A-Za-z0-9_]*)\}", text))
    try:
        payload = OwnPayload(text.encode(), VALUES)
    except ValueError:
        assert used - {*words, "time", "time_ms"}
        return
    assert used <= {*words, "time", "time_ms"}
    at = milliseconds / 1000
    filled = payload.filled(name, group, number, at, VALUES).decode()
    words["time"] = OwnPayload(b"{time}", ()).filled("", "", 1, at, {}).decode()
    words["time_ms"] = OwnPayload(b"{time_ms}", ()).filled("", "", 1, at, {}).decode()
    assert filled == re.sub(r"\{([A-Za-z_][A-Za-z0-9_]*)\}", lambda found: words[found[1]], text)


@given(st.binary(max_size=40))
def test_bytes_without_a_placeholder_are_sent_as_they_are(content: bytes) -> None:
    assume(not re.search(rb"\{[A-Za-z_]", content))
    assert OwnPayload(content, ()).filled("m", "g", 1, 0.0, {}) == content


@given(st.sampled_from(Model), st.integers(0, 2**32), names)
def test_whatever_a_model_measures_can_be_named_and_gives_json(model: Model, seed: int, device: str) -> None:
    readings = model.readings(seed, device)
    first = next(readings)
    text = json.dumps({name: f"<{name}>" for name in first.values})
    payload = own_payload(re.sub('"<(.*?)>"', r"{\1}", text).encode(), model)
    for reading in (first, next(readings)):
        assert json.loads(payload.filled(device, "g", 1, 0.0, reading.values)) == reading.values


@given(st.binary(max_size=60), numbers, times, times, names, st.integers(0, 2**32), st.data())
def test_a_stamp_says_what_was_sent_and_fits_nothing_else(
    payload: bytes, number: int, due: int, sent: int, topic: str, seed: int, data: st.DataObject
) -> None:
    key = key_of(topic, seed)
    stamp = stamp_of(payload, number, due, sent, key)
    others = data.draw(st.lists(st.tuples(st.text(max_size=4), st.text(max_size=4)), max_size=2))
    telemetry = read_stamp([*others, *stamp])
    assert (telemetry.sequence, telemetry.due_ns, telemetry.sent_ns) == (number, due, sent)
    assert fits([*others, *stamp], payload, key)

    assert not fits(stamp, payload + b"x", key)
    assert not fits(stamp, payload, key_of(f"{topic}x", seed))
    assert not fits(stamp, payload, key_of(topic, seed + 1))
    if payload:
        place, bit = data.draw(st.integers(0, len(payload) - 1)), 1 << data.draw(st.integers(0, 7))
        altered = bytearray(payload)
        altered[place] ^= bit
        assert not fits(stamp, bytes(altered), key)
    text = stamp[0][1]
    place = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.sampled_from("0123456789abcdef -x").filter(lambda each: each != text[place]))
    changed = ((NAME, text[:place] + character + text[place + 1 :]),)
    try:
        read_stamp(changed)
    except UnreadableTelemetry:
        return
    assert not fits(changed, payload, key)


@given(st.lists(st.tuples(st.sampled_from([NAME, "other"]), st.text(max_size=30)), max_size=3))
@example([])
@example([(NAME, "1 2 3 00000000"), (NAME, "1 2 3 00000000")])
@example([(NAME, "1" * 400 + " 2 3 00000000")])
@example([(NAME, "١ 2 3 00000000")])  # noqa: RUF001 - Arabic digits are digits to int()
def test_whatever_a_broker_makes_of_a_stamp_is_read_or_unreadable(properties: list[tuple[str, str]]) -> None:
    sent = [value for name, value in properties if name == NAME]
    try:
        read = read_stamp(properties)
    except UnreadableTelemetry:
        assert len(sent) != 1 or not re.fullmatch(r"[0-9]+ -?[0-9]+ -?[0-9]+ [0-9a-f]{8}", sent[0]) or len(sent[0]) > 60
    else:
        assert len(sent) == 1
        assert sent[0].startswith(f"{read.sequence} ") or sent[0].startswith("0")


def test_a_message_without_its_stamp_says_what_must_forward_it() -> None:
    with pytest.raises(UnreadableTelemetry, match=r"must speak MQTT 5 and forward them unaltered \[MQTT-3.3.2-17\]"):
        read_stamp([("other", "1")])
