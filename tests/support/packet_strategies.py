"""Hypothesis strategies for every packet that a version of MQTT can express.

Each is created once: creating and checking one takes ten times as long as drawing a packet from it.
"""

from __future__ import annotations

import functools
from typing import Any

from hypothesis import strategies as st

from broker.mqtt import wire
from broker.mqtt.codes import CONNECT_REASONS, PacketType, ProtocolVersion, QoS, ReasonCode, RetainHandling
from broker.mqtt.connect import CONNACK_REASONS
from broker.mqtt.disconnect import CLIENT_REASONS, SERVER_REASONS
from broker.mqtt.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Unsuback,
    Unsubscribe,
    Will,
)
from broker.mqtt.properties import NO_PROPERTIES, PROPERTY_RULES, WILL, Owner, Properties, PropertyRule

V31, V311, V5 = ProtocolVersion.V31, ProtocolVersion.V311, ProtocolVersion.V5

strings = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
binaries = st.binary(max_size=20)
_perhaps_string, _perhaps_binary = st.none() | strings, st.none() | binaries
packet_ids = st.integers(1, 65535)
qualities = st.sampled_from(QoS)
versions = st.sampled_from(ProtocolVersion)

_name_levels = st.text(st.sampled_from("ab$ é€"), max_size=3)
topic_names = st.lists(_name_levels, min_size=1, max_size=5).map("/".join).filter(bool)
topic_filters = (
    st.tuples(st.lists(_name_levels | st.just("+"), max_size=4), st.sampled_from([(), ("#",)]))
    .map(lambda parts: "/".join((*parts[0], *parts[1])))
    .filter(bool)
)
# An ordinary filter in 3.1.1 may be an ill-formed shared subscription in MQTT 5.
plain_filters = topic_filters.filter(lambda topic_filter: not topic_filter.startswith("$share"))
shared_filters = st.builds("$share/{}/{}".format, st.text("ab-", min_size=1, max_size=3), topic_filters)

_VALUES: dict[int, st.SearchStrategy[Any]] = {
    id(wire.Reader.byte): st.integers(0, 1),
    id(wire.Reader.two_byte_integer): st.integers(1, 0xFFFF),
    id(wire.Reader.four_byte_integer): st.integers(1, 0xFFFF_FFFF),
    id(wire.Reader.variable_integer): st.integers(1, wire.MAXIMUM_VARIABLE_INTEGER),
    id(wire.Reader.string): strings,
    id(wire.Reader.binary): binaries,
    id(wire.Reader.string_pair): st.tuples(strings, strings),
}


def is_boolean(rule: PropertyRule) -> bool:
    """Whether the property is a byte that means yes or no."""
    return rule.attribute.startswith("request_") or rule.attribute.endswith("_available")


def _values(rule: PropertyRule, owner: Owner) -> st.SearchStrategy[Any]:
    value = topic_names if rule.attribute == "response_topic" else _VALUES[id(rule.wire_type.read)]
    if is_boolean(rule):
        value = value.map(bool)
    if not rule.repeats:
        return value
    return st.lists(value, min_size=1, max_size=3 if owner in rule.repeats_in else 1).map(tuple)


@functools.cache
def properties(owner: Owner, version: ProtocolVersion = V5) -> st.SearchStrategy[Properties]:
    """Properties that *owner* may have, none of them before MQTT 5."""
    if version is not V5:
        return st.just(NO_PROPERTIES)
    optional = {rule.attribute: _values(rule, owner) for rule in PROPERTY_RULES if owner in rule.allowed_in}
    return st.fixed_dictionaries({}, optional=optional).map(lambda found: Properties(**found))


@functools.cache
def wills(version: ProtocolVersion) -> st.SearchStrategy[Will]:
    """Wills of any kind."""
    return st.builds(Will, topic_names, binaries, qualities, st.booleans(), properties(WILL, version))


@functools.cache
def _perhaps_will(version: ProtocolVersion) -> st.SearchStrategy[Will | None]:
    return st.none() | wills(version)


@functools.cache
def _connect_properties(version: ProtocolVersion) -> st.SearchStrategy[Properties]:
    return properties(PacketType.CONNECT, version).filter(
        lambda found: found.authentication_data is None or found.authentication_method is not None
    )


@functools.cache
@st.composite
def connects(draw: st.DrawFn, version: ProtocolVersion) -> Connect:
    """CONNECT packets: before MQTT 5 a password needs a user name, in MQTT 5 authentication data needs a method."""
    username = draw(_perhaps_string)
    return Connect(
        client_id=draw(strings),
        protocol_version=version,
        clean_start=draw(st.booleans()),
        keep_alive=draw(st.integers(0, 0xFFFF)),
        will=draw(_perhaps_will(version)),
        username=username,
        password=draw(_perhaps_binary) if username is not None or version is V5 else None,
        properties=draw(_connect_properties(version)),
    )


@functools.cache
def _connack_reasons(version: ProtocolVersion) -> st.SearchStrategy[ReasonCode]:
    return st.sampled_from(sorted(CONNACK_REASONS if version is V5 else CONNECT_REASONS.values()))


@functools.cache
@st.composite
def connacks(draw: st.DrawFn, version: ProtocolVersion) -> Connack:
    """CONNACK packets: only one that accepts may have a session."""
    reason = draw(_connack_reasons(version))
    present = draw(st.booleans()) if reason is ReasonCode.SUCCESS and version is not V31 else False
    return Connack(reason, present, draw(properties(PacketType.CONNACK, version)))


@functools.cache
@st.composite
def publishes(draw: st.DrawFn, version: ProtocolVersion) -> Publish:
    """PUBLISH packets, including ones with a topic alias."""
    qos = draw(qualities)
    found = draw(properties(PacketType.PUBLISH, version))
    return Publish(
        "" if found.topic_alias and draw(st.booleans()) else draw(topic_names),
        draw(st.binary(max_size=300)),
        qos,
        draw(st.booleans()),
        draw(st.booleans()) if qos else False,
        draw(packet_ids) if qos else None,
        found,
    )


@functools.cache
def acknowledgements(
    kind: type[Puback | Pubrec | Pubrel | Pubcomp], version: ProtocolVersion
) -> st.SearchStrategy[Packet]:
    """Packets of one of the four kinds."""
    reasons = st.sampled_from(sorted(kind.reasons)) if version is V5 else st.just(ReasonCode.SUCCESS)
    return st.builds(kind, packet_ids, reasons, properties(kind.packet_type, version))


@functools.cache
def subscription_requests(version: ProtocolVersion) -> st.SearchStrategy[SubscriptionRequest]:
    """Topic filters with options, shared ones in MQTT 5."""
    if version is not V5:
        return st.builds(SubscriptionRequest, topic_filters, qualities)
    rest = (st.booleans(), st.sampled_from(RetainHandling))
    plain = st.builds(SubscriptionRequest, plain_filters, qualities, st.booleans(), *rest)
    return plain | st.builds(SubscriptionRequest, shared_filters, qualities, st.just(value=False), *rest)


def _several(items: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(items, min_size=1, max_size=5).map(tuple)


@functools.cache
def subacks(version: ProtocolVersion) -> st.SearchStrategy[Suback]:
    """SUBACK packets."""
    failures = [0x87, 0x8F, 0x97, 0x9E, 0xA1, 0xA2] if version is V5 else []
    codes = st.sampled_from([ReasonCode(value) for value in (0, 1, 2, 0x80, *failures)])
    return st.builds(Suback, packet_ids, _several(codes), properties(PacketType.SUBACK, version))


@functools.cache
def unsubacks(version: ProtocolVersion) -> st.SearchStrategy[Unsuback]:
    """UNSUBACK packets."""
    if version is not V5:
        return st.builds(Unsuback, packet_ids)
    codes = st.sampled_from([ReasonCode(value) for value in (0, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91)])
    return st.builds(Unsuback, packet_ids, _several(codes), properties(PacketType.UNSUBACK))


@functools.cache
def auths() -> st.SearchStrategy[Auth]:
    """AUTH packets: with a method, or empty."""
    reasons = st.sampled_from([ReasonCode.SUCCESS, ReasonCode.CONTINUE_AUTHENTICATION, ReasonCode.RE_AUTHENTICATE])
    named = properties(PacketType.AUTH).filter(lambda found: found.authentication_method is not None)
    return st.just(Auth()) | st.builds(Auth, reasons, named)


@functools.cache
def packets(version: ProtocolVersion) -> st.SearchStrategy[Packet]:
    """Any packet that *version* can express."""
    filters = plain_filters | shared_filters if version is V5 else topic_filters
    disconnects: st.SearchStrategy[Packet] = st.just(Disconnect())
    if version is V5:
        reasons = st.sampled_from(sorted(CLIENT_REASONS | SERVER_REASONS))
        disconnects = st.builds(Disconnect, reasons, properties(PacketType.DISCONNECT))
    return st.one_of(
        connects(version),
        connacks(version),
        publishes(version),
        *(acknowledgements(kind, version) for kind in (Puback, Pubrec, Pubrel, Pubcomp)),
        st.builds(
            Subscribe,
            packet_ids,
            _several(subscription_requests(version)),
            properties(PacketType.SUBSCRIBE, version),
        ),
        subacks(version),
        st.builds(Unsubscribe, packet_ids, _several(filters), properties(PacketType.UNSUBSCRIBE, version)),
        unsubacks(version),
        st.just(Pingreq()),
        st.just(Pingresp()),
        disconnects,
        *([auths()] if version is V5 else []),
    )


@functools.cache
def _version_and_packet(version: ProtocolVersion) -> st.SearchStrategy[tuple[ProtocolVersion, Packet]]:
    return st.tuples(st.just(version), packets(version))


@functools.cache
def written_packets(version: ProtocolVersion) -> st.SearchStrategy[bytes]:
    """Packets of *version*, encoded."""
    return packets(version).map(lambda packet: packet.encode(version))


@functools.cache
def version_and_publish(version: ProtocolVersion) -> st.SearchStrategy[tuple[ProtocolVersion, Publish]]:
    """PUBLISH packets with their version."""
    return st.tuples(st.just(version), publishes(version))


versions_and_packets = versions.flatmap(_version_and_packet)
