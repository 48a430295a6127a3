"""The golden packets: what each packet looks like on the wire, field by field, and what it means.

One table for every test that needs packets: encoding, decoding, framing, interoperability, benchmarks. The bytes are
written by hand from the standard, never copied from an encoder.

Rules
-----
1. ``decode_packet(data) == packet`` for every case.
2. ``packet.encode(version) == data`` for every canonical case: it is the shortest way to write it, with properties in
   the order of their identifiers.
"""

from __future__ import annotations

from broker.mqtt.codes import QoS, ReasonCode, RetainHandling
from broker.mqtt.packets import (
    Auth,
    Disconnect,
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
)
from broker.mqtt.properties import Properties
from tests.support.connect_cases import CONNACK_CASES, CONNECT_CASES
from tests.support.packet_case import V5, V31, V311, PacketCase, split_packet

__all__ = ["PACKET_CASES", "PacketCase", "split_packet"]

PUBLISH_CASES = (
    PacketCase(
        "3.1.1 PUBLISH at QoS 0",
        V311,
        b"\x30\x07"  # PUBLISH, 7 bytes follow
        b"\x00\x03a/b"  # topic name
        b"hi",  # payload
        Publish("a/b", b"hi"),
    ),
    PacketCase("3.1.1 PUBLISH without a payload", V311, b"\x31\x03\x00\x01a", Publish("a", retain=True)),
    PacketCase(
        "3.1.1 PUBLISH at QoS 1, again, retained",
        V311,
        b"\x3b\x09"  # PUBLISH with DUP, QoS 1, RETAIN, 9 bytes follow
        b"\x00\x03a/b"  # topic name
        b"\x00\x07"  # packet identifier
        b"hi",  # payload
        Publish("a/b", b"hi", QoS.AT_LEAST_ONCE, retain=True, dup=True, packet_id=7),
    ),
    PacketCase(
        "3.1.1 PUBLISH at QoS 2 of 321 bytes",
        V311,
        b"\x34\xc1\x02"  # PUBLISH with QoS 2, 65 + 2 * 128 bytes follow
        b"\x00\x06\xe2\x82\xac/\xc3\xa9"  # topic name
        b"\xff\xff" + b"x" * 311,  # packet identifier  # payload
        Publish("€/é", b"x" * 311, QoS.EXACTLY_ONCE, packet_id=65535),
    ),
    PacketCase(
        "MQTT 5 PUBLISH at QoS 0 without properties",
        V5,
        b"\x30\x08"  # PUBLISH, 8 bytes follow
        b"\x00\x03a/b"  # topic name
        b"\x00"  # property length
        b"hi",  # payload
        Publish("a/b", b"hi"),
    ),
    PacketCase(
        "MQTT 5 PUBLISH behind a topic alias",
        V5,
        b"\x32\x0a"  # PUBLISH with QoS 1, 10 bytes follow
        b"\x00\x00"  # topic name: empty
        b"\x12\x34"  # packet identifier
        b"\x03"  # property length
        b"\x23\x00\x05"  # topic alias
        b"hi",  # payload
        Publish("", b"hi", QoS.AT_LEAST_ONCE, packet_id=0x1234, properties=Properties(topic_alias=5)),
    ),
    PacketCase(
        "MQTT 5 PUBLISH with everything it can have",
        V5,
        b"\x35\x3a"  # PUBLISH with QoS 2, RETAIN, 58 bytes follow
        b"\x00\x01t"  # topic name
        b"\x00\x01"  # packet identifier
        b"\x33"  # property length: 51
        b"\x01\x00"  # payload format indicator
        b"\x02\x00\x00\x0e\x10"  # message expiry interval
        b"\x03\x00\x09text/json"  # content type
        b"\x08\x00\x03a/b"  # response topic
        b"\x09\x00\x01\xff"  # correlation data
        b"\x0b\x01"  # subscription identifier
        b"\x0b\xff\xff\xff\x7f"  # the largest subscription identifier
        b"\x23\xff\xff"  # topic alias
        b"\x26\x00\x01a\x00\x01b"  # user properties, in order
        b"\x26\x00\x00\x00\x00"
        b"!",  # payload
        Publish(
            "t",
            b"!",
            QoS.EXACTLY_ONCE,
            retain=True,
            packet_id=1,
            properties=Properties(
                payload_format_indicator=0,
                message_expiry_interval=3600,
                content_type="text/json",
                response_topic="a/b",
                correlation_data=b"\xff",
                subscription_identifiers=(1, 268435455),
                topic_alias=65535,
                user_properties=(("a", "b"), ("", "")),
            ),
        ),
    ),
)

ACKNOWLEDGEMENT_CASES = (
    PacketCase("3.1.1 PUBACK", V311, b"\x40\x02\x00\x01", Puback(1)),
    PacketCase("3.1.1 PUBREC", V311, b"\x50\x02\x00\x02", Pubrec(2)),
    PacketCase("3.1.1 PUBREL", V311, b"\x62\x02\x00\x03", Pubrel(3)),
    PacketCase("3.1.1 PUBCOMP", V311, b"\x70\x02\xff\xff", Pubcomp(65535)),
    PacketCase("MQTT 3.1 PUBREL sent again", V31, b"\x6a\x02\x00\x03", Pubrel(3), canonical=False),
    PacketCase("MQTT 3.1 PUBREL with unused flags", V31, b"\x6b\x02\x00\x03", Pubrel(3), canonical=False),
    PacketCase("MQTT 3.1 PUBACK with unused flags", V31, b"\x42\x02\x00\x03", Puback(3), canonical=False),
    PacketCase("MQTT 3.1 PUBREC with unused flags", V31, b"\x5f\x02\x00\x03", Pubrec(3), canonical=False),
    PacketCase("MQTT 5 PUBACK in two bytes", V5, b"\x40\x02\x00\x01", Puback(1)),
    PacketCase("MQTT 5 PUBACK that spells out success", V5, b"\x40\x03\x00\x01\x00", Puback(1), canonical=False),
    PacketCase("MQTT 5 PUBACK that spells out everything", V5, b"\x40\x04\x00\x01\x00\x00", Puback(1), canonical=False),
    PacketCase(
        "MQTT 5 PUBACK: no matching subscribers",
        V5,
        b"\x40\x03"  # PUBACK, 3 bytes follow
        b"\x00\x01"  # packet identifier
        b"\x10",  # reason code; no property length
        Puback(1, ReasonCode.NO_MATCHING_SUBSCRIBERS),
    ),
    PacketCase(
        "MQTT 5 PUBACK that refuses with a reason string and a user property",
        V5,
        b"\x40\x10"  # PUBACK, 16 bytes follow
        b"\x00\x01"  # packet identifier
        b"\x87"  # not authorized
        b"\x0c"  # property length
        b"\x1f\x00\x02no"  # reason string
        b"\x26\x00\x01a\x00\x01b",  # user property
        Puback(1, ReasonCode.NOT_AUTHORIZED, Properties(reason_string="no", user_properties=(("a", "b"),))),
    ),
    PacketCase(
        "MQTT 5 PUBREC that succeeds with a reason string",
        V5,
        b"\x50\x09\x00\x01\x00\x05\x1f\x00\x02ok",
        Pubrec(1, properties=Properties(reason_string="ok")),
    ),
    PacketCase(
        "MQTT 5 PUBREL of an unknown packet identifier",
        V5,
        b"\x62\x03\x00\x01\x92",
        Pubrel(1, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND),
    ),
    PacketCase(
        "MQTT 5 PUBCOMP of an unknown packet identifier",
        V5,
        b"\x70\x03\x00\x01\x92",
        Pubcomp(1, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND),
    ),
)

SUBSCRIPTION_CASES = (
    PacketCase(
        "3.1.1 SUBSCRIBE to two filters",
        V311,
        b"\x82\x0e"  # SUBSCRIBE, 14 bytes follow
        b"\x00\x0a"  # packet identifier
        b"\x00\x03a/#\x01"  # topic filter, QoS 1
        b"\x00\x03+/+\x02",  # topic filter, QoS 2
        Subscribe(10, (SubscriptionRequest("a/#", QoS.AT_LEAST_ONCE), SubscriptionRequest("+/+", QoS.EXACTLY_ONCE))),
    ),
    PacketCase(
        "MQTT 3.1 SUBSCRIBE sent again",
        V31,
        b"\x8a\x06\x00\x01\x00\x01#\x00",
        Subscribe(1, (SubscriptionRequest("#"),)),
        canonical=False,
    ),
    PacketCase(
        "MQTT 3.1 SUBSCRIBE with unused flags and options",
        V31,
        b"\x83\x06\x00\x01\x00\x01#\xfd",
        Subscribe(1, (SubscriptionRequest("#", QoS.AT_LEAST_ONCE),)),
        canonical=False,
    ),
    PacketCase(
        "MQTT 5 SUBSCRIBE with every option",
        V5,
        b"\x82\x24"  # SUBSCRIBE, 36 bytes follow
        b"\x00\x01"  # packet identifier
        b"\x0a"  # property length
        b"\x0b\x80\x01"  # subscription identifier
        b"\x26\x00\x01a\x00\x01b"  # user property
        b"\x00\x01a\x2d"  # topic filter; retain handling 2, retain as published, no local, QoS 1
        b"\x00\x10$share/group/a/+\x1a",  # shared; retain handling 1, retain as published, QoS 2
        Subscribe(
            1,
            (
                SubscriptionRequest(
                    "a",
                    QoS.AT_LEAST_ONCE,
                    no_local=True,
                    retain_as_published=True,
                    retain_handling=RetainHandling.DO_NOT_SEND,
                ),
                SubscriptionRequest(
                    "$share/group/a/+",
                    QoS.EXACTLY_ONCE,
                    retain_as_published=True,
                    retain_handling=RetainHandling.SEND_IF_NEW,
                ),
            ),
            Properties(subscription_identifiers=(128,), user_properties=(("a", "b"),)),
        ),
    ),
    PacketCase(
        "3.1.1 SUBACK",
        V311,
        b"\x90\x06"  # SUBACK, 6 bytes follow
        b"\x00\x0a"  # packet identifier
        b"\x00\x01\x02\x80",  # QoS 0, 1, 2, failure
        Suback(
            10,
            (
                ReasonCode.GRANTED_QOS_0,
                ReasonCode.GRANTED_QOS_1,
                ReasonCode.GRANTED_QOS_2,
                ReasonCode.UNSPECIFIED_ERROR,
            ),
        ),
    ),
    PacketCase(
        "MQTT 5 SUBACK with a reason string",
        V5,
        b"\x90\x0a"  # SUBACK, 10 bytes follow
        b"\x00\x01"  # packet identifier
        b"\x05"  # property length
        b"\x1f\x00\x02no"  # reason string
        b"\x01\x87",  # QoS 1, not authorized
        Suback(1, (ReasonCode.GRANTED_QOS_1, ReasonCode.NOT_AUTHORIZED), Properties(reason_string="no")),
    ),
    PacketCase(
        "3.1.1 UNSUBSCRIBE",
        V311,
        b"\xa2\x0a"  # UNSUBSCRIBE, 10 bytes follow
        b"\x00\x02"  # packet identifier
        b"\x00\x03a/#"  # topic filter
        b"\x00\x01b",  # topic filter
        Unsubscribe(2, ("a/#", "b")),
    ),
    PacketCase(
        "MQTT 5 UNSUBSCRIBE with a user property",
        V5,
        b"\xa2\x0d"  # UNSUBSCRIBE, 13 bytes follow
        b"\x00\x02"  # packet identifier
        b"\x07\x26\x00\x01a\x00\x01b"  # property length, user property
        b"\x00\x01#",  # topic filter
        Unsubscribe(2, ("#",), Properties(user_properties=(("a", "b"),))),
    ),
    PacketCase("3.1.1 UNSUBACK", V311, b"\xb0\x02\x00\x02", Unsuback(2)),
    PacketCase(
        "MQTT 5 UNSUBACK",
        V5,
        b"\xb0\x05"  # UNSUBACK, 5 bytes follow
        b"\x00\x02"  # packet identifier
        b"\x00"  # property length
        b"\x00\x11",  # success, no subscription existed
        Unsuback(2, (ReasonCode.SUCCESS, ReasonCode.NO_SUBSCRIPTION_EXISTED)),
    ),
)

CONNECTION_CASES = (
    PacketCase("3.1.1 PINGREQ", V311, b"\xc0\x00", Pingreq()),
    PacketCase("MQTT 3.1 PINGREQ with unused flags", V31, b"\xc8\x00", Pingreq(), canonical=False),
    PacketCase("MQTT 5 PINGREQ", V5, b"\xc0\x00", Pingreq()),
    PacketCase("3.1.1 PINGRESP", V311, b"\xd0\x00", Pingresp()),
    PacketCase("MQTT 5 PINGRESP", V5, b"\xd0\x00", Pingresp()),
    PacketCase("3.1.1 DISCONNECT", V311, b"\xe0\x00", Disconnect()),
    PacketCase("MQTT 5 DISCONNECT in two bytes", V5, b"\xe0\x00", Disconnect()),
    PacketCase("MQTT 5 DISCONNECT that spells out everything", V5, b"\xe0\x02\x00\x00", Disconnect(), canonical=False),
    PacketCase(
        "MQTT 5 DISCONNECT that asks for the will",
        V5,
        b"\xe0\x01\x04",
        Disconnect(ReasonCode.DISCONNECT_WITH_WILL_MESSAGE),
    ),
    PacketCase(
        "MQTT 5 DISCONNECT with everything it can have",
        V5,
        b"\xe0\x21"  # DISCONNECT, 33 bytes follow
        b"\x98"  # administrative action
        b"\x1f"  # property length: 31
        b"\x11\x00\x00\x00\x00"  # session expiry interval
        b"\x1c\x00\x04srv2"  # server reference
        b"\x1f\x00\x09REVOKED: "  # reason string
        b"\x26\x00\x01a\x00\x01b",  # user property
        Disconnect(
            ReasonCode.ADMINISTRATIVE_ACTION,
            Properties(
                session_expiry_interval=0,
                server_reference="srv2",
                reason_string="REVOKED: ",
                user_properties=(("a", "b"),),
            ),
        ),
    ),
    PacketCase("MQTT 5 AUTH in two bytes", V5, b"\xf0\x00", Auth()),
    PacketCase(
        "MQTT 5 AUTH that continues",
        V5,
        b"\xf0\x0c"  # AUTH, 12 bytes follow
        b"\x18"  # continue authentication
        b"\x0a"  # property length
        b"\x15\x00\x01m"  # authentication method
        b"\x16\x00\x03\x00\x01\x02",  # authentication data
        Auth(
            ReasonCode.CONTINUE_AUTHENTICATION,
            Properties(authentication_method="m", authentication_data=b"\x00\x01\x02"),
        ),
    ),
)

PACKET_CASES = (
    *CONNECT_CASES,
    *CONNACK_CASES,
    *PUBLISH_CASES,
    *ACKNOWLEDGEMENT_CASES,
    *SUBSCRIPTION_CASES,
    *CONNECTION_CASES,
)
