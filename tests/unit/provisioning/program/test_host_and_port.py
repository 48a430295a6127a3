"""An address and a port as one text: an address of IPv6 is in brackets, and comes out again."""

from __future__ import annotations

import pytest

from provisioning.program.host_and_port import unbracketed, with_port, without_port


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("192.0.2.7", "192.0.2.7:883"),
        ("2001:db8::7", "[2001:db8::7]:883"),
        ("fe80::1%eth0", "[fe80::1%eth0]:883"),
        ("mqtt.example", "mqtt.example:883"),
    ],
)
def test_an_address_comes_out_as_it_went_in(host: str, text: str) -> None:
    assert with_port(host, 883) == text
    assert without_port(text) == host


@pytest.mark.parametrize(("written", "host"), [("[::1]", "::1"), ("::1", "::1"), ("[::1", "[::1"), ("", "")])
def test_only_a_pair_of_brackets_is_taken_off(written: str, host: str) -> None:
    assert unbracketed(written) == host


def test_addresses_of_an_older_log_are_read_too() -> None:
    assert without_port("2001:db8::7:883") == "2001:db8::7"
