"""The golden packets that begin a connection: CONNECT and CONNACK (see `tests.support.packet_cases`)."""

from __future__ import annotations

from broker.mqtt.codes import QoS, ReasonCode
from broker.mqtt.packets import Connack, Connect, Will
from broker.mqtt.properties import Properties
from tests.support.packet_case import V5, V31, V311, PacketCase

CONNECT_CASES = (
    PacketCase(
        "MQTT 3.1 CONNECT with the smallest payload",
        V31,
        b"\x10\x0f"  # CONNECT, 15 bytes follow
        b"\x00\x06MQIsdp"  # protocol name
        b"\x03"  # protocol version
        b"\x02"  # flags: clean session
        b"\x00\x0a"  # keep alive
        b"\x00\x01a",  # client identifier
        Connect(protocol_version=V31, client_id="a", keep_alive=10),
    ),
    PacketCase(
        "MQTT 3.1 CONNECT with unused flags",
        V31,
        b"\x17\x0f"  # CONNECT, 15 bytes follow
        b"\x00\x06MQIsdp\x03"  # protocol name and version
        b"\x03"  # flags: clean session, and the reserved one
        b"\x00\x0a"  # keep alive
        b"\x00\x01a",  # client identifier
        Connect(protocol_version=V31, client_id="a", keep_alive=10),
        canonical=False,
    ),
    PacketCase(
        "MQTT 3.1 CONNECT with a user name flag and no user name, which its text allows",
        V31,
        b"\x10\x0f"  # CONNECT, 15 bytes follow
        b"\x00\x06MQIsdp\x03"  # protocol name and version
        b"\x82"  # flags: user name, clean session
        b"\x00\x0a"  # keep alive
        b"\x00\x01a",  # client identifier
        Connect(protocol_version=V31, client_id="a", keep_alive=10),
        canonical=False,
    ),
    PacketCase(
        "MQTT 3.1 CONNECT with a password flag and no password, which its text allows",
        V31,
        b"\x10\x12"  # CONNECT, 18 bytes follow
        b"\x00\x06MQIsdp\x03"  # protocol name and version
        b"\xc2"  # flags: user name, password, clean session
        b"\x00\x0a"  # keep alive
        b"\x00\x01a"  # client identifier
        b"\x00\x01u",  # user name
        Connect(protocol_version=V31, client_id="a", keep_alive=10, username="u"),
        canonical=False,
    ),
    PacketCase(
        "3.1.1 CONNECT without a client identifier",
        V311,
        b"\x10\x0c"  # CONNECT, 12 bytes follow
        b"\x00\x04MQTT"  # protocol name
        b"\x04"  # protocol version
        b"\x02"  # flags: clean session
        b"\x00\x3c"  # keep alive
        b"\x00\x00",  # client identifier
        Connect(protocol_version=V311, keep_alive=60),
    ),
    PacketCase(
        "3.1.1 CONNECT with everything it can have",
        V311,
        b"\x10\x2d"  # CONNECT, 45 bytes follow
        b"\x00\x04MQTT\x04"  # protocol name and version
        b"\xf4"  # flags: user name, password, will retain, will QoS 2, will
        b"\xff\xff"  # keep alive
        b"\x00\x08meter-17"  # client identifier
        b"\x00\x04gone"  # will topic
        b"\x00\x03\x00\xff\x01"  # will payload
        b"\x00\x04user"  # user name
        b"\x00\x06secret",  # password
        Connect(
            protocol_version=V311,
            client_id="meter-17",
            clean_start=False,
            keep_alive=65535,
            will=Will("gone", b"\x00\xff\x01", QoS.EXACTLY_ONCE, retain=True),
            username="user",
            password=b"secret",
        ),
    ),
    PacketCase(
        "MQTT 5 CONNECT without properties",
        V5,
        b"\x10\x15"  # CONNECT, 21 bytes follow
        b"\x00\x04MQTT\x05"  # protocol name and version
        b"\x02"  # flags: clean start
        b"\x00\x1e"  # keep alive
        b"\x00"  # property length
        b"\x00\x08meter-17",  # client identifier
        Connect(client_id="meter-17", keep_alive=30),
    ),
    PacketCase(
        "MQTT 5 CONNECT with a password and no user name",
        V5,
        b"\x10\x10"  # CONNECT, 16 bytes follow
        b"\x00\x04MQTT\x05"  # protocol name and version
        b"\x42"  # flags: password, clean start
        b"\x00\x00"  # keep alive: none
        b"\x00"  # property length
        b"\x00\x00"  # client identifier
        b"\x00\x01\xfe",  # password, which is not text
        Connect(password=b"\xfe"),
    ),
    PacketCase(
        "MQTT 5 CONNECT with everything it can have",
        V5,
        b"\x10\x8b\x01"  # CONNECT, 11 + 1 * 128 bytes follow
        b"\x00\x04MQTT\x05"  # protocol name and version
        b"\xee"  # flags: user name, password, will retain, will QoS 1, will, clean start
        b"\x00\x3c"  # keep alive
        b"\x2e"  # property length: 46
        b"\x11\x00\x00\x0e\x10"  # session expiry interval
        b"\x15\x00\x04SCRA"  # authentication method
        b"\x16\x00\x02\x01\x02"  # authentication data
        b"\x17\x00"  # request problem information
        b"\x19\x01"  # request response information
        b"\x21\x00\x14"  # receive maximum
        b"\x22\x00\x0a"  # topic alias maximum
        b"\x26\x00\x01k\x00\x01v"  # user property
        b"\x26\x00\x01k\x00\x01w"  # the same name again
        b"\x27\x00\x01\x00\x00"  # maximum packet size
        b"\x00\x08meter-17"  # client identifier
        b"\x34"  # will property length: 52
        b"\x01\x01"  # payload format indicator
        b"\x02\x00\x00\x00\x3c"  # message expiry interval
        b"\x03\x00\x0atext/plain"  # content type
        b"\x08\x00\x05reply"  # response topic
        b"\x09\x00\x04\x00\x01\x02\x03"  # correlation data
        b"\x18\x00\x00\x00\x05"  # will delay interval
        b"\x26\x00\x03why\x00\x04dead"  # user property
        b"\x00\x04gone"  # will topic
        b"\x00\x03bye"  # will payload
        b"\x00\x02me"  # user name
        b"\x00\x02pw",  # password
        Connect(
            client_id="meter-17",
            keep_alive=60,
            will=Will(
                "gone",
                b"bye",
                QoS.AT_LEAST_ONCE,
                retain=True,
                properties=Properties(
                    payload_format_indicator=1,
                    message_expiry_interval=60,
                    content_type="text/plain",
                    response_topic="reply",
                    correlation_data=b"\x00\x01\x02\x03",
                    will_delay_interval=5,
                    user_properties=(("why", "dead"),),
                ),
            ),
            username="me",
            password=b"pw",
            properties=Properties(
                session_expiry_interval=3600,
                authentication_method="SCRA",
                authentication_data=b"\x01\x02",
                request_problem_information=False,
                request_response_information=True,
                receive_maximum=20,
                topic_alias_maximum=10,
                user_properties=(("k", "v"), ("k", "w")),
                maximum_packet_size=65536,
            ),
        ),
    ),
    PacketCase(
        "MQTT 5 CONNECT whose properties come in another order",
        V5,
        b"\x10\x15"  # CONNECT, 21 bytes follow
        b"\x00\x04MQTT\x05\x02\x00\x00"  # protocol name and version, flags, keep alive
        b"\x08"  # property length
        b"\x27\x00\x00\x10\x00"  # maximum packet size
        b"\x21\x00\x01"  # receive maximum
        b"\x00\x00",  # client identifier
        Connect(properties=Properties(receive_maximum=1, maximum_packet_size=4096)),
        canonical=False,
    ),
)

CONNACK_CASES = (
    PacketCase("MQTT 3.1 CONNACK", V31, b"\x20\x02\x00\x00", Connack()),
    PacketCase(
        "3.1.1 CONNACK that resumes a session",
        V311,
        b"\x20\x02"  # CONNACK, 2 bytes follow
        b"\x01"  # session present
        b"\x00",  # return code: accepted
        Connack(session_present=True),
    ),
    PacketCase(
        "3.1.1 CONNACK that refuses the client identifier",
        V311,
        b"\x20\x02\x00\x02",
        Connack(ReasonCode.CLIENT_IDENTIFIER_NOT_VALID),
    ),
    PacketCase("3.1.1 CONNACK: not authorized", V311, b"\x20\x02\x00\x05", Connack(ReasonCode.NOT_AUTHORIZED)),
    PacketCase("MQTT 5 CONNACK without properties", V5, b"\x20\x03\x00\x00\x00", Connack()),
    PacketCase(
        "MQTT 5 CONNACK that refuses with a reason string",
        V5,
        b"\x20\x0d"  # CONNACK, 13 bytes follow
        b"\x00"  # no session present
        b"\x87"  # not authorized
        b"\x0a"  # property length
        b"\x1f\x00\x07REVOKED",  # reason string
        Connack(ReasonCode.NOT_AUTHORIZED, properties=Properties(reason_string="REVOKED")),
    ),
    PacketCase(
        "MQTT 5 CONNACK with everything it can have",
        V5,
        b"\x20\x46"  # CONNACK, 70 bytes follow
        b"\x01"  # session present
        b"\x00"  # success
        b"\x43"  # property length: 67
        b"\x11\x00\x00\x00\x78"  # session expiry interval
        b"\x12\x00\x04a-17"  # assigned client identifier
        b"\x13\x00\x2d"  # server keep alive
        b"\x15\x00\x01m"  # authentication method
        b"\x16\x00\x01d"  # authentication data
        b"\x1a\x00\x02ri"  # response information
        b"\x1c\x00\x03srv"  # server reference
        b"\x1f\x00\x02ok"  # reason string
        b"\x21\x00\x0a"  # receive maximum
        b"\x22\x00\x05"  # topic alias maximum
        b"\x24\x01"  # maximum QoS
        b"\x25\x01"  # retain available
        b"\x26\x00\x01a\x00\x01b"  # user property
        b"\x27\x00\x10\x00\x00"  # maximum packet size
        b"\x28\x01"  # wildcard subscription available
        b"\x29\x00"  # subscription identifier available
        b"\x2a\x01",  # shared subscription available
        Connack(
            session_present=True,
            properties=Properties(
                session_expiry_interval=120,
                assigned_client_identifier="a-17",
                server_keep_alive=45,
                authentication_method="m",
                authentication_data=b"d",
                response_information="ri",
                server_reference="srv",
                reason_string="ok",
                receive_maximum=10,
                topic_alias_maximum=5,
                maximum_qos=1,
                retain_available=True,
                user_properties=(("a", "b"),),
                maximum_packet_size=1048576,
                wildcard_subscription_available=True,
                subscription_identifier_available=False,
                shared_subscription_available=True,
            ),
        ),
    ),
)
