"""What is said of mosquitto's settings: `tests/integration/test_coming_from_mosquitto.py` has those of its page."""

from __future__ import annotations

from dataclasses import fields

import pytest

from broker.settings.config import BrokerConfig
from broker.settings.config_hints import hint, of_mosquitto
from broker.settings.limits import Limits

LIMITS = {each.name for each in fields(Limits)}


def told(text: str) -> list[str]:
    return of_mosquitto(text, BrokerConfig.model_fields, LIMITS)


@pytest.mark.parametrize(
    "name",
    [
        "allow_duplicate_messages", "auth_plugin_deny_special_chars", "auto_id_prefix", "autosave_on_changes",
        "bind_interface", "ciphers_tls1.3", "http_dir", "log_facility", "log_timestamp_format", "psk_hint",
        "retain_expiry_interval", "tls_engine_kpass_sha1", "tls_keyform", "websockets_headers_size",
    ],
)  # fmt: skip
def test_no_setting_of_mosquitto_is_taken_for_a_slip_of_the_pen(name: str) -> None:
    said = hint(name, BrokerConfig.model_fields, LIMITS)
    assert said
    assert "meant?" not in said
    assert "see docs/reference" not in said


@pytest.mark.parametrize("name", ["denied_publish", "role", "group", "device", "identity"])
def test_what_belongs_to_the_topic_policy_is_sent_there(name: str) -> None:
    assert "write it in policy_file: docs/topic-policy.md" in hint(name, BrokerConfig.model_fields, LIMITS)


def test_a_limit_that_is_nearly_named_is_told_its_place() -> None:
    assert hint("max_packt_size", BrokerConfig.model_fields, LIMITS) == "; is max_packet_size below [limits] meant?"
    assert hint("max_packt_size", LIMITS, LIMITS) == "; is max_packet_size meant?"


def test_a_file_is_mosquittos_whatever_few_settings_it_has() -> None:
    assert [line[:15] for line in told("cafile a\nport 1\ncafile b")] == ["line 1: cafile:", "line 2: port: w"]
    assert told("# The one of the plant\n\nport 8883") == ["line 3: port: write port = …, as TOML has it"]
    assert told("port 8883\ncafile ca.crt\n") == [
        "line 1: port: write port = …, as TOML has it",
        "line 2: cafile: write cafile = …, as TOML has it",
    ]
    assert [line[:22] for line in told("listener 8883\r\nciphers_tls1.3 X\r\n")] == [
        "line 1: listener: writ", "line 2: ciphers_tls1.3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["port = 1", "port", "port 1\nhost = 'x'", "nothing of\nthe kind", "", "[limits]\nport 1"]
)
def test_another_file_is_none_of_mosquittos(text: str) -> None:
    assert told(text) == []


def test_each_listener_has_its_own_line_and_a_bridge_one_in_all() -> None:
    text = """listener 1883 127.0.0.1
keepalive_interval 60
cafile ca.crt
listener 8883
listener 0 /run/mosquitto.sock
connection cloud
topic # out
bridge_cafile ca.crt
topic a in
keepalive_interval 70
"""
    bridge = "configure a bridge in mosquitto's own file; it connects as a client: docs/coming-from-mosquitto.md"
    table = "write a [[listener]] table with port"
    assert told(text) == [
        f'line 1: listener: {table} = 1883 and host = "127.0.0.1", or these alone; it speaks TLS',
        f"line 2: keepalive_interval, connection, topic, bridge_cafile: {bridge}",
        "line 3: cafile: write cafile = …, as TOML has it",
        f"line 4: listener: {table} = 8883, or that alone; it speaks TLS",
        "line 5: listener: remove it: clients connect by TCP; the admin API has a Unix socket",
    ]


def test_who_is_named_by_his_certificate_is_told_where_that_is_said() -> None:
    """Without a trust bundle every device of a CA of one's own is refused: its certificates have no URI of ours."""
    (line,) = told("use_identity_as_username true\n")
    assert "[[trust]] table for your CA" in line
