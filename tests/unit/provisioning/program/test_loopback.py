"""Which addresses only this machine can reach; a name, where names do not count, is none of them."""

from __future__ import annotations

import pytest

from provisioning.program import loopback
from provisioning.program.loopback import is_loopback, is_loopback_address, is_nobodys_name, own_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1"])
def test_loopback_addresses(host: str) -> None:
    assert is_loopback(host)
    assert is_loopback_address(host)


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "::", "192.0.2.7", "::ffff:192.0.2.7", "::ffff:0.0.0.0", "127.0.0.1.example", "127.1"]
)
def test_what_others_may_reach(host: str) -> None:
    assert not is_loopback(host)
    assert not is_loopback_address(host)


def test_a_name_is_no_address() -> None:
    assert is_loopback("localhost")
    assert not is_loopback_address("localhost")
    assert not is_loopback("localhost.example")


HOSTS = {
    **dict.fromkeys(("", "localhost", "LocalHost:9100", "a.localhost", "ip6-localhost:1", "127.0.0.1"), True),
    **dict.fromkeys(("192.0.2.7:9100", "[::1]", "[2001:db8::7]:9100", " 127.0.0.1 ", "localhost:"), True),
    **dict.fromkeys(("evil.example", "127.0.0.1.evil.example:9100", "localhost.evil.example", "evil:9100"), False),
    **dict.fromkeys(
        ("[localhost]", "[::1]evil.example", "127.0.0.1:80:evil.example", "127.1", "localhost.", "::1"), False
    ),
}


@pytest.mark.parametrize("host", HOSTS)
def test_a_name_that_somebody_may_own_is_not_this_machines_own(host: str) -> None:
    assert is_nobodys_name(host) is HOSTS[host]


@pytest.mark.parametrize(("usual", "own"), [("127.0.0.1", "127.0.0.1"), ("192.0.2.1", "::1")])
def test_a_machine_without_the_usual_address_has_that_of_ipv6(
    usual: str, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loopback, "_USUAL", usual)
    own_loopback.cache_clear()
    assert own_loopback() == own
    own_loopback.cache_clear()
