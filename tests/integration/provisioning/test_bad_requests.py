"""What a stranger may send: each refusal names what is wrong, and the service goes on undisturbed."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from provisioning.pki.tls import client_context
from tests.support.curl import Curl
from tests.support.openssl import P256, OpensslDevice, openssl
from tests.support.provisioning import ProvisioningService

ENROL = "/.well-known/est/simpleenroll"
PKCS10 = ("--header", "Content-Type: application/pkcs10")
JSON = ("--header", "Content-Type: application/json")
BASIC = ("--user", "meter-1:fgt_" + "A" * 43)


def is_logged(lines: str, code: str) -> bool:
    """Whether a refused enrolment is there, and its host: a device may not be able to show what it was answered."""
    return any(
        (told := json.loads(line)).get("code") == code
        and (told["event"], told.get("address")) == ("enrolment refused", "127.0.0.1")
        for line in lines.splitlines()
    )


@dataclass(frozen=True)
class Bad:
    what: str
    path: str
    options: tuple[str, ...]
    data: bytes | None
    status: int
    code: str


ANYBODY = [
    Bad("no content type", ENROL, ("--header", "Content-Type:", *BASIC), b"AAAA", 415, "MEDIA_TYPE"),
    Bad("json to EST", ENROL, (*JSON, *BASIC), b"{}", 415, "MEDIA_TYPE"),
    Bad("empty body", ENROL, (*PKCS10, *BASIC), b"", 400, "BODY_ENCODING"),
    Bad("not base64", ENROL, (*PKCS10, *BASIC), b"!!!!", 400, "BODY_ENCODING"),
    Bad("raw DER", ENROL, (*PKCS10, *BASIC), b"\x30\x82\x01\x00\xff", 400, "BODY_ENCODING"),
    Bad("base64 of nonsense", ENROL, (*PKCS10, *BASIC), base64.b64encode(b"nonsense"), 400, "CSR_MALFORMED"),
    Bad("declared too large", ENROL, (*PKCS10, *BASIC), b"A" * 70_000, 413, "BODY_TOO_LARGE"),
    Bad("chunked too large", ENROL, (*PKCS10, *BASIC, "--header", "Transfer-Encoding: chunked"), b"A" * 200_000, 413,
        "BODY_TOO_LARGE"),
    Bad("no credential", ENROL, PKCS10, b"AAAA", 401, "TOKEN_MISSING"),
    Bad("not Basic", ENROL, (*PKCS10, "--header", "Authorization: Bearer x"), b"AAAA", 401, "TOKEN_MISSING"),
    Bad("broken Basic", ENROL, (*PKCS10, "--header", "Authorization: Basic !!"), b"AAAA", 401, "TOKEN_MISSING"),
    Bad("wrong method", ENROL, ("--request", "PUT"), None, 405, "METHOD_NOT_ALLOWED"),
    Bad("GET where POST is", ENROL, (), None, 405, "METHOD_NOT_ALLOWED"),
    Bad("unknown operation", "/.well-known/est/fullcmc", (), None, 404, "NOT_FOUND"),
    Bad("an operation as label", "/.well-known/est/cacerts/cacerts", (), None, 404, "NOT_FOUND"),
    Bad("a label that is no name", "/.well-known/est/-x-/cacerts", (), None, 404, "NOT_FOUND"),
    Bad("no such path", "/nothing", (), None, 404, "NOT_FOUND"),
    Bad("API without certificate", "/v1/status", (), None, 403, "CERTIFICATE_MISSING"),
    Bad("renewal of nothing", "/v1/renewal-info/x", (), None, 400, "INVALID_REQUEST"),
    Bad("feed without certificate", "/v1/revocations/feed", (), None, 403, "CERTIFICATE_MISSING"),
]  # fmt: skip

OPERATORS = [
    Bad("broken JSON", "/v1/tokens", JSON, b"{", 400, "INVALID_REQUEST"),
    Bad("not an object", "/v1/tokens", JSON, b"[]", 400, "INVALID_REQUEST"),
    Bad("nothing asked for", "/v1/tokens", JSON, b"{}", 400, "INVALID_REQUEST"),
    Bad("as curl -d sends it", "/v1/tokens", ("--header", "Content-Type: application/x-www-form-urlencoded"),
        b'{"device":"a"}', 415, "MEDIA_TYPE"),
    Bad("of no kind", "/v1/tokens", ("--header", "Content-Type:"), b'{"device":"a"}', 415, "MEDIA_TYPE"),
    Bad("filter mistyped", "/v1/devices?grop=north", (), None, 400, "INVALID_REQUEST"),
    Bad("two groups", "/v1/devices?group=north&group=south", (), None, 400, "INVALID_REQUEST"),
    Bad("another's cursor", "/v1/certificates?cursor=5", (), None, 400, "INVALID_REQUEST"),
    Bad("a wish nobody reads", "/v1/tokens?dry_run=1", JSON, b'{"device":"a"}', 400, "INVALID_REQUEST"),
    Bad("unknown field", "/v1/tokens", JSON, b'{"device":"a","ttl":5}', 400, "INVALID_REQUEST"),
    Bad("bad name", "/v1/tokens", JSON, b'{"device":"a/b"}', 400, "INVALID_REQUEST"),
    Bad("bad group", "/v1/tokens", JSON, b'{"group":"#"}', 400, "INVALID_REQUEST"),
    Bad("bad role", "/v1/tokens", JSON, b'{"device":"a","role":"king"}', 400, "INVALID_REQUEST"),
    Bad("endless token", "/v1/tokens", JSON, b'{"device":"a","ttl_seconds":99999999999999999999}', 400,
        "INVALID_REQUEST"),
    Bad("token of the past", "/v1/tokens", JSON, b'{"device":"a","ttl_seconds":-1}', 400, "INVALID_REQUEST"),
    Bad("no life", "/v1/tokens", JSON, b'{"device":"a","lifetime_seconds":0}', 400, "INVALID_REQUEST"),
    Bad("too many", "/v1/tokens", JSON, b'{"group":"a","count":1000000}', 400, "INVALID_REQUEST"),
    Bad("count of devices", "/v1/tokens", JSON, b'{"device":"a","count":2}', 400, "INVALID_REQUEST"),
    Bad("the same twice", "/v1/tokens", JSON, b'{"devices":["a","a"]}', 400, "INVALID_REQUEST"),
    Bad("device and devices", "/v1/tokens", JSON, b'{"device":"a","devices":["b"]}', 400, "INVALID_REQUEST"),
    Bad("server names of a device", "/v1/tokens", JSON, b'{"device":"a","dns_names":["x"]}', 400, "INVALID_REQUEST"),
    Bad("bad host name", "/v1/tokens", JSON, b'{"device":"a","role":"broker","dns_names":["*.x"]}', 400,
        "INVALID_REQUEST"),
    Bad("bad address", "/v1/tokens", JSON, b'{"device":"a","role":"broker","ip_addresses":["1.2.3"]}', 400,
        "INVALID_REQUEST"),
    Bad("nothing to revoke", "/v1/revocations", JSON, b"{}", 400, "INVALID_REQUEST"),
    Bad("two things to revoke", "/v1/revocations", JSON, b'{"device":"a","serial":"1"}', 400, "INVALID_REQUEST"),
    Bad("no such reason", "/v1/revocations", JSON, b'{"device":"a","reason":"boredom"}', 400, "INVALID_REQUEST"),
    Bad("a hold", "/v1/revocations", JSON, b'{"device":"a","reason":"certificateHold"}', 400, "INVALID_REQUEST"),
    Bad("serial that is none", "/v1/revocations", JSON, b'{"serial":"xyz"}', 400, "INVALID_REQUEST"),
    Bad("unknown device", "/v1/revocations", JSON, b'{"device":"nobody"}', 404, "DEVICE_UNKNOWN"),
    Bad("unknown serial", "/v1/revocations", JSON, b'{"serial":"1234"}', 404, "SERIAL_UNKNOWN"),
    Bad("unknown device shown", "/v1/devices/nobody", (), None, 404, "DEVICE_UNKNOWN"),
    Bad("unknown serial shown", "/v1/certificates/12", (), None, 404, "SERIAL_UNKNOWN"),
    Bad("page too large", "/v1/devices?limit=100000", (), None, 400, "INVALID_REQUEST"),
    Bad("cursor that is none", "/v1/certificates?after=x", (), None, 400, "INVALID_REQUEST"),
    Bad("state that is none", "/v1/certificates?state=fine", (), None, 400, "INVALID_REQUEST"),
    Bad("feed from the future", "/v1/revocations/feed?after=1000000", (), None, 409, "FEED_AHEAD"),
    Bad("feed from nowhere", "/v1/revocations/feed?after=-1", (), None, 400, "INVALID_REQUEST"),
    Bad("bad Last-Event-ID", "/v1/revocations/feed", ("--header", "Last-Event-ID: x"), None, 400, "INVALID_REQUEST"),
    Bad("wrong method", "/v1/devices", ("--request", "DELETE"), None, 405, "METHOD_NOT_ALLOWED"),
    Bad("group without ways", "/v1/groups", JSON, b'{"name":"a"}', 400, "INVALID_REQUEST"),
    Bad("group's life too long", "/v1/groups", JSON, b'{"name":"a","ways":[],"lifetime_seconds":1000000000}', 400,
        "INVALID_REQUEST"),
    Bad("endless grace", "/v1/groups", JSON, b'{"name":"a","ways":[],"renewal_grace_seconds":1000000000}', 400,
        "INVALID_REQUEST"),
    Bad("webhook anywhere", "/v1/groups", JSON, b'{"name":"a","ways":["token+webhook"],"webhook_url":"http://x/"}', 400,
        "INVALID_REQUEST"),
    Bad("webhook alone", "/v1/groups", JSON, b'{"name":"a","ways":["webhook"]}', 400, "INVALID_REQUEST"),
    Bad("unknown group", "/v1/groups/nowhere", (), None, 404, "GROUP_UNKNOWN"),
    Bad("claim for nobody", "/v1/claims", JSON, b'{"name":"a","group":"a","maximum_devices":0,"life_seconds":60}', 400,
        "INVALID_REQUEST"),
    Bad("endless claim", "/v1/claims", JSON, b'{"name":"a","group":"a","maximum_devices":1,"life_seconds":1000000000}',
        400, "INVALID_REQUEST"),
    Bad("endless trial", "/v1/claims", JSON, b'{"name":"a","group":"a","maximum_devices":1,"life_seconds":60,'
        b'"activation_seconds":10000000}', 400, "INVALID_REQUEST"),
    Bad("unknown claim", "/v1/claims/nothing", ("--request", "DELETE"), None, 404, "CLAIM_UNKNOWN"),
    Bad("no CA", "/v1/manufacturers", JSON, b'{"name":"a","group":"a","certificate":"x"}', 400, "INVALID_REQUEST"),
    Bad("unknown manufacturer", "/v1/manufacturers/x", ("--request", "DELETE"), None, 404, "MANUFACTURER_UNKNOWN"),
    Bad("list of nobody", "/v1/manufacturers/x/lists", (), b"x", 404, "MANUFACTURER_UNKNOWN"),
    Bad("list that is not there", "/v1/manufacturers/x/lists/" + "0" * 64, ("--request", "DELETE"), None, 404,
        "MANUFACTURER_UNKNOWN"),
    Bad("too long a list", "/v1/manufacturers/x/lists", (), b"0" * 1048577, 413, "BODY_TOO_LARGE"),
    Bad("lapsed, perhaps", "/v1/manufacturers/x", (*JSON, "--request", "PATCH"), b'{"lapsed_lists":"perhaps"}', 400,
        "INVALID_REQUEST"),
    Bad("empty list", "/v1/groups/a/listed", JSON, b'{"devices":[]}', 400, "INVALID_REQUEST"),
    Bad("list of no group", "/v1/groups/a%20b/listed", JSON, b'{"devices":[{"name":"x"}]}', 400, "INVALID_REQUEST"),
    Bad("unknown request", "/v1/approvals/77/decision", JSON, b'{"decision":"deny"}', 404, "APPROVAL_UNKNOWN"),
    Bad("undecided", "/v1/approvals/77/decision", JSON, b'{"decision":"perhaps"}', 400, "INVALID_REQUEST"),
    Bad("number too large", "/v1/approvals/99999999999999999999/decision", JSON, b'{"decision":"deny"}', 400,
        "INVALID_REQUEST"),
    Bad("renew nobody's", "/v1/renewals/hasten", JSON, b"{}", 400, "INVALID_REQUEST"),
    Bad("renew too slowly", "/v1/renewals/hasten", JSON, b'{"group":"a","spread_seconds":100000000}', 400,
        "INVALID_REQUEST"),
]  # fmt: skip


@pytest.mark.parametrize("bad", ANYBODY, ids=lambda bad: bad.what)
def test_a_stranger_s_bad_request_is_refused_with_its_reason(
    stranger: Curl, service: ProvisioningService, bad: Bad
) -> None:
    before = len(service.log)
    answer = stranger.run(bad.path, *bad.options, data=bad.data)
    if bad.path == ENROL and bad.status in {400, 415}:
        assert is_logged(service.log[before:], bad.code)
    assert answer.status == bad.status, answer.text
    if bad.path.startswith("/v1"):
        assert answer.headers.get_content_type() == "application/problem+json"
        assert f'"code":"{bad.code}"' in answer.text
    else:
        assert answer.headers.get_content_type() == "text/plain"
        assert answer.text.startswith(f"{bad.code}: ")
    assert stranger.run("/.well-known/est/cacerts").status == 200


@pytest.mark.parametrize(
    ("path", "options", "data", "words"),
    [
        ("/v1/devices?grop=north", (), None, "'grop': no such parameter; is group meant?"),
        (
            "/v1/certificates?page=2",
            (),
            None,
            "'page': no such parameter; this path takes after, device, expires_before",
        ),
        ("/v1/tokens", JSON, b'{"device": "a", "grup": "north"}', "grup: no such field; is group meant?"),
        ("/v1/tokens", JSON, b'{"device": "a", "x": 1}', "x: no such field; this path takes count, device, devices, "),
        ("/v1/revocations", JSON, b'{"devices": ["a"], "devices": ["b"]}', "devices: given more than once; give it"),
        ("/v1/tokens", JSON, rb'{"\ud800": 1, "\ud800": 2}', r"\\ud800: given more than once; give it once"),
        ("/v1/tokens", JSON, rb'{"device": "a", "\ud800": 2}', "unable to parse raw data as a unicode string"),
        (
            "/v1/groups/a/listed",
            JSON,
            b'{"devices": [{"name": "a", "name": "b"}]}',
            "name: given more than once; give it once",
        ),
        (
            "/v1/tokens",
            (*JSON, "--header", "Idempotency-Key: one", "--header", "Idempotency-Key: two"),
            b'{"device": "a"}',
            "Idempotency-Key: given more than once; give it once",
        ),
        ("/v1/tokens", JSON, b'{"device": nobody}', "the body is not valid JSON: Expecting value at character 11"),
        (
            "/v1/tokens",
            ("--header", "Content-Type: text/json"),
            b"{}",
            "Content-Type is 'text/json': send application/",
        ),
    ],
)
def test_what_a_request_says_and_nobody_would_read_is_told(
    operator: Curl, path: str, options: tuple[str, ...], data: bytes | None, words: str
) -> None:
    """A filter that is overlooked finds everybody, and whoever acts on what was found acts on all."""
    answer = operator.run(path, *options, data=data)
    assert 400 <= answer.status < 500, answer.text
    assert words in answer.text


@pytest.mark.parametrize("bad", OPERATORS, ids=lambda bad: bad.what)
def test_an_operator_s_bad_request_is_refused_with_its_reason(operator: Curl, bad: Bad) -> None:
    answer = operator.run(bad.path, *bad.options, data=bad.data)
    assert answer.status == bad.status, answer.text
    assert answer.headers.get_content_type() == "application/problem+json"
    assert f'"code":"{bad.code}"' in answer.text


def test_a_token_that_nobody_made_is_unknown(stranger: Curl, device: OpensslDevice) -> None:
    for token in ("fgt_" + "A" * 43, "short", "fgt_" + "A" * 60):
        answer = stranger.est("simpleenroll", device.request(), "--user", f"{device.name}:{token}")
        assert (answer.status, answer.text.split(":")[0]) == (401, "TOKEN_UNKNOWN")
        assert token not in answer.text


@pytest.mark.parametrize(
    ("subject", "algorithm", "code"),
    [
        ("/O=only", ("ec", "-pkeyopt", "ec_paramgen_curve:P-256"), "CSR_NAME"),
        ("/CN=a/CN=b", ("ec", "-pkeyopt", "ec_paramgen_curve:P-256"), "CSR_NAME"),
        ("/CN=has space", ("ec", "-pkeyopt", "ec_paramgen_curve:P-256"), "CSR_NAME"),
        ("/CN=meter", ("ec", "-pkeyopt", "ec_paramgen_curve:P-521"), "CSR_KEY"),
        ("/CN=meter", ("ec", "-pkeyopt", "ec_paramgen_curve:secp256k1"), "CSR_KEY"),
        ("/CN=meter", ("rsa:1024",), "CSR_KEY"),
        ("/CN=meter", ("ed448",), "CSR_KEY"),
    ],
)
def test_a_request_that_must_not_be_certified_is_refused(
    stranger: Curl,
    service: ProvisioningService,
    device: OpensslDevice,
    subject: str,
    algorithm: tuple[str, ...],
    code: str,
) -> None:
    before = len(service.log)
    answer = stranger.est("simpleenroll", device.request(subject=subject, algorithm=algorithm), *BASIC)
    assert (answer.status, answer.text.split(":")[0]) == (400, code)
    assert is_logged(service.log[before:], code)


def test_pem_armour_and_odd_line_ends_are_accepted(
    stranger: Curl, service: ProvisioningService, device: OpensslDevice
) -> None:
    token = service.token(device=device.name)
    pem = openssl("req", "-new", "-newkey", *P256, "-nodes", "-keyout", device.key, "-subj", f"/CN={device.name}")
    answer = stranger.est("simpleenroll", pem.replace(b"\n", b" \t\r\n"), "--user", f"{device.name}:{token}",
                          "--header", "Content-Transfer-Encoding: 8bit")  # fmt: skip
    assert answer.status == 200, answer.text


def test_a_device_is_no_operator(service: ProvisioningService, enrolled: OpensslDevice) -> None:
    curl = Curl(service.https, service.bundle, enrolled.credential)
    for path in ("/v1/status", "/v1/revocations/feed", "/v1/tokens"):
        answer = curl.run(path, *JSON, data=b"{}" if path == "/v1/tokens" else None)
        assert answer.status == 403
        assert '"code":"ROLE"' in answer.text


def _connect(service: ProvisioningService) -> ssl.SSLSocket:
    host, _, port = service.https.removeprefix("https://").partition(":")
    context = client_context(service.bundle)
    return context.wrap_socket(socket.create_connection((host, int(port)), timeout=30), server_hostname=host)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02 not http\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"POST /v1/tokens HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/tokens HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    ],
    ids=["binary", "endless header", "negative length", "absurd length"],
)
def test_a_broken_http_request_ends_its_own_connection_only(
    service: ProvisioningService, stranger: Curl, garbage: bytes
) -> None:
    answer = b""
    with _connect(service) as connection:
        # Closed with something unread, it is reset; what was answered before can be read all the same.
        with contextlib.suppress(ConnectionError):
            connection.sendall(garbage)
        with contextlib.suppress(ConnectionError):
            while chunk := connection.recv(65536):
                answer += chunk
    assert answer.split()[1] in (b"400", b"413")
    assert stranger.run("/.well-known/est/cacerts").status == 200


def test_many_half_requests_do_not_hold_up_the_others(service: ProvisioningService, stranger: Curl) -> None:
    connections: list[ssl.SSLSocket] = []
    threads = [threading.Thread(target=lambda: connections.append(_connect(service))) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        for connection in connections:
            connection.sendall(b"POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nAA")
        assert stranger.run("/.well-known/est/cacerts").status == 200
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.parametrize(
    ("version", "alert"),
    [
        (("--tlsv1.3",), "alert unknown ca"),
        (("--tlsv1.2", "--tls-max", "1.2"), "alert unknown ca"),
        (("--tlsv1.1", "--tls-max", "1.1", "--ciphers", "DEFAULT@SECLEVEL=0"), "alert protocol version"),
    ],
    ids=["TLS 1.3", "TLS 1.2", "TLS 1.1"],
)
def test_a_client_that_fails_tls_is_told_why(
    service: ProvisioningService, tmp_path: Path, version: tuple[str, ...], alert: str
) -> None:
    openssl(
        "req", "-x509", "-newkey", *P256, "-nodes", "-keyout", tmp_path / "stranger.key", "-out",
        tmp_path / "stranger.crt", "-subj", "/CN=stranger", "-days", "1",
    )  # fmt: skip
    failed = subprocess.run(
        ["curl", "-sS", "--cacert", service.bundle, "--cert", tmp_path / "stranger.crt", "--key",
         tmp_path / "stranger.key", *version, f"{service.https}/.well-known/est/cacerts"],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert failed.returncode != 0
    assert alert in failed.stderr
