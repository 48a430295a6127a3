"""mqtt-packet, the codec of MQTT.js and aedes: it reads what we write, we read what it writes, as the same packet."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.packets import Disconnect, Packet, Publish, decode_packet
from broker.mqtt.properties import Properties
from tests.support.examples import examples
from tests.support.packet_cases import PACKET_CASES, PacketCase, split_packet
from tests.support.packet_strategies import packets
from tests.support.wire import V5, V31, V311

SCRIPT = Path(__file__).parent.parent / "support" / "clients" / "mqtt_packet_codec.js"

QUIRKS = {
    "MQTT 3.1 CONNECT with a user name flag and no user name, which its text allows": "Cannot parse username",
    "MQTT 3.1 CONNECT with a password flag and no password, which its text allows": "Cannot parse password",
    "MQTT 5 CONNECT with a password and no user name": "generate: Username is required to use password",
    "MQTT 3.1 CONNECT with unused flags": "Invalid header flag bits, must be 0x0 for connect packet",
    "MQTT 3.1 PUBACK with unused flags": "Invalid header flag bits, must be 0x0 for puback packet",
    "MQTT 3.1 PUBREC with unused flags": "Invalid header flag bits, must be 0x0 for pubrec packet",
    "MQTT 3.1 PUBREL with unused flags": "Invalid header flag bits, must be 0x2 for pubrel packet",
    "MQTT 3.1 SUBSCRIBE with unused flags and options": "Invalid header flag bits, must be 0x2 for subscribe packet",
    "MQTT 3.1 PINGREQ with unused flags": "Invalid header flag bits, must be 0x0 for pingreq packet",
    "MQTT 3.1 PUBREL sent again": "Invalid header flag bits, must be 0x2 for pubrel packet",
    "MQTT 3.1 SUBSCRIBE sent again": "Invalid header flag bits, must be 0x2 for subscribe packet",
    "MQTT 5 AUTH in two bytes": "Invalid auth reason code",
}
"""What it does not take of what the standards allow, and what it says."""
UNKNOWN_DISCONNECT = "Invalid disconnect reason code"
"""What it says of DISCONNECT with 0x8C (Bad authentication method), which table 2-6 of the standard has for it."""


UserProperties = tuple[tuple[str, str], ...]
_INDEX = re.compile("0|[1-9][0-9]{0,9}")
_FIRST_THAT_IS_NONE = 2**32 - 1


def judged(sent: Sequence[tuple[ProtocolVersion, bytes]]) -> list[bytes | str]:
    """Return each packet as mqtt-packet writes it after it has read it, or what is wrong with it."""
    done = subprocess.run(
        ["node", SCRIPT],
        input=json.dumps([[int(version), data.hex()] for version, data in sent]),
        capture_output=True,
        text=True,
        check=False,
        env={"NODE_PATH": "/usr/share/nodejs", "PATH": "/usr/local/bin:/usr/bin:/bin"},
    )
    assert done.returncode == 0, f"{done.stderr}\nRemedy: make setup-tests"
    return [bytes.fromhex(each) if isinstance(each, str) else each["error"] for each in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def answers() -> dict[str, bytes | str]:
    found = judged([(case.version, case.data) for case in PACKET_CASES])
    return {case.name: answer for case, answer in zip(PACKET_CASES, found, strict=True)}


@pytest.mark.parametrize("case", PACKET_CASES, ids=lambda case: case.name)
def test_it_reads_our_golden_packets_and_we_read_its_own(case: PacketCase, answers: dict[str, bytes | str]) -> None:
    answer = answers[case.name]
    if case.name in QUIRKS:
        assert answer == QUIRKS[case.name]
        return
    assert isinstance(answer, bytes), answer
    assert decode_packet(*split_packet(answer), case.version) == case.packet


def as_kept(pairs: UserProperties) -> UserProperties:
    """Return user properties as an object of JavaScript keeps them: by name, and names that are numbers come first.

    An empty value gives way to the next one of its name.
    """
    kept: dict[str, list[str]] = {}
    for name, value in pairs:
        before = kept.setdefault(name, [])
        if before == [""]:
            before.clear()
        before.append(value)
    numbers = sorted((name for name in kept if _INDEX.fullmatch(name) and int(name) < _FIRST_THAT_IS_NONE), key=int)
    return tuple((name, value) for name in dict.fromkeys((*numbers, *kept)) for value in kept[name])


def loses(packet: Packet) -> bool:
    """Whether mqtt-packet keeps the user properties of *packet* otherwise than they were sent."""
    holders = (packet, getattr(packet, "will", None))
    sent = [getattr(getattr(each, "properties", None), "user_properties", ()) for each in holders]
    return any(as_kept(pairs) != pairs or "__proto__" in dict(pairs) for pairs in sent)


def test_it_keeps_user_properties_as_an_object_does() -> None:
    names = ("b", "10", "9", "09", "4294967294", "4294967295", "", "b", "0", "a", "")
    pairs = tuple((name, str(place)) for place, name in enumerate(names))
    emptied = (("a", ""), ("b", ""), ("a", "1"), ("a", ""))
    sent = [Publish("t", b"", properties=Properties(user_properties=each)) for each in (pairs, emptied)]
    for packet, answer in zip(sent, judged([(V5, packet.encode(V5)) for packet in sent]), strict=True):
        assert isinstance(answer, bytes), answer
        again = decode_packet(*split_packet(answer), V5)
        assert isinstance(again, Publish)
        assert again.properties.user_properties == as_kept(packet.properties.user_properties)
        assert loses(packet)


@examples(5, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([V31, V311, V5]).flatmap(
        lambda v: st.tuples(st.just(v), st.lists(packets(v), min_size=1, max_size=12))
    )
)
def test_any_packets_of_ours_come_back_the_same(drawn: tuple[ProtocolVersion, list[Packet]]) -> None:
    version, sent = drawn
    for packet, answer in zip(sent, judged([(version, packet.encode(version)) for packet in sent]), strict=True):
        if isinstance(answer, bytes):
            again = decode_packet(*split_packet(answer), version)
            assert type(again) is type(packet) if loses(packet) else again == packet
        elif isinstance(packet, Disconnect) and packet.reason_code is ReasonCode.BAD_AUTHENTICATION_METHOD:
            assert answer == UNKNOWN_DISCONNECT
        else:  # What it has read, and will not write, it has read.
            assert answer.startswith("generate: ") or answer in QUIRKS.values(), (answer, packet)
