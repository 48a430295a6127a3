"""What comes as text, or begins a connection: the feed, bodies, answers, settings, policies, scenarios, ClientHello."""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
import tomllib
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import httpx

from broker.admin.client import _ANSWERED, AdminClient, BrokerUnreachable, RequestRefused
from broker.admin.http_messages import problem
from broker.admin.parameters import InvalidRequest, object_in, reload_asked
from broker.admission.policy_file import DEFAULT_POLICY_FILE, PolicyError, parse_policy
from broker.settings.config_file import ConfigError
from broker.settings.config_loading import load as load_broker
from device_sim.qualify import client_hello
from device_sim.scenario.model import InvalidScenario
from device_sim.scenario.model import parse as parse_scenario
from provisioning.api.request_text import decode_body
from provisioning.client.feed_reader import EventReader, FeedLost
from provisioning.config import load_settings
from provisioning.errors import ConfigurationError, Refused
from provisioning.program.given_toml import NotToml, toml_of
from provisioning.program.printable import printable
from tests.fuzz.target import Target, agree, cuts
from tests.support.pki import shared_pki
from tests.support.provisioning import REPOSITORY
from tests.support.requests import csr_der

_PLACE: Final = tempfile.TemporaryDirectory()
"""Removed when the process ends."""
_ANYTHING: Final = (
    b"inf",
    b"nan",
    b"-1",
    b"1e308",
    b"9" * 20,
    b"true",
    b"[]",
    b"{}",
    b'""',
    b'"\\u0000"',
    b"[[",
    b"]]",
)


def event(kind: str, **fields: Any) -> bytes:
    """Return an event of the feed."""
    return f"id: {fields.get('sequence', 1)}\nevent: {kind}\ndata: {json.dumps(fields)}\n\n".encode()


_REVOKED: Final = {
    "issuer_key_id": "ab" * 20,
    "serial": "1f",
    "reason": "keyCompromise",
    "revoked_at": "2026-01-01T00:00:00Z",
    "recorded_at": "2026-01-01T00:00:00.5Z",
    "device": "meter-1",
    "mark": "0f",
}
CA: Final = base64.b64encode(shared_pki().issuing.der).decode()
_FEED: Final = [
    event("current", sequence=0),
    event("revoked", sequence=1, **_REVOKED)
    + event("released", sequence=2, issuer_key_id="ab", serial="1f", device="m", mark="1")
    + event("current", sequence=2, elapsed=1.5, now="2026-01-01T00:00:00+00:00"),
    event("revoked", sequence=1, **_REVOKED).replace(b"\n", b"\r\n"),
    event("revoked", sequence=1, invalidity_date="2026-01-01T00:00:00Z", **_REVOKED),
    event("revoked", sequence=1, **_REVOKED | {"device": 'm\u00e9"x'}),
    b": hello\n\n" + event("authorities", issuing=[{"name": "a", "line": "l", "state": "active", "certificate": CA}]),
]


def _read(pieces: list[bytes]) -> tuple[list[object], bool]:
    reader = EventReader(0)
    events: list[object] = []
    try:
        for piece in pieces:
            for event in reader.feed(piece):
                if hasattr(event, "recorded_at"):
                    event.recorded_at.timestamp()
                events.append(event)
    except FeedLost as error:
        str(error).encode()
        return events, True
    return events, False


def _feed(data: bytes) -> None:
    """Cut anywhere: the same events; where the feed is lost, those before it."""
    (once, lost), (again, lost_again) = _read([data]), _read(cuts(data))
    agree("lost", lost_again, lost)
    agree("cut elsewhere", again[: len(once)] if lost else again, once)


def _hello(data: bytes) -> None:
    """What is said when enough has come is not unsaid by what follows."""
    client_hello.in_clear(data)
    said = client_hello.client_hello(data)
    for end in range(len(data) + 1):
        if client_hello.settled(data[:end]):
            agree("with fewer bytes", client_hello.client_hello(data[:end]), said)
            break


def _hellos() -> list[bytes]:
    hellos = []
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # The library's own, not a listener's or a client's of ours.
        context.maximum_version = version
        sent = ssl.MemoryBIO()
        client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost")
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            hellos.append(sent.read())
    return hellos


def _body(data: bytes) -> None:
    """What is taken for a request, encoded the usual way, is the same."""
    try:
        decoded = decode_body(data)
    except Refused as error:
        str(error).encode()
        return
    agree("decoded again", decode_body(base64.encodebytes(decoded)), decoded)


_REQUEST: Final = csr_der()
_BODIES: Final = [
    *(_REQUEST, base64.b64encode(_REQUEST), base64.encodebytes(_REQUEST)),
    b"-----BEGIN CERTIFICATE REQUEST-----\n" + base64.encodebytes(_REQUEST) + b"-----END CERTIFICATE REQUEST-----\n",
]


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _toml(data: bytes) -> None:
    """What is TOML is what the library reads."""
    if (text := _text(data)) is None:
        return
    try:
        values = toml_of(text)
    except NotToml as error:
        str(error).encode()
        return
    agree("by the library", repr(values), repr(tomllib.loads(text.removeprefix("\ufeff"))))


def _policy(data: bytes) -> None:
    """A policy, or one sentence a fault."""
    if (text := _text(data)) is None:
        return
    try:
        parse_policy(text, "policy.toml")
    except PolicyError as error:
        str(error).encode()


def _written(name: str, data: bytes) -> Path:
    file = Path(_PLACE.name, name)
    file.write_bytes(data)
    file.chmod(0o600)
    return file


def _broker_settings(data: bytes) -> None:
    try:
        load_broker(_written("broker.toml", data), {})
    except ConfigError as error:
        str(error).encode()


def _provisioning_settings(data: bytes) -> None:
    try:
        str(load_settings(_written("provisioning.toml", data).parent))
    except ConfigurationError as error:
        str(error).encode()


def _scenario(data: bytes) -> None:
    if (text := _text(data)) is None:
        return
    try:
        str(parse_scenario(text, "scenario.toml"))
    except InvalidScenario as error:
        str(error).encode()


def _admin_answer(data: bytes) -> None:
    """What a broker might answer: the first byte is for the status, the second for the rest of the head."""
    if len(data) < 2:
        return
    status, headers = min(200 + 4 * data[0], 599), {"Content-Type": "application/json"}
    if data[1] & 1:
        headers["Content-Encoding"] = "gzip"
    if data[1] & 2:
        headers["Location"] = "http://broker/elsewhere"
    pieces = cuts(data[2:]) if data[1] & 4 else [data[2:]]
    transport = httpx.MockTransport(lambda _: httpx.Response(status, headers=headers, content=iter(pieces)))
    asked = sorted(_ANSWERED)[(data[1] >> 4) % len(_ANSWERED)]
    with httpx.Client(transport=transport, base_url="http://broker") as client:
        for ask in (AdminClient.get, AdminClient.stream):
            try:
                answer = ask(AdminClient("where", client, ExitStack()), asked)
                if not isinstance(answer, dict):
                    b"".join(answer)
            except (BrokerUnreachable, RequestRefused) as error:
                printable(str(error)).encode()  # As its line has it.


def _admin_request(data: bytes) -> None:
    for read in (object_in, reload_asked):
        try:
            read(data)
        except InvalidRequest as error:
            problem(400, "INVALID_REQUEST", str(error))


def _in_documentation(word: str) -> list[bytes]:
    """Return the examples of TOML in the documentation that have *word*."""
    pages = [page.read_text(encoding="utf-8") for page in sorted((REPOSITORY / "docs").glob("*.md"))]
    examples = [part.partition("```")[0] for page in pages for part in page.split("```toml\n")[1:]]
    return [each.encode() for each in examples if word in each][:20]


_SCENARIOS: Final = sorted(
    file.read_bytes()
    for file in files("device_sim.scenario").joinpath("builtin").iterdir()
    if file.name.endswith(".toml")
)
_POLICIES: Final = [DEFAULT_POLICY_FILE.read_bytes(), *_in_documentation("allow")]
_BROKERS: Final = [b'[limits]\nmax_inflight=3\n[[listener]]\naddress="127.0.0.1:1"\n', *_in_documentation("[[trust")]
_SERVICES: Final = [
    b'trust_domain = "a.example"\ncrl_debounce_seconds = 0.5\n[profiles.p]\nrole = "device"\nlife_days = 3\n',
    *_in_documentation("[profiles"),
]
_STATUS: Final = json.dumps({"name": "a", "sessions": [], "anchors": []}).encode()

TARGETS: Final = (
    Target(
        "feed",
        _feed,
        _FEED,
        words=[b"\n\n", b"\r\n\r\n", b"event: ", b"data: ", b"\\ud800", b"1e999", b'"sequence"', b"+14:00"],
    ),
    Target("client_hello", _hello, _hellos(), longest=2048),
    Target("request_body", _body, _BODIES, words=[b"-----BEGIN ", b"-----END ", b"PRIVATE KEY-----"]),
    Target("toml", _toml, _POLICIES + _BROKERS, words=[*_ANYTHING, b"'''", b"2026-01-01", b"0x"], longest=4096),
    Target("policy", _policy, _POLICIES, words=[*_ANYTHING, b"{device}", b"[identity."], longest=4096),
    Target("broker_settings", _broker_settings, _BROKERS, words=_ANYTHING, longest=2048),
    Target("provisioning_settings", _provisioning_settings, _SERVICES, words=_ANYTHING, longest=2048),
    Target("scenario", _scenario, _SCENARIOS, words=_ANYTHING, longest=2500),
    Target("admin_answer", _admin_answer, [b"\0" + bytes([kind]) + _STATUS for kind in (0, 4, 48, 64, 96)]
           + [b"\x40\0" + b'{"code": "NOT_FOUND", "detail": "there is none"}'], words=[b"\\ud800", b"NaN", b"[" * 40]),
    Target("admin_request", _admin_request, [b'{"parts":["policy"],"dry_run":true,"policy":"x"}', b'{"anchors":"a"}'],
           words=[b'"parts"', b"\\ud800", b"NaN", b"[" * 40, b'"bundle"', b'"limits"']),
)  # fmt: skip
