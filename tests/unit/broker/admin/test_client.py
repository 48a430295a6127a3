"""The client of the admin API: what a broker answers and refuses, and that nothing else is taken for one."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import socketserver
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from broker.admin.client import AdminClient, BrokerUnreachable, RequestRefused
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from provisioning.pki.tls import ClientCertificate, server_context
from tests.support.pki import DOMAIN, SERVER, Held, shared_device, shared_pki

JSON = "application/json"


class Answering(socketserver.UnixStreamServer):
    """A server that answers each request with what the test says; no status: it hangs up."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Handler)
        self.answer: tuple[int, str, bytes] = 200, JSON, b"{}"
        self.location = ""
        self.encodings: list[str | None] = []
        self.asked: list[tuple[str, str, bytes, str]] = []


class Handler(BaseHTTPRequestHandler):
    server: Answering

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.asked.append((self.command, self.path, body, self.headers.get("Content-Type", "")))
        self.server.encodings.append(self.headers.get("Accept-Encoding"))
        status, kind, content = self.server.answer
        if status:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            if self.server.location:
                self.send_header("Location", self.server.location)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(OSError):  # Who has seen enough goes.
                self.wfile.write(content)

    do_POST = do_GET  # noqa: N815 - the library's name

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Answering]:
    with Answering(tmp_path / "s") as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            yield server
        finally:
            server.shutdown()
            serving.join()


def client(broker: Answering) -> AdminClient:
    return AdminClient.at_socket(Path(str(broker.server_address)))


def test_an_answer_is_a_document_and_what_is_not_given_is_not_asked(broker: Answering) -> None:
    broker.answer = 200, JSON, json.dumps(said := {"sessions": [], "parts": [], "admitted": True}).encode()
    with client(broker) as admin:
        assert admin.get("/v1/sessions", group="north", role=None) == said
        assert admin.post("/v1/reload", {"a": 1}) == said
        assert admin.post_pem("/v1/check", b"PEM") == said
        assert json.loads(b"".join(admin.stream("/v1/sessions", group="north", role=None))) == said
    assert [each[:2] for each in broker.asked] == [
        ("GET", "/v1/sessions?group=north"),
        ("POST", "/v1/reload"),
        ("POST", "/v1/check"),
        ("GET", "/v1/sessions?group=north"),
    ]
    assert json.loads(broker.asked[1][2]) == {"a": 1}
    assert broker.asked[2][2:] == (b"PEM", "application/x-pem-file")


def test_a_proxy_in_the_environment_is_told_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an operator asks of a broker, and under which name, goes nowhere else."""
    anchors = tmp_path / "ca.pem"
    anchors.write_text(shared_pki().anchors)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with (
            AdminClient.at_url("https://127.0.0.1:9", anchors, shared_device("meter-1").credential) as admin,
            pytest.raises(BrokerUnreachable, match="Connection refused"),
        ):
            admin.get("/v1/status")
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()


@contextlib.contextmanager
def over_tls(held: Held) -> Iterator[tuple[str, list[bytes]]]:
    """Answer once, like a broker, with this certificate; yield the address, and what is asked there."""
    context = server_context(held.credential, shared_pki().anchors, client_certificate=ClientCertificate.REQUIRED)
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def serve() -> None:
            with contextlib.suppress(OSError), context.wrap_socket(listener.accept()[0], server_side=True) as tls:
                asked.append(tls.recv(4096))
                tls.sendall(
                    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{"name": 1}'
                )

        served = pool.submit(serve)
        yield f"https://localhost:{listener.getsockname()[1]}", asked
        served.result(30)


def test_of_its_own_fleet_an_operator_asks_brokers_alone(tmp_path: Path) -> None:
    pki, anchors, here = shared_pki(), shared_pki().write_anchors(tmp_path), [x509.DNSName("localhost")]
    operator = pki.certify(Identity(DOMAIN, Role.OPERATOR, "anna")).credential
    service = Identity(DOMAIN, Role.SERVICE, "backend")
    for held in (
        pki.broker(),
        pki.certify(Identity("another.example", Role.SERVICE, "mqtt"), purposes=SERVER, names=here),
        pki.certify(service, uris=[], purposes=SERVER, names=here),
    ):
        with over_tls(held) as (url, _), AdminClient.at_url(url, anchors, operator) as admin:
            assert admin.get("/v1/status") == {"name": 1}
    with (
        over_tls(pki.certify(service, purposes=SERVER, names=here)) as (url, asked),
        AdminClient.at_url(url, anchors, operator) as admin,
        pytest.raises(BrokerUnreachable, match=f"that of {service.uri}, which is no broker"),
    ):
        admin.get("/v1/status")
    assert b"".join(asked) == b""


@pytest.mark.parametrize(
    ("kind", "content", "code", "text"),
    [
        (JSON, b'{"code": "NOT_FOUND", "detail": "there is none"}', "NOT_FOUND", "NOT_FOUND: there is none"),
        (JSON, b'{"code": "NOT_FOUND"}', "", 'HTTP 404: {"code": "NOT_FOUND"}'),
        (JSON, b"[]", "", "HTTP 404: []"),
        ("text/html", b"<h1>nothing</h1>", "", "HTTP 404: <h1>nothing</h1>"),
    ],
)
def test_a_refusal_is_told_with_its_code_or_as_it_is(
    broker: Answering, kind: str, content: bytes, code: str, text: str
) -> None:
    broker.answer = 404, kind, content
    with client(broker) as admin:
        for ask in (lambda: admin.get("/v1/status"), lambda: list(admin.stream("/v1/sessions"))):
            with pytest.raises(RequestRefused) as raised:
                ask()
            assert (raised.value.code, str(raised.value)) == (code, text)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((200, "text/html", b"<h1>hello</h1>"), "what answers there is something else"),
        ((200, "text/plain", b"[]"), "what answers there is something else"),
        ((200, JSON, b'{"other": 1}'), "what answers there is something else"),
        ((200, f"{JSON}\r\nContent-Encoding: gzip", b"no gzip"), "what answers there is something else"),
        ((0, "", b""), "Server disconnected"),
    ],
)
def test_something_else_is_not_taken_for_a_broker(broker: Answering, answer: tuple[int, str, bytes], why: str) -> None:
    broker.answer = answer
    with client(broker) as admin:
        for ask in (lambda: admin.get("/v1/status"), lambda: list(admin.stream("/v1/sessions"))):
            with pytest.raises(BrokerUnreachable) as raised:
                ask()
            assert str(raised.value).startswith(f"no broker answers at {broker.server_address} ({why}")
            assert "--state-dir" in str(raised.value)


def test_where_nobody_listens_it_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, why in (("missing", "No such file or directory"), ("file", "Connection refused")):
        with pytest.raises(BrokerUnreachable) as raised:
            AdminClient.at_socket(tmp_path / name)
        assert str(raised.value).startswith(f"no broker answers at {tmp_path / name} ({why}): start it, or name the")


def test_an_address_that_is_none_and_one_where_nobody_listens_are_told_with_the_operator_s_remedy(
    tmp_path: Path,
) -> None:
    anchors, credential = tmp_path / "ca.pem", shared_device("meter-1").credential
    anchors.write_text(shared_pki().anchors)
    with pytest.raises(BrokerUnreachable, match=r"^no broker answers at localhost:9 \("):
        AdminClient.at_url("localhost:9", anchors, credential)
    with (
        AdminClient.at_url("https://127.0.0.1:9", anchors, credential) as admin,
        pytest.raises(BrokerUnreachable, match=r"check that admin_port is set there and that the certificate is an op"),
    ):
        admin.get("/v1/status")


def test_an_answer_is_asked_for_as_it_is_and_of_a_compressed_one_nothing_is_unpacked(broker: Answering) -> None:
    bomb = gzip.compress(b'{"sessions": [' + b" " * 50_000_000)
    for status in (200, 403):
        broker.answer = status, f"{JSON}\r\nContent-Encoding: gzip", bomb
        with client(broker) as admin:
            for ask in (lambda: admin.get("/v1/sessions"), lambda: list(admin.stream("/v1/sessions"))):
                tracemalloc.start()
                with pytest.raises(BrokerUnreachable, match="what answers there is something else"):
                    ask()
                _, most = tracemalloc.get_traced_memory()
                tracemalloc.stop()
                assert most < 5_000_000
    assert set(broker.encodings) == {"identity"}


def test_an_answer_without_an_end_is_given_up(broker: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.admin.client._MOST_BYTES", 100_000)
    for status in (200, 403):
        broker.answer = status, JSON, b'{"sessions": "' + b"x" * 200_000 + b'"}'
        with client(broker) as admin, pytest.raises(RequestRefused, match="longer than 100000 bytes: ask for less"):
            admin.get("/v1/sessions")
    broker.answer = 200, JSON, b'{"sessions": "' + b"x" * 200_000 + b'"}'
    with client(broker) as admin:
        assert len(b"".join(admin.stream("/v1/sessions"))) > 200_000, "what is passed on is not kept"


@pytest.mark.parametrize("place", ["mailto:x", "http://xn--/", "https://[::", "/elsewhere"])
def test_where_a_redirect_leads_is_not_read(broker: Answering, place: str) -> None:
    broker.answer, broker.location = (302, JSON, b""), place
    with client(broker) as admin:
        with pytest.raises(BrokerUnreachable, match="what answers there is something else"):
            admin.get("/v1/sessions")
        with pytest.raises(BrokerUnreachable, match="what answers there is something else"):
            b"".join(admin.stream("/v1/sessions"))
    assert {each[1] for each in broker.asked} == {"/v1/sessions"}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((403, "text/plain; charset=hex", b"no"), "HTTP 403: no"),
        ((403, JSON, b"[" * 100_000), r"HTTP 403: \[\["),
        ((200, JSON, b"[" * 100_000), "what answers there is something else"),
    ],
)
def test_a_body_of_which_nothing_can_be_made_is_no_bug(
    broker: Answering, answer: tuple[int, str, bytes], said: str
) -> None:
    broker.answer = answer
    with client(broker) as admin, pytest.raises((RequestRefused, BrokerUnreachable), match=said):
        admin.get("/v1/sessions")
