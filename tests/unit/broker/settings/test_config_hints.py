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


def test_a_file_is_mosquittos_whatever_few_settings_it_has() -> None:
    assert told("port 8883\ncafile ca.crt\n") == [
        "line 1: port: write port = …, as TOML has it",
        "line 2: cafile: write cafile = …, as TOML has it",
    ]
    assert [line[:22] for line in told("listener 8883\r\nciphers_tls1.3 X\r\n")] == [
        "line 1: listener: writ", "line 2: ciphers_tls1.3",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["port = 1", "port 1\nhost = 'x'", "nothing of\nthe kind", "", "[limits]\nport 1"])
def test_another_file_is_none_of_mosquittos(text: str) -> None:
    assert told(text) == []
