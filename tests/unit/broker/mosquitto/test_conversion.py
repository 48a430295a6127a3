"""What becomes of a mosquitto.conf: settings that the broker accepts, or every reason why not."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from broker.admission.policy import Action
from broker.admission.policy_file import parse_policy
from broker.mosquitto.bounds import THEIR_DEFAULTS
from broker.mosquitto.conf import UnreadableConf
from broker.mosquitto.conversion import InvalidConf, converted
from broker.settings.config import BrokerConfig
from broker.settings.config_loading import load
from broker.settings.limits import Limits
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from tests.support.pki import Held, pem_of, shared_pki

TLS = """\
cafile ca.crt
certfile broker.crt
keyfile broker.key
require_certificate true
use_identity_as_username true
crlfile ca.crl
"""
NAMED = f"listener 8883 127.0.0.1\n{TLS}"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_conf(text: str) -> Path:
        path = tmp_path / "mosquitto.conf"
        path.write_text(text)
        return path

    return write_conf


@pytest.fixture
def settings(write: Write, tmp_path: Path) -> Callable[..., BrokerConfig]:
    """Convert a text, and load what comes of it."""

    def loaded(text: str, *ports: int) -> BrokerConfig:
        path = tmp_path / "broker.toml"
        path.write_text(converted(write(text), ports).settings)
        return load(path, {})

    return loaded


def problems(path: Path, *ports: int) -> list[str]:
    """Return the errors, without the file's name."""
    with pytest.raises(InvalidConf) as refused:
        converted(path, ports)
    return [line.removeprefix(f"{path}: ") for line in str(refused.value).splitlines()]


def test_a_listener_with_certificates_becomes_settings(settings: Any) -> None:
    made = settings(f"persistence true\n{NAMED}tls_version tlsv1.3\nmax_connections 50\nlog_type warning\n")
    (door,), (bundle,) = made.listeners, made.trust
    assert (door.port, made.host, door.protocol) == (8883, "127.0.0.1", "mqtts")
    assert (made.certfile, made.keyfile, made.cafile) == (Path("broker.crt"), Path("broker.key"), Path("ca.crt"))
    assert (made.unsafe_public_listener, made.allow_tls12, made.persistence) == (False, False, True)
    assert (made.limits.max_connections, made.log_level) == (50, "warning")
    assert (bundle.anchors, bundle.crlfile) == ((Path("ca.crt"),), (Path("ca.crl"),))
    assert (bundle.unsafe_no_revocation, bundle.client_id, bundle.any_client_id) == (False, "prefix", ())
    assert [(each.source, each.role) for each in bundle.identity] == [("common-name", Role.DEVICE)]
    assert made.trust_domain == bundle.trust_domain == "fleet.internal", "else nobody would be its own"


def test_what_is_weak_in_mosquitto_is_as_weak_here_and_is_said(write: Write, settings: Any) -> None:
    text = f"listener 8883\n{TLS}".replace("crlfile ca.crl\n", "")
    on_loopback = text.replace("8883", "65535 127.0.0.1")
    assert settings(f"{on_loopback}{text}").unsafe_public_listener, "one is enough"
    made = settings(text)
    assert (made.host, made.unsafe_public_listener, made.allow_tls12) == ("::", True, True)
    assert (made.trust[0].unsafe_no_revocation, made.persistence) == (True, False)
    said = converted(write(text)).settings
    for words in (
        "a revoked certificate is admitted",
        "is not on loopback",
        "TLS 1.3",
        "publish and subscribe to everything",
    ):
        assert words in said


def test_every_reason_is_told_in_one_run(write: Write) -> None:
    path = write(
        """\
allow_anonymous true
password_file /etc/mosquitto/passwd
listener 1883
listener 8883
cafile ca.crt
certfile broker.crt
keyfile broker.key
mount_point x/
max_qos 1
boggus 3
connection cloud
address a:8883
topic # out
plugin /usr/lib/mosquitto_dynamic_security.so
plugin_opt_config_file x
retain_available false
max_keepalive abc
listener 0 /run/mosquitto.sock
listener 8884
psk_hint x
sys_interval 5
require_certificate
"""
    )
    told = problems(path)
    assert [line.split(": ")[:2] for line in told] == [
        ["line 1", "allow_anonymous"],
        ["line 2", "password_file"],
        ["line 3", "listener"],
        ["line 4", "listener"],
        ["line 4", "listener"],
        ["line 8", "mount_point"],
        ["line 9", "max_qos"],
        ["line 10", "boggus"],
        ["line 11", "connection"],
        ["line 14", "plugin"],
        ["line 16", "retain_available"],
        ["line 17", "max_keepalive"],
        ["line 18", "listener"],
        ["line 20", "psk_hint"],
        ["line 22", "require_certificate"],
    ]
    by_line = {line.split(": ")[0]: line for line in told}
    assert by_line["line 3"].endswith("or remove it; or convert the others alone: --listener 8883")
    assert "(with line 12 to 13)" in by_line["line 11"]
    assert "(with line 15)" in by_line["line 14"]
    assert by_line["line 10"] == "line 10: boggus: mosquitto 2.0 and 2.1 have no such option"


@pytest.mark.parametrize("text", ["", "# nothing\n", "persistence true\n"])
def test_mosquitto_s_own_listener_is_one_without_tls(write: Write, text: str) -> None:
    (told,) = problems(write(text))
    assert told.startswith("listener: there is none, and mosquitto's own is without TLS")


def test_an_option_above_the_first_listener_opens_another_one(write: Write) -> None:
    """As in mosquitto, where nobody expects it: port 1883, open to the network."""
    (told,) = problems(write(f"max_connections 5\n{NAMED}"))
    assert told == (
        "line 1: max_connections: above the first listener it is about mosquitto's own at port 1883, without TLS, "
        "which most such lines open: move it below the listener that is meant"
    )


@pytest.mark.parametrize("missing", ["require_certificate", "use_identity_as_username", "cafile", "keyfile"])
def test_a_listener_that_does_not_ask_for_a_named_certificate_is_refused(write: Write, missing: str) -> None:
    text = "".join(line for line in NAMED.splitlines(keepends=True) if not line.startswith(missing))
    (told,) = problems(write(text))
    assert told.startswith("line 1: listener: ")
    assert missing in told
    if missing in {"require_certificate", "use_identity_as_username"}:
        assert missing in problems(write(NAMED.replace(f"{missing} true", f"{missing} false")))[0]


def test_who_is_not_named_by_a_certificate_may_be_anonymous(write: Write) -> None:
    text = NAMED.replace("use_identity_as_username true", "use_identity_as_username 0")
    told = [line.split(": ")[1] for line in problems(write(f"{text}allow_anonymous true\npassword_file p\n"))]
    assert told == ["listener", "allow_anonymous", "password_file"]
    told = problems(write(f"{text}allow_anonymous false\npassword_file p\n"))
    assert [line.split(": ")[1] for line in told] == ["listener", "password_file"]
    assert problems(write("allow_anonymous true\n"))[-1].startswith("line 1: allow_anonymous: remove it")


def test_a_whole_subject_is_no_name(write: Write) -> None:
    text = NAMED.replace("use_identity_as_username", "use_subject_as_username")
    (told,) = problems(write(text))
    assert told.startswith("line 6: use_subject_as_username: a client's name would be its whole subject")
    assert "use_identity_as_username comes first" in converted(write(f"{NAMED}use_subject_as_username 1\n")).settings


def test_what_is_asked_of_strangers_has_no_effect_where_there_are_none(write: Write) -> None:
    text = f"allow_anonymous true\npassword_file p\npsk_file k\nlistener 1883 127.0.0.1\n{NAMED}"
    assert {line.split(": ")[1] for line in problems(write(text))} == {
        "allow_anonymous", "password_file", "psk_file", "listener",
    }  # fmt: skip
    said = converted(write(text), [8883]).settings
    assert "# line 4: listener: this listener was not asked for (--listener)" in said
    for line in ("line 1: allow_anonymous", "line 2: password_file", "line 3: psk_file"):
        assert f"# {line}: it has no effect where the certificate names the client" in said
    with pytest.raises(InvalidConf, match=r"--listener 7: no listener has this port; there are 1883, 8883"):
        converted(write(text), [7])


@pytest.mark.parametrize("option", ["cafile", "certfile", "keyfile", "crlfile", "tls_version", "acl_file"])
def test_listeners_that_differ_in_whom_they_trust_are_two_brokers(write: Write, option: str, tmp_path: Path) -> None:
    """Otherwise a client of one listener's CA could use the other's."""
    (tmp_path / "acl").write_text("pattern read a/%u\n")
    value = {"tls_version": "tlsv1.3", "acl_file": f"{tmp_path}/acl"}.get(option, "other")
    second = f"listener 8884 127.0.0.1\n{TLS}{option} {value}\n"
    told = problems(write(f"per_listener_settings true\n{NAMED}{second}"))
    assert len(told) == 1
    assert told[0].startswith(f"line 16: {option}: {value} here, and ")
    assert "convert with --listener 8883, then with --listener 8884" in told[0]
    for port in (8883, 8884):
        converted(write(f"per_listener_settings true\n{NAMED}{second}"), [port])


def test_a_listener_for_websockets_names_its_origins(settings: Any, write: Write) -> None:
    second = f"listener 9001 ::1\nprotocol websockets\n{TLS}websockets_origin https://a.example\n"
    made = settings(f"{NAMED}{second}websockets_origin https://b.example:8443\n")
    assert [(each.port, each.host, each.protocol) for each in made.listener] == [
        (8883, "127.0.0.1", "mqtts"), (9001, "::1", "wss"),
    ]  # fmt: skip
    assert made.listener[1].websocket_origins == ("https://a.example", "https://b.example:8443")
    (alone,) = settings(second).listener
    assert (alone.port, alone.protocol, alone.websocket_origins) == (9001, "wss", ("https://a.example",))
    (told,) = problems(write(f"{second}websockets_origin *\n"))
    assert told.startswith("line 10: websockets_origin: '*' is no origin")


def test_the_default_listener(settings: Any, write: Write) -> None:
    made = settings(f"port 8883\nbind_address localhost\n{TLS}")
    assert (made.port, made.host) == (8883, "localhost")
    assert settings(f"{TLS}socket_domain ipv4\n").host == "0.0.0.0"
    (only_six,) = problems(write(f"{TLS}socket_domain ipv6\n"))
    assert only_six.startswith("line 7: socket_domain: every address would include those of IPv4")
    assert settings(f"{NAMED}socket_domain ipv6\n").host == "127.0.0.1"
    told = problems(write(f"{NAMED}port 8884\n"))
    assert len(told) == 1
    assert told[0].startswith("line 8: port: mosquitto 2.0 and 2.1 count the lines below it to different listeners")


def test_included_files_are_read_in_mosquitto_s_order_and_named(settings: Any, write: Write, tmp_path: Path) -> None:
    place = tmp_path / "conf.d"
    place.mkdir()
    (place / "B.conf").write_text("max_queued_messages 3\n")
    (place / "a.conf").write_text(f"max_queued_messages 2\n{NAMED}")
    (place / "c.txt").write_text("nonsense\n")
    made = settings(f"max_queued_messages 1\ninclude_dir {place}\n")
    assert (made.limits.max_queued_messages, made.port) == (3, 8883)
    said = converted(write(f"max_queued_messages 1\ninclude_dir {place}\nmax_queued_messages 4\n")).settings
    assert "max_queued_messages = 4  # line 3" in said
    assert f'certfile = "broker.crt"  # {place}/a.conf: line 4' in said
    (place / "B.conf").write_text(f"include_dir {place}\nbogus 1\n")
    told = problems(write(f"include_dir {place}\ninclude_dir {place}/none\n"))
    assert [line.split(": ")[:3] for line in told] == [
        [f"{place}/B.conf", "line 1", "include_dir"],
        [f"{place}/B.conf", "line 2", "bogus"],
        ["line 2", "include_dir", f"{place}/none cannot be read"],
    ]


def test_of_a_directory_only_what_mosquitto_trusts_is_trusted(settings: Any, write: Write, tmp_path: Path) -> None:
    """OpenSSL looks for hashed names; a certificate that lies there without one is not an anchor."""
    place = tmp_path / "cas"
    place.mkdir()
    text = NAMED.replace("cafile ca.crt", f"capath {place}")
    (place / "another.crt").write_text("")
    assert problems(write(text))[0].endswith("has no file that is named by a hash: mosquitto trusts none; remove it")
    (place / "0a1b2c3d.0").write_text("")
    made = settings(text)
    assert made.trust[0].anchors == (place / "0a1b2c3d.0",)
    assert made.cafile == place / "0a1b2c3d.0"


@pytest.mark.parametrize(
    ("line", "limit", "value"),
    [
        ("max_queued_messages 5", "max_queued_messages", 5),
        ("max_queued_messages 0", "max_queued_messages", 10_000),
        ("max_queued_bytes 0x100", "max_queued_bytes", 256),
        ("max_inflight_messages 0", "max_inflight", 65_535),
        ("max_inflight_messages 20", "max_inflight", 20),
        ("max_inflight_bytes 7", "max_inflight_bytes", 7),
        ("max_keepalive 0", "max_keepalive", 65_535),
        ("max_keepalive 5", "max_keepalive", 10),
        ("max_packet_size 4096", "max_packet_size", 4096),
        ("max_packet_size 4096\nmessage_size_limit 1000", "max_packet_size", 1000),
        ("persistent_client_expiration 2w", "max_session_expiry", 14 * 86_400),
        ("persistent_client_expiration 1m", "max_session_expiry", 30 * 86_400),
        ("persistent_client_expiration 200y", "max_session_expiry", 0xFFFFFFFF),
        (f"persistent_client_expiration {5000 * '1'}d", "max_session_expiry", 0xFFFFFFFF),
        ("persistent_client_expiration 0001d", "max_session_expiry", 86_400),
        ("max_connections -1", "max_connections", 100_000),
        ("max_connections 0\nglobal_max_connections 0", "max_connections", 100_000),
        ("max_connections 9\nglobal_max_connections 5", "max_connections", 5),
        ("max_topic_alias 4\nmax_topic_alias_broker 3", "max_topic_alias", 3),
    ],
)
def test_limits(settings: Any, line: str, limit: str, value: int) -> None:
    assert getattr(settings(f"{NAMED}{line}\n").limits, limit) == value


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        (f"{NAMED}message_size_limit 1000\n", ["line 8: message_size_limit: max_packet_size counts the topic too"]),
        (f"{NAMED}max_packet_size 1000\n", []),
        (f"{NAMED}max_connections -1\n", ["line 8: max_connections: no limit, but there are at most 100000"]),
        (f"{NAMED}max_connections 5\n", []),
        (
            f"{NAMED}max_connections 5\n{NAMED.replace('8883', '8884')}",
            ["line 8: max_connections: max_connections is for all listeners together"],
        ),
        (
            f"{NAMED}max_topic_alias 4\n{NAMED.replace('8883', '8884')}{chr(10) * 64}max_topic_alias_broker 3\n",
            ["line 8: max_topic_alias: max_topic_alias is for all listeners and both ways: the smallest applies"],
        ),
        (f"{NAMED}max_topic_alias 4\n", []),
        (f"{NAMED}tls_version tlsv1.1\n", ["line 8: tls_version: TLS 1.1 is refused"]),
        (f"{NAMED}tls_version tlsv1.2\n", []),
    ],
)
def test_a_bound_that_becomes_another_is_told(write: Write, text: str, notes: list[str]) -> None:
    left_out = converted(write(text)).settings.partition("\n# Left out:\n")[2]
    told = [line for line in re.sub(r"\n#  +", " ", left_out).splitlines() if "require_certificate" not in line]
    assert len(told) == len(notes)
    assert all(line.startswith(f"# {note}") for line, note in zip(told, notes, strict=True))


def test_the_connections_of_all_listeners_are_counted_together(settings: Any) -> None:
    second = NAMED.replace("8883", "8884")
    assert settings(f"{NAMED}max_connections 5\n{second}max_connections 7\n").limits.max_connections == 12
    assert settings(f"{NAMED}max_connections 5\n{second}").limits.max_connections == 100_000


def test_defaults_that_differ_are_shown(write: Write) -> None:
    said = converted(write(f"max_keepalive 60\n{NAMED}")).settings
    assert "# max_queued_messages = 10000  # mosquitto: 1000" in said
    assert "# max_keepalive" not in said
    assert all(hasattr(Limits(), name) for name in THEIR_DEFAULTS)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("max_packet_size 100", "100: input should be greater than or equal to 256 (max_packet_size)"),
        ("max_keepalive x", "'x' is no whole number"),
        ("max_queued_messages 1_000", "'1_000' is no whole number"),  # 1 to C: no limit may be above mosquitto's.
        ("max_queued_messages 0b11", "'0b11' is no whole number"),
        ("max_queued_messages \u0661\u0660", "'\u0661\u0660' is no whole number"),
        ("persistent_client_expiration \u0663d", "'\u0663d' is no time: a number and h, d, w, m or y"),
        ("listener \uff18\uff18\uff18\uff13", "'\uff18\uff18\uff18\uff13' is no port"),
        ("max_keepalive 99999999999", "'99999999999' is out of mosquitto's range"),
        ("persistent_client_expiration 3", "'3' is no time: a number and h, d, w, m or y"),
        ("persistence maybe", "'maybe' is neither true nor false"),
        ("log_type chatter", "'chatter' is no type of log messages"),
        ("tls_version ssl3", "'ssl3' is none of tlsv1.3, tlsv1.2, tlsv1.1"),
        ("protocol http_api", "'http_api': a listener speaks mqtt or websockets; remove it"),
        ("accept_protocol_versions 4, 5", "4, 5: none of 3.1, 3.1.1 and 5.0 can be refused; remove it"),
        ("disable_client_cert_date_checks true", "an expired certificate is refused; renew those that have expired"),
        ("tls_keyform engine", "a key in a token is provisioning's"),
        ("enable_proxy_protocol 2", "mosquitto takes a PROXY header only where the proxy ends TLS"),
        ("plugin /lib/mosquitto_persist_sqlite.so", "remove it: what is acknowledged is on disk without a plugin"),
        ("acl_file /nowhere/acl", "/nowhere/acl cannot be read: No such file or directory"),
        ("listener eighty", "'eighty' is no port"),
        (f"listener {5000 * '1'}", "11' is no port"),
        ("max_qoss 1", "mosquitto 2.0 and 2.1 have no such option; is max_qos meant?"),
    ],
)
def test_a_value_that_cannot_be_kept_is_an_error(write: Write, line: str, words: str) -> None:
    told = problems(write(f"{NAMED}{line}\n"))
    assert told[0].startswith(f"line 8: {line.split(maxsplit=1)[0]}: ")
    assert words in told[0]


def test_an_interface_is_not_widened_to_every_address(write: Write) -> None:
    (told,) = problems(write(f"listener 8883\nbind_interface eth0\n{TLS}"))
    assert told == "line 2: bind_interface: write that interface's address: listener 8883 ADDRESS"
    assert "127.0.0.1 is the address" in converted(write(f"{NAMED}bind_interface lo\n")).settings


def test_the_acl_file_becomes_the_policy_and_its_users_keep_their_identifiers(
    settings: Any, write: Write, tmp_path: Path
) -> None:
    acl = tmp_path / "acl"
    acl.write_text("pattern write t/%u\nuser back.end\ntopic read t/#\nuser Pump Room 3\ntopic read x\n")
    text = f"acl_file {acl}\n{NAMED}"
    assert settings(text).trust[0].any_client_id == ("back.end",)
    made = converted(write(text))
    policy = parse_policy(made.policy, "policy.toml")
    sensor = Identity("fleet.internal", Role.DEVICE, "s-1", "devices")
    assert policy.explain(sensor, "s-1", Action.PUBLISH, "t/s-1", ours=True).allowed
    assert not policy.explain(sensor, "s-1", Action.PUBLISH, "t/s-2", ours=True).allowed
    assert [line.split(": ")[1] for line in made.left_out] == ["line 5"]
    assert "only those that it names are admitted" not in made.settings
    acl.write_text("user backend\ntopic read t/#\n")
    assert "only those that it names are admitted" in converted(write(text)).settings.replace("\n# ", " ")


def test_an_acl_file_that_cannot_be_converted_is_an_error(write: Write, tmp_path: Path) -> None:
    (tmp_path / "acl").write_text("topic read t/#\nnonsense\n")
    (told,) = problems(write(f"acl_file {tmp_path}/acl\n{NAMED}"))
    assert told.startswith(f"line 1: acl_file: {tmp_path}/acl: ")


def test_a_prefix_of_client_identifiers_is_one_of_names(settings: Any, write: Write, tmp_path: Path) -> None:
    (tmp_path / "acl").write_text("user backend\ntopic read t/#\n")
    (bundle,) = settings(f"{NAMED}clientid_prefixes sensor.\nacl_file {tmp_path}/acl\n").trust
    pattern = re.compile(bundle.identity[0].pattern)
    assert [name for name in ("sensor.1", "sensor.", "sensorx1", "backend") if pattern.fullmatch(name)] == [
        "sensor.1", "sensor.",
    ]  # fmt: skip
    assert (bundle.client_id, bundle.any_client_id) == ("prefix", ())
    assert "use 1 to 64 letters" in problems(write(f"{NAMED}clientid_prefixes a/b\n"))[0]


def test_the_user_name_as_client_identifier(settings: Any) -> None:
    assert settings(f"{NAMED}use_username_as_clientid true\n").trust[0].client_id == "equal"
    assert settings(f"{NAMED}use_username_as_clientid false\n").trust[0].client_id == "prefix"


def test_what_a_value_contains_is_never_read_as_a_setting(settings: Any, write: Write) -> None:
    hostile = 'a"b\\c\x7f\x1b\r[limits] # x'
    text = f"{NAMED}pid_file {hostile}\n".replace("keyfile broker.key", f"keyfile {hostile}")
    assert str(settings(text).keyfile) == hostile
    assert "\x1b" not in converted(write(text)).settings


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UnreadableConf, match="cannot be read: No such file"):
        converted(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UnreadableConf, match="is not UTF-8"):
        converted(tmp_path / "binary")
    (tmp_path / "binary").write_bytes(b"port 1\0")
    with pytest.raises(UnreadableConf, match="is not text: it contains a NUL"):
        converted(tmp_path / "binary")


def test_a_ca_without_the_one_above_it_is_trusted_by_mosquitto_never(write: Write, tmp_path: Path) -> None:
    """The broker trusts each by itself: it admitted clients that mosquitto refuses."""
    pki = shared_pki()
    root, issuing, other = pki.root, pki.issuing, pki.authority("Other Root CA")
    crossed = pki.authority("Test Root CA", other, key=root.key)
    above = pki.authority("Other Root CA", root, key=other.key)
    text = NAMED.replace("ca.crt", str(tmp_path / "ca.pem"))

    def said_of(*cas: Held) -> list[str]:
        (tmp_path / "ca.pem").write_bytes(b"".join(pem_of(each.certificate) for each in cas))
        try:
            assert "ca.pem" in converted(write(text)).settings
        except InvalidConf:
            return [said.removeprefix("line 2: cafile: ").partition(" is trusted")[0] for said in problems(write(text))]
        return []

    assert said_of(issuing, root) == []
    assert said_of(issuing) == ["CN=Test Issuing CA"]
    assert said_of(issuing, root, crossed) == [], "a cross-signed copy, which OpenSSL passes over"
    assert said_of(issuing, crossed, root) == ["CN=Test Root CA"], "of the two OpenSSL takes the first"
    assert said_of(issuing, pki.authority("Test Root CA")) == ["CN=Test Issuing CA"], "that has only its root's name"
    assert said_of(crossed, above) == ["CN=Test Root CA", "CN=Other Root CA"], "each above the other, and no root"

    # As mosquitto 2.0 does, to which an expired root is none, whatever else is valid.
    now = datetime.now(UTC)
    expired = pki.authority("Test Root CA", key=root.key, not_after=now - timedelta(days=1))
    assert said_of(issuing, expired) == ["CN=Test Issuing CA"]
    assert said_of(issuing, expired, root) == [], "OpenSSL prefers the one that is valid"
    assert said_of(other, expired) == [], "nobody is below it, and neither trusts it"
    short = pki.authority("Test Root CA", key=root.key, not_after=now + timedelta(days=1))
    assert said_of(issuing, short) == []
    told = converted(tmp_path / "mosquitto.conf").settings.replace("\n# ", " ")
    assert f"Mosquitto trusts CN=Test Issuing CA until {now + timedelta(days=1):%Y-%m-%d}, when a CA above" in told
    assert said_of(issuing, short, root) == []
    assert "Mosquitto trusts" not in converted(tmp_path / "mosquitto.conf").settings


def test_where_a_file_with_cas_cannot_be_read_none_is_judged_and_the_settings_say_so(
    write: Write, tmp_path: Path
) -> None:
    """The root may be in it: to refuse the other file was wrong, and to say nothing as well."""
    (tmp_path / "0123abcd.0").write_bytes(pem_of(shared_pki().issuing.certificate))
    (tmp_path / "0123abcd.1").mkdir()
    made = converted(write(NAMED.replace("cafile ca.crt", f"capath {tmp_path}"))).settings
    assert f" Not looked at, for it could not be read: {tmp_path}/0123abcd.1. " in made.replace("\n# ", " ")
    (tmp_path / "0123abcd.1").rmdir()
    assert "CN=Test Issuing CA is trusted by mosquitto only" in problems(tmp_path / "mosquitto.conf")[0]
