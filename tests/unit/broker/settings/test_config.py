"""Settings: where they come from, which one wins, and errors that name the source, the key and the remedy."""

from __future__ import annotations

import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from broker.settings.config import BrokerConfig
from broker.settings.config_file import ConfigError, read_texts
from broker.settings.config_loading import load
from broker.settings.limits import Limits
from broker.settings.listener_settings import ListenerSettings
from broker.settings.origins import NO_PAGES, Origins
from broker.settings.trust_settings import TrustSettings
from provisioning.client.address import check_address

ENOUGH: dict[str, Any] = {"cafile": Path("ca.pem"), "provisioning": "https://127.0.0.1:8443"}
FILES = {"certfile": Path("a"), "keyfile": Path("b")}
OURS = {"name": "ours", "anchors": ["a.pem"], "unsafe_no_revocation": True}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("FLEET_BROKER_"):
            monkeypatch.delenv(name)


def refusal(flags: dict[str, Any], path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, flags)
    return str(caught.value)


def test_the_least_that_is_needed() -> None:
    config = load(None, ENOUGH)
    assert (config.host, config.port, config.name) == ("127.0.0.1", 8883, "broker-1")
    assert config.limits.max_packet_size == 1024 * 1024


def test_flags_beat_the_environment_which_beats_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "broker.toml"
    path.write_text('port = 1\nname = "file"\nlog_level = "error"\n[limits]\nmax_inflight = 5\nmax_retained = 6\n')
    monkeypatch.setenv("FLEET_BROKER_PORT", "2")
    monkeypatch.setenv("FLEET_BROKER_NAME", "environment")
    monkeypatch.setenv("FLEET_BROKER_LIMITS__MAX_INFLIGHT", "7")
    config = load(path, ENOUGH | {"port": 3, "name": None})
    assert (config.port, config.name, config.log_level) == (3, "environment", "error")
    assert (config.limits.max_inflight, config.limits.max_retained) == (7, 6)


@pytest.mark.parametrize("url", ["http://pki.example/Müller.crl", f"http://store.example/crl?signature={'0' * 600}"])
def test_a_url_that_can_be_fetched_is_taken_however_long_and_whatever_its_letters(url: str) -> None:
    """A broker that had fetched its list from there did not start again: it was said to be no URL."""
    assert load(None, ENOUGH | {"crl_urls": url}).crl_urls == (url,)
    check_address(url)


def test_a_file_is_forgotten_after_it_was_loaded(tmp_path: Path) -> None:
    path = tmp_path / "broker.toml"
    path.write_text("port = 1\n")
    assert load(path, ENOUGH).port == 1
    assert load(None, ENOUGH).port == 8883
    path.write_text('port = "x"\n')
    refusal(ENOUGH, path)
    assert load(None, ENOUGH).port == 8883


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({}, "cafile: missing; give --cafile, FLEET_BROKER_CAFILE or cafile in the file"),
        ({"cafile": "a"}, "certfile: give certfile and keyfile, or provisioning to enrol the broker's certificate"),
        (ENOUGH | {"certfile": "a"}, "certfile and keyfile: give both or neither"),
        (ENOUGH | {"keyfile": "a"}, "certfile and keyfile: give both or neither"),
        (
            {"cafile": "a"} | FILES,
            "provisioning: without it there is no source of revocations; give crlfile, crl_urls or",
        ),
        (ENOUGH | {"token": "a", "token_file": "b"}, "token: give token or token_file, not both"),
        (
            ENOUGH | {"host": "0.0.0.0"},
            "host: 0.0.0.0 is not a loopback address; set unsafe_public_listener to allow it",
        ),
        (ENOUGH | {"host": "example.org"}, "host: example.org is not a loopback address; set unsafe_public_listener"),
        (ENOUGH | {"host": "localhost.example"}, "host: localhost.example is not a loopback address"),
        (ENOUGH | {"admin_host": "0.0.0.0"}, "admin_host: 0.0.0.0 is not a loopback address; set unsafe_public_admin"),
        (ENOUGH | {"metrics_host": "::"}, "metrics_host: :: is not a loopback address; set unsafe_public_metrics"),
        (ENOUGH | {"unsafe_plain_port": 1}, "unsafe_plain_port and unsafe_plain_identity: give both or neither"),
        (ENOUGH | {"unsafe_plain_port": 1, "unsafe_plain_identity": "spiffe://x"}, "unsafe_plain_identity: "),
        (ENOUGH | {"trust": [OURS], "crlfile": ["c"]}, "crlfile, ocsp_responder and similar settings: with [[trust]]"),
        (ENOUGH | {"trust": [OURS], "ocsp_from_certificates": True}, "crlfile, ocsp_responder and similar settings: "),
        ({"cafile": "a", "trust": [OURS | {"feed": True}]} | FILES, "trust: feed = true needs provisioning, whose"),
        (ENOUGH | {"trust": [OURS, OURS]}, "trust: each bundle needs a different name; these are ours, ours"),
        (
            ENOUGH | {"port": 9443, "metrics_port": 9443},
            "metrics_port: 127.0.0.1 port 9443 is taken by another setting; give each a port of its own",
        ),
        (ENOUGH | {"admin_port": 9443, "metrics_port": 9443}, "metrics_port: 127.0.0.1 port 9443 is taken"),
        (ENOUGH | {"port": 9443, "admin_port": 9443}, "admin_port: 127.0.0.1 port 9443 is taken"),
        (ENOUGH | {"trust_domain": "A b"}, "--trust-domain: trust domain 'A b': use lower-case letters, digits"),
        (ENOUGH | {"port": 65536}, "--port: input should be less than or equal to 65535"),
        (ENOUGH | {"port": -1}, "--port: input should be greater than or equal to 0"),
        (ENOUGH | {"log_level": "loud"}, "--log-level: "),
        (
            ENOUGH | {"feed_policy": "grace 12"},
            "--feed-policy: 'grace 12' is none of: require, advisory, grace <time> with its unit (such as: grace 12h)",
        ),
        (
            ENOUGH | {"feed_policy": "require", "revocation_grace": 5},
            "feed_policy: it sets the same as revocation_grace",
        ),
        (ENOUGH | {"audit_policy": "require"}, "audit_log: audit_keyfile and audit_policy apply to the audit log only"),
        (
            ENOUGH | {"audit_keyfile": "a"},
            "audit_log: audit_keyfile and audit_policy apply to the audit log only; give",
        ),
        (ENOUGH | {"crl_check_seconds": 0}, "--crl-check-seconds: input should be greater than 0"),
        (ENOUGH | {"crl_urls": "https://a/c"}, "--crl-urls: 'https://a/c': a list or an answer is signed, so it is"),
        (ENOUGH | {"crl_urls": "http://[x"}, "--crl-urls: 'http://[x' is no URL (Invalid IPv6 URL)"),
        (ENOUGH | {"ocsp_responder": "http://:80/"}, "--ocsp-responder: 'http://:80/' is no URL"),
        (ENOUGH | {"host": "", "unsafe_public_listener": True}, "--host: is empty; give an address of this machine"),
        (ENOUGH | {"metrics_host": "", "unsafe_public_metrics": True}, "--metrics-host: is empty; give an address of"),
        (ENOUGH | {"revocation_grace": -1}, "--revocation-grace: input should be greater than or equal to 0"),
        (
            ENOUGH | {"revocation_grace": "soon"},
            "--revocation-grace: give a number of seconds, or a time with its unit, such as 90s, 5m or 12h",
        ),
        (ENOUGH | {"nonsense": 1}, "--nonsense: no such setting"),
    ],
)
def test_an_error_names_the_key_and_the_remedy(flags: dict[str, Any], text: str) -> None:
    assert refusal(flags).startswith(text)


def test_a_time_has_a_unit_or_is_seconds() -> None:
    times = {"ban_seconds": "5m", "max_session_expiry": "7d", "connect_timeout": 2, "expiry_notice": "3600"}
    config = load(None, ENOUGH | {"revocation_grace": "10m", "crl_check_seconds": "0.5", "limits": times})
    assert (config.revocation_grace, config.crl_check_seconds) == (600.0, 0.5)
    limits = config.limits
    assert (limits.ban_seconds, limits.max_session_expiry, limits.connect_timeout) == (300.0, 604_800, 2.0)
    assert (limits.expiry_notice, type(limits.max_session_expiry)) == (3600, int)
    for wrong in (True, "1.5s", "-1s", "1y"):
        assert refusal(ENOUGH | {"limits": {"max_session_expiry": wrong}}).startswith("--limits: ")


def test_one_packet_may_name_all_subscriptions_of_a_session() -> None:
    assert [Limits(max_subscriptions=most).packet_items for most in (999, 1001)] == [1000, 1001]


def test_all_errors_are_told_at_once() -> None:
    assert len(refusal(ENOUGH | {"port": -1, "log_level": "loud"}).splitlines()) == 2


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("PORT", "x", "FLEET_BROKER_PORT: give a whole number, without a unit"),
        ("ALLOW_TLS12", "maybe", "FLEET_BROKER_ALLOW_TLS12: give true or false"),
        ("LIMITS__MAX_INFLIGHT", "0", "FLEET_BROKER_LIMITS__MAX_INFLIGHT: input should be greater than or equal to 1"),
        ("LIMITS__HANDSHAKE_TIMEOUT", "0", "FLEET_BROKER_LIMITS__HANDSHAKE_TIMEOUT: input should be greater than 0"),
        ("LIMITS__MAX_PACKT", "1", "FLEET_BROKER_LIMITS__MAX_PACKT: no such setting"),
        ("PROT", "1", "FLEET_BROKER_PROT: no such setting; is port meant?"),
        ("PROT__MAX_INFLIGHT", "1", "FLEET_BROKER_PROT__MAX_INFLIGHT: no such setting"),
        ("NAME__MAX_INFLIGHT", "1", "FLEET_BROKER_NAME__MAX_INFLIGHT: no such setting"),
        ("LIMITS", "{", "limits: the environment variable FLEET_BROKER_LIMITS is not JSON"),
        ("STATE_DIR", "", "FLEET_BROKER_STATE_DIR: is empty; name a file or a directory, or leave it out"),
        ("CRLFILE", "", "FLEET_BROKER_CRLFILE: is empty; name a file or a directory, or leave it out"),
    ],
)
def test_an_error_names_the_environment_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, text: str
) -> None:
    monkeypatch.setenv(f"FLEET_BROKER_{variable}", value)
    assert refusal(ENOUGH).startswith(text)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("port = 'x'", "{path}: port: give a whole number, without a unit"),
        ("port = 1.5", "{path}: port: give a whole number"),
        ("policy_file = ['a']", "{path}: policy_file: give the name of a file, as a text"),
        ("admin_socket = 5", "{path}: admin_socket: give a text, in quotes"),
        ("trust = {name = 'x'}", "{path}: trust: write a [[trust]] table for each bundle"),
        ("limits = 5", "{path}: limits: write a table, [limits]"),
        ("plugins = ['a']", "{path}: plugins: write a table, [plugins]"),
        ("crlfile = 5", "{path}: crlfile: give a list, in brackets"),
        ("crlfile = ''", "{path}: crlfile: is empty; name a file or a directory, or leave it out"),
        ("state_dir = ''", "{path}: state_dir: is empty; name a file or a directory, or leave it out"),
        ("limits = {max_packet_size = '1MB'}", "{path}: limits.max_packet_size: give a whole number, without a unit"),
        ("prot = 1", "{path}: prot: no such setting"),
        (
            "[limits]\nmax_packet_size = 1",
            "{path}: limits.max_packet_size: input should be greater than or equal to 256",
        ),
        ("[limits]\nmax_packt = 1", "{path}: limits.max_packt: no such setting"),
        ("limits = 1", "{path}: limits: "),
        ("port = ", "{path} is not TOML: "),
        (b"port = 1\n\xff", "{path} is not TOML: line 2 is not UTF-8; save it in that encoding"),
    ],
)
def test_an_error_names_the_file(tmp_path: Path, content: str | bytes, text: str) -> None:
    path = tmp_path / "broker.toml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert refusal(ENOUGH, path).startswith(text.format(path=path))


def test_a_table_of_the_environment_that_says_nothing_is_not_to_blame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEET_BROKER_LIMITS", "null")
    path = tmp_path / "broker.toml"
    path.write_text("[limits]\nmax_inflight = 0")
    assert refusal(ENOUGH, path).startswith(f"{path}: limits.max_inflight: input should be greater than or equal to 1")


@pytest.mark.parametrize("written", ["1", "'strict'", "[]", "[[1]]"])
def test_what_should_be_a_table_is_refused_though_the_environment_has_an_entry_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    """It took the file's place: the broker ran with the limits that nobody had written."""
    monkeypatch.setenv("FLEET_BROKER_LIMITS__MAX_INFLIGHT", "7")
    path = tmp_path / "broker.toml"
    path.write_text(f"limits = {written}")
    assert refusal(ENOUGH, path) == f"{path}: limits: write a table, [limits]"


def test_a_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "none.toml"
    told = "cannot be read: No such file or directory; name one that is there"
    assert refusal(ENOUGH, path) == f"{path} {told}"
    assert refusal(ENOUGH, tmp_path) == f"{tmp_path} cannot be read: Is a directory; name a file"
    monkeypatch.chdir(tmp_path)
    assert refusal(ENOUGH, Path("none.toml")) == f"none.toml {told}, from {tmp_path} on"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_permission(host: str) -> None:
    assert load(None, ENOUGH | {"host": host}).host == host


def test_unsafe_settings_do_what_they_say() -> None:
    config = load(
        None,
        {"cafile": "a", "unsafe_no_revocation": True, "unsafe_public_listener": True, "host": "0.0.0.0"} | FILES,
    )
    assert config.host == "0.0.0.0"
    public = {"admin_host": "0.0.0.0", "unsafe_public_admin": True, "metrics_host": "::", "unsafe_public_metrics": True}
    config = load(None, ENOUGH | public)
    assert (config.admin_host, config.metrics_host) == ("0.0.0.0", "::")


@pytest.mark.parametrize("source", [{"crlfile": ["c"]}, {"crl_urls": ["http://a/c"]}, {"crl_from_certificates": True}])
def test_a_source_of_crls_is_enough_alone(source: dict[str, Any]) -> None:
    config = load(None, {"cafile": "a"} | FILES | source)
    assert (config.has_crls, config.has_ocsp) == (True, False)


def test_the_sources_of_all_bundles_are_read_and_the_feed_s_terms_are_those_given() -> None:
    listed = [OURS | {"name": name, "crlfile": [name], "crl_urls": [f"http://{name}/"]} for name in ("a", "b")]
    config = load(None, ENOUGH | {"trust": listed})
    assert (config.crl_files, config.all_crl_urls) == ((Path("a"), Path("b")), ("http://a/", "http://b/"))
    terms = ({"revocation_grace": 5}, {"feed_policy": "advisory"})
    assert [load(None, ENOUGH | given).feed_terms.grace for given in terms] == [5.0, None]
    for own, key in (({}, "s/audit.key"), ({"audit_log": "l", "audit_keyfile": "k"}, "k")):
        assert load(None, ENOUGH | {"state_dir": "s"} | own).audit_key == Path(key)


def test_a_token_is_not_shown() -> None:
    assert "s3cret" not in repr(load(None, ENOUGH | {"token": "s3cret"}))
    assert "s3cret" not in refusal(ENOUGH | {"token": "s3cret", "token_file": "x", "port": "s"})


def test_settings_do_not_change() -> None:
    config = load(None, ENOUGH)
    with pytest.raises(ValueError, match="frozen"):
        config.port = 1
    assert isinstance(config, BrokerConfig)


ORIGINS = """
websocket_origins = ["https://dash.example:443", "http://localhost:8000"]
[[listener]]
port = 1
protocol = "wss"
[[listener]]
port = 2
protocol = "wss"
websocket_origins = []
[[listener]]
port = 3
protocol = "wss"
unsafe_any_websocket_origin = true
"""


def test_a_listener_has_its_own_origins_or_those_of_the_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "broker.toml"
    path.write_text(ORIGINS)
    config = load(path, ENOUGH)
    named = Origins(frozenset({"https://dash.example", "http://localhost:8000"}))
    assert [each.origins(config.origins) for each in config.listeners] == [named, NO_PAGES, Origins(unsafe_any=True)]
    assert load(None, ENOUGH).origins == NO_PAGES
    monkeypatch.setenv("FLEET_BROKER_WEBSOCKET_ORIGINS", "https://dash.example, http://localhost:8000")
    assert load(None, ENOUGH).origins == named


def test_a_listener_can_keep_out_the_pages_that_the_broker_lets_in_anywhere_else(tmp_path: Path) -> None:
    path = tmp_path / "broker.toml"
    listener = "\n[[listener]]\nport = 1\nprotocol = 'wss'\n"
    path.write_text(f"unsafe_any_websocket_origin = true{listener}unsafe_any_websocket_origin = false")
    config = load(path, ENOUGH)
    assert config.listeners[0].origins(config.origins) == NO_PAGES
    path.write_text(f"websocket_origins = ['https://a']{listener}unsafe_any_websocket_origin = false")
    config = load(path, ENOUGH)
    assert config.listeners[0].origins(config.origins) == Origins(frozenset({"https://a"}))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("port = 1\n[[listener]]\nport = 2", "{path}: port: with [[listener]] tables, set it in those"),
        (
            "websocket_port = 1\n[[listener]]\nport = 2",
            "{path}: websocket_port: with [[listener]] tables, set it in",
        ),
        ("[[listener]]", "{path}: listener[1].port: field required"),
        ("[[listener]]\nport = 1\nprt = 1", "{path}: listener[1].prt: no such setting"),
        (
            '[[listener]]\nport = 1\nprotocol = "wss"\nwebsocket_origins = ["*"]',
            "{path}: listener[1].websocket_origins[1]: '*' is no origin: name each; or unsafe_any_websocket_origin",
        ),
        (
            "[[listener]]\nport = 1\nwebsocket_origins = []",
            "{path}: listener[1]: websocket_origins is about web pages: set protocol = 'wss', or remove it",
        ),
        (
            "[[listener]]\nport = 1\nunsafe_any_websocket_origin = true",
            "{path}: listener[1]: unsafe_any_websocket_origin is about web pages: set protocol = 'wss', or remove it",
        ),
        (
            "websocket_origins = ['https://a']\nunsafe_any_websocket_origin = true",
            "{path}: unsafe_any_websocket_origin: it admits every page, and websocket_origins some; give one",
        ),
        ('[[listener]]\nport = 1\nprotocol = "mqtt"', "{path}: listener[1].protocol: input should be 'mqtts' or 'wss'"),
        (
            '[[listener]]\nport = 1\nhost = "0.0.0.0"',
            "{path}: listener: host 0.0.0.0 is not a loopback address; set unsafe_public_",
        ),
    ],
)
def test_an_error_in_a_listener_is_named(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "broker.toml"
    path.write_text(content)
    assert refusal(ENOUGH, path).startswith(text.format(path=path))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("max_keepalive = 60", "max_keepalive: no such setting; it is a limit; write it below [limits]"),
        ("require_certificate = true", "require_certificate: no such setting; remove it: a client certificate is"),
        ("acl_file = '/x'", "acl_file: no such setting; write policy_file = …, a topic policy"),
        ("bridge_cafile = '/x'", "bridge_cafile: no such setting; configure a bridge in mosquitto's own file"),
        ("topic = 'a'", "topic: no such setting; configure a bridge in mosquitto's own file"),
        ("retain_available = true", "retain_available: no such setting; remove it: it is always on"),
        ("persistence_location = '/x'", "persistence_location: no such setting; write state_dir"),
        ("max_queued_messages = 5", "max_queued_messages: no such setting; it is a limit; write it below [limits]"),
        ("[limits]\nmax_inflight_messages = 5", "limits.max_inflight_messages: no such setting; write max_inflight"),
        ("cafiles = 'x'", "cafiles: no such setting; is cafile meant?"),
        ("[limits]\nmax_packt_size = 5", "limits.max_packt_size: no such setting; is max_packet_size meant?"),
        ("websockets_origin = 'https://a'", "websockets_origin: no such setting; write websocket_origins, a list"),
        ("websocket_origins = ['https://a/']", "websocket_origins.0: 'https://a/': an origin has no path: write https"),
        ("proxy_protocol_from = ['0.0.0.0/0']", "proxy_protocol_from.0: 0.0.0.0/0 would let everybody claim to be any"),
        (
            "proxy_protocol_from = '10.0.0.1/8'",
            "proxy_protocol_from.0: 10.0.0.1/8 is an address in a network: write 10",
        ),
        (
            "[[listener]]\nport = 1\nproxy_protocol_from = ['lb']",
            "listener[1].proxy_protocol_from[1]: 'lb' is no network",
        ),
        (
            "enable_proxy_protocol = 1",
            "enable_proxy_protocol: no such setting; write proxy_protocol_from, the networks of",
        ),
        ("quux = 1", "quux: no such setting; see docs/reference/settings-of-the-broker.md"),
        ("listener = 8883", "listener: write a [[listener]] table with port = 8883, or port = 8883 alone"),
        ("[[listener]]\nprot = 8883", "listener[1].port: field required"),
        ("[[listener]]\nport = 1\nprotocl = 'wss'", "listener[1].protocl: no such setting; is protocol meant?"),
        ("[[listener]]\nport = 9\n[[listener]]\nport = 9", "listener: two of them have 127.0.0.1 port 9; give each a"),
        ("host = '0.0.0.0'", "host: 0.0.0.0 is not a loopback address; set unsafe_public_listener to allow it"),
        ("log_level = 'loud'", "log_level: input should be 'debug', 'info', 'warning' or 'error'"),
        ("unsafe_plain_port = 1883", "unsafe_plain_port and unsafe_plain_identity: give both or neither"),
    ],
)
def test_what_a_mosquitto_user_writes_is_told_its_name_here(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "broker.toml"
    path.write_text(content)
    assert refusal(ENOUGH, path).startswith(f"{path}: {text}")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8443", "127.0.0.1:8443", "https://", "https://[::1", "https://a:x", ""]
)
def test_revocations_and_tokens_never_travel_in_the_clear(url: str) -> None:
    assert refusal(ENOUGH | {"provisioning": url}).endswith(": give https://host:port")


@pytest.mark.parametrize("table", ["limits", "plugins", "trust", "listener"])
def test_a_table_of_the_environment_that_is_no_json_is_named(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"FLEET_BROKER_{table.upper()}", "x")
    assert refusal(ENOUGH).startswith(f"{table}: the environment variable FLEET_BROKER_{table.upper()} is not JSON; ")


def test_an_error_in_a_table_of_the_environment_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "broker.toml"
    path.write_text("[limits]\nmax_retained = 0\n")
    monkeypatch.setenv("FLEET_BROKER_LIMITS", '{"max_inflight": 0}')
    monkeypatch.setenv("FLEET_BROKER_LISTENER", '[{"port": -1}]')
    retained, inflight, port = sorted(refusal(ENOUGH, path).split("\n"))
    assert retained.startswith(f"{path}: limits.max_retained: ")
    assert inflight.startswith("FLEET_BROKER_LIMITS: limits.max_inflight: ")
    assert port.startswith("FLEET_BROKER_LISTENER: listener[1].port: ")


HOSTS = {"host", "admin_host", "metrics_host", "listener.host"}
NAMES_AND_TEXTS = {"unsafe_plain_identity", "trust.username"} | {
    "response_information",  # Looked at when the broker starts, and by --test.
}
"""What may be any text, as far as it alone is concerned; what the settings say together is tested above."""
SWITCHES = {"trust.feed", "limits.quarantine_clones"} | {
    f"{table}{key}"
    for table, model in (("", BrokerConfig), ("trust.", TrustSettings), ("listener.", ListenerSettings))
    for key, field in model.model_fields.items()
    if field.annotation in {bool, bool | None}
}
LISTS = {"any_client_id", "admin_changers", "crl_urls", "trust.crl_urls"} | {
    *("websocket_origins", "listener.websocket_origins", "proxy_protocol_from", "listener.proxy_protocol_from"),
}
"""Those that an empty text leaves empty; a list of files it does not."""


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        ("true", SWITCHES),
        ("false", SWITCHES),
        ("1" + 30 * "0", set()),
        ("-1", set()),
        ("inf", set()),
        ("nan", set()),
        ('""', NAMES_AND_TEXTS | LISTS),
        ('"a\\u0000b"', NAMES_AND_TEXTS | HOSTS | {"token"}),
        ("[1]", set()),
        ("{a = 1}", set()),
        ("2026-01-01", set()),
    ],
)
def test_a_value_of_the_wrong_sort_is_said_of_each_setting_with_its_file(
    tmp_path: Path, value: str, taken: set[str]
) -> None:
    path = tmp_path / "broker.toml"
    tables = {"limits": [each.name for each in fields(Limits)]}
    tables |= {"listener": list(ListenerSettings.model_fields), "trust": list(TrustSettings.model_fields)}
    own = [key for key in BrokerConfig.model_fields if key not in {*tables, "plugins"}]
    lines = [f"{key} = {value}" for key in own]
    for table, keys in tables.items():
        lines += [f"[{table}]" if table == "limits" else f"[[{table}]]", *(f"{key} = {value}" for key in keys)]
    path.write_text("\n".join(lines))
    said = refusal({}, path).split("\n")
    assert all(line.startswith(f"{path}: ") for line in said), said
    named = {line.removeprefix(f"{path}: ").partition(":")[0].replace("[1]", "") for line in said}
    settings = set(own) | {f"{table}.{key}" for table, keys in tables.items() for key in keys}
    # An entry of a list has its own number.
    assert settings - {re.sub(r"\.\d+$", "", re.sub(r"\[1\]$", "", each)) for each in named} == taken


@pytest.mark.parametrize("setting", ["state_dir", "admin_socket", "audit_log", "audit_keyfile"])
def test_a_command_takes_no_path_that_is_empty_from_the_file(tmp_path: Path, setting: str) -> None:
    path = tmp_path / "broker.toml"
    path.write_text(f"{setting} = ''\n")
    with pytest.raises(ConfigError, match=rf"broker\.toml: {setting}: is empty; name a file or a directory"):
        read_texts(path, setting)
