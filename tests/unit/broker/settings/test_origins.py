"""Whose pages may connect: origins as browsers write them, and requests that are nobody else's."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from broker.settings.listener_settings import ListenerSettings
from broker.settings.origins import NO_PAGES, Origins, origin_of


@pytest.mark.parametrize(
    ("said", "canonical"),
    [
        ("https://dash.example", "https://dash.example"),
        ("HTTPS://Dash.Example", "https://dash.example"),
        ("https://dash.example:443", "https://dash.example"),
        ("https://dash.example:8443", "https://dash.example:8443"),
        ("https://dash.example:65535", "https://dash.example:65535"),
        ("http://dash.example:80", "http://dash.example"),
        ("http://dash.example:443", "http://dash.example:443"),
        ("https://192.0.2.7", "https://192.0.2.7"),
        ("https://[2001:DB8:0::1]:443", "https://[2001:db8::1]"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("chrome-extension://abcdefgh", "chrome-extension://abcdefgh"),
    ],
)
def test_an_origin_is_written_as_browsers_write_it(said: str, canonical: str) -> None:  # RFC 6454 §4, §6.2
    assert origin_of(said) == canonical


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("*", "name each; or unsafe_any_websocket_origin admits any page"),
        ("Null", "serve it from somewhere; or unsafe_any_websocket_origin admits any page"),
        ("", "write the scheme too, as in https://example.com"),
        ("dash.example", "write the scheme too, as in https://dash.example"),
        ("https://dash.example/", "an origin has no path: write https://dash.example"),
        ("https://dash.example:8443/app?x#y", "an origin has no path: write https://dash.example:8443"),
        ("https://dash.*", "without wildcards: name each; or unsafe_any_websocket_origin"),
        ("https://*.example", "without wildcards: name each; or unsafe_any_websocket_origin"),
        ("https://bücher.example", "in ASCII (xn--…)"),
        ("wss://broker.example:8443", "write where it is from, as in https://broker.example:8443"),
        ("file:///app/index.html", "names no host, as in https://example.com"),
        ("https://", "names no host"),
        ("https://user@dash.example", "write scheme://host or scheme://host:port"),
        ("https://dash.example:65536", "write scheme://host or scheme://host:port"),
        ("https://dash.example:0", "write scheme://host or scheme://host:port"),
        ("https://dash.example:", "write scheme://host or scheme://host:port"),
        ("https://[::1", "write scheme://host or scheme://host:port"),
        ("https://[:::1]", "write scheme://host or scheme://host:port"),
        ("https://a.example https://b.example", "name one origin an entry"),
    ],
)
def test_what_is_no_origin_is_told_what_to_write(said: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=re.escape(remedy)):
        origin_of(said)


DASH = Origins(frozenset({"https://dash.example", "http://[2001:db8::1]:8000"}))


@pytest.mark.parametrize(
    ("origin", "admitted"),
    [
        ("https://dash.example", True),
        ("https://DASH.example:443", True),
        ("http://[2001:db8:0:0::1]:8000", True),
        ("http://dash.example", False),
        ("https://dash.example:8443", False),
        ("https://dash.example.evil.example", False),
        ("https://evil-dash.example", False),
        ("https://dash.example/", False),
        ("https://dash.example https://evil.example", False),
        ("null", False),
        ("", False),
        ("file://", False),
        ("é", False),
    ],
)
def test_a_page_may_connect_if_its_origin_is_named(origin: str, *, admitted: bool) -> None:  # RFC 6454 §5
    assert DASH.admit(origin, "broker.example:8443") is admitted
    assert not NO_PAGES.admit(origin, "broker.example:8443")
    assert Origins(unsafe_any=True).admit(origin, "broker.example:8443")


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://broker.example:8443", "broker.example:8443"),  # paho for Python and C
        ("https://broker.example", "broker.example"),
        ("https://broker.example", "broker.example:443"),
        ("https://broker.example:443", "broker.example"),  # paho for C on the default port
        ("https://broker.example:8443", "Broker.Example:8443"),  # netty lowers the case of one of them
        ("https://[::1]:8443", "[::1]:8443"),
        ("https://::1:8443", "::1:8443"),  # paho for Python
    ],
)
def test_the_listeners_own_origin_is_no_foreign_page(origin: str, host: str) -> None:
    assert NO_PAGES.admit(origin, host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://broker.example:8443", "broker.example:8443"),  # Whoever is on the network can write such a page.
        ("https://broker.example", "broker.example:8443"),
        ("https://broker.example:8444", "broker.example:8443"),
        ("https://evil.example:8443", "broker.example:8443"),
        ("https://broker.example.evil.example", "broker.example"),
        ("https://broker.example:84431", "broker.example:8443"),
        ("https://", ""),
        ("null", "null"),
        ("https://x", "x/"),
    ],
)
def test_another_port_or_scheme_of_the_same_host_is_another_origin(origin: str, host: str) -> None:
    assert NO_PAGES.admit(origin, host) is (origin == f"https://{host}")


def test_a_listener_that_names_pages_admits_no_others_though_the_broker_admits_any() -> None:
    everybody, named = Origins(unsafe_any=True), ("https://a.example",)
    assert ListenerSettings(port=1, protocol="wss").origins(everybody) == everybody
    own = ListenerSettings(port=1, protocol="wss", websocket_origins=named)
    assert own.origins(everybody) == Origins(frozenset(named))
    with pytest.raises(ValidationError, match="unsafe_any_websocket_origin: it admits every page, and"):
        ListenerSettings(port=1, protocol="wss", websocket_origins=named, unsafe_any_websocket_origin=True)
