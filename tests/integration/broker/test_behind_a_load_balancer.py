"""Clients through HAProxy and nginx: their own addresses in everything that the broker says, and their own limits."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from provisioning.pki.tls import client_context
from tests.integration.broker.test_admin import fleet_broker, said
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.load_balancer import load_balancer
from tests.support.pki import Held, Pki
from tests.support.proxy_headers import LOCAL, UNKNOWN, block, line
from tests.support.tls_client import Ended, TlsClient

PATIENCE = 60.0
PROXY = "127.0.0.1"
OTHERS = [f"127.0.0.{number}" for number in range(21, 31)]
"""Addresses of this machine, each of one test's client."""


@pytest.fixture(scope="module")
def behind(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker that believes a proxy at 127.0.0.1, and no other."""
    directory = tmp_path_factory.mktemp("behind")
    limits = {
        "limits__handshake_timeout": 3,
        "limits__max_failed_attempts": 3,
        "limits__failed_attempt_recovery": 0.001,
    }
    options = ["--proxy-protocol-from", PROXY, "--websocket-port", "0", "--metrics-port", "0"]
    with BrokerProcess.with_files(directory, pki, *options, **limits, audit_log=directory / "audit.log") as running:
        yield running


BALANCERS = {
    "haproxy v2": ("haproxy", {}),
    "haproxy v1": ("haproxy", {"send-proxy-v2": "send-proxy"}),
    "haproxy with a checksum": (
        "haproxy",
        {
            "bind :8883": "bind :8883\n    unique-id-format %ci:%cp",
            "send-proxy-v2": "send-proxy-v2 proxy-v2-options crc32c,unique-id",
        },
    ),
    "nginx": ("nginx", {}),
}


@pytest.mark.parametrize("balancer", BALANCERS)
def test_a_client_has_its_own_address_in_all_that_the_broker_says(
    behind: BrokerProcess, anchors: Path, tmp_path: Path, meter: Held, name: str, balancer: str
) -> None:
    program, changes = BALANCERS[balancer]
    with (
        load_balancer(program, tmp_path / "balancer", {8883: behind.port}, changes) as ports,
        TlsClient(ports[8883], anchors, meter.credential, source="127.0.0.20") as client,
    ):
        client.connect(client_id=name)
        (shown,) = json.loads(said(behind.dir / "state", "sessions", name, "--json"))["sessions"]
        own = "{}:{}".format(*client.socket.getsockname())
        assert shown["address"] == own
        assert f"{name} is connected from {own}" in said(behind.dir / "state", "why", name)
    wait_until(lambda: behind.events("closed", client=name), "the end is logged")
    assert {each["address"] for each in behind.events("admitted", client=name)} == {own}

    def audited() -> list[dict[str, Any]]:
        whole = (behind.dir / "audit.log").read_text().rpartition("\n")[0]
        entries = [json.loads(each) for each in whole.splitlines()]
        return [each for each in entries if each.get("client") == name]

    assert {each["address"] for each in wait_until(audited, "it is in the audit log, written by a thread")} == {own}


def test_so_has_who_is_refused_also_over_websocket(
    behind: BrokerProcess, pki: Pki, tmp_path: Path, meter: Held
) -> None:
    port = int(behind.urls[1].rpartition(":")[2])
    with (
        load_balancer("haproxy", tmp_path / "balancer", {8883: port}) as ports,
        TlsClient(ports[8883], pki.anchors, meter.credential, source=OTHERS[0]) as client,
    ):
        client.socket.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.socket.recv(1000).startswith(b"HTTP/1.1 426 ")
    (refused,) = wait_until(lambda: behind.events("NOT_WEBSOCKET"), "it is refused")
    assert refused["address"].rpartition(":")[0] == OTHERS[0]


def test_a_client_that_fails_is_shut_out_and_the_others_behind_the_proxy_are_not(
    behind: BrokerProcess, pki: Pki, tmp_path: Path, meter: Held, name: str
) -> None:
    with load_balancer("haproxy", tmp_path / "balancer", {8883: behind.port}) as ports:

        def fails() -> None:
            with contextlib.suppress(OSError), TlsClient(ports[8883], pki.anchors, source=OTHERS[1]) as client:
                client.expect_end()

        def shut_out() -> bool:
            fails()
            return bool(behind.events("RATE_LIMITED"))

        wait_until(shut_out, "its address is refused")
        assert {each["address"] for each in behind.events("RATE_LIMITED")} == {OTHERS[1]}
        for source in (OTHERS[2], OTHERS[3]):
            with TlsClient(ports[8883], pki.anchors, meter.credential, source=source) as client:
                client.connect(client_id=name)
    assert "RATE_LIMITED" in said(behind.dir / "state", "why", OTHERS[1])


def accepted(broker: BrokerProcess) -> int:
    (url,) = (each for each in broker.urls if each.startswith("http://"))
    page = httpx.get(url).text
    found = re.search(r"^fleet_broker_connections_accepted(?:_total)? (\d+)", page, re.MULTILINE)
    assert found is not None, page[:2000]
    return int(found[1])


@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2"])
def test_health_checks_are_not_held_against_anybody(
    behind: BrokerProcess, tmp_path: Path, pki: Pki, meter: Held, name: str, version: str
) -> None:
    # HAProxy gives a check as long as lies between two of them.
    before, log = accepted(behind), len(behind.told())
    changes = {"send-proxy-v2 check": f"{version} check inter 50 fall 3"}
    with load_balancer("haproxy", tmp_path / "balancer", {8883: behind.port}, changes) as ports:
        wait_until(lambda: accepted(behind) >= before + 20, "health checks")
        output = (tmp_path / "balancer" / "output").read_text()
        assert "DOWN" not in output, output
        with TlsClient(ports[8883], pki.anchors, meter.credential, source=OTHERS[8]) as client:
            client.connect(client_id=name)
    wait_until(lambda: behind.events("closed", client=name), "the end is logged")
    told = [(each["event"], each.get("client")) for each in behind.told()[log:]]
    # Another test's client may have ended late.
    assert [each for each in told if each[0] != "closed" or each[1] == name] == [("admitted", name), ("closed", name)]


@pytest.mark.parametrize("before", [LOCAL, UNKNOWN, block(None)], ids=["local", "unknown", "unspecified"])
def test_a_header_without_a_client_leaves_the_proxys_own_address(
    behind: BrokerProcess, pki: Pki, meter: Held, name: str, before: bytes
) -> None:
    with TlsClient(behind.port, pki.anchors, meter.credential, before=before) as client:
        client.connect(client_id=name)
        (admitted,) = behind.events("admitted", client=name)
        assert admitted["address"] == "{}:{}".format(*client.socket.getsockname())


def test_what_a_proxy_says_of_certificates_and_names_is_not_read(behind: BrokerProcess, pki: Pki, name: str) -> None:
    ssl_field = b"\x07\0\0\0\0" + b"\x21\0\x07TLSv1.3" + b"\x22" + len(name).to_bytes(2, "big") + name.encode()
    before = block((OTHERS[4], 5), fields=[(0x20, ssl_field), (0x02, name.encode())])
    with pytest.raises(Ended), TlsClient(behind.port, pki.anchors, before=before) as client:
        client.connect(client_id=name)
    (refused,) = wait_until(lambda: behind.events("NO_CERTIFICATE", address=f"{OTHERS[4]}:5"), "it is refused")
    assert refused.get("identity", "") == ""


BAD = {
    "TLS": (b"\x16\x03\x01", "TLS began without a PROXY header: the proxy does not send it"),
    "HTTP": (b"GET / HTTP/1.1\r\n\r\n", "the connection does not begin with a PROXY header"),
    "UDP": (block((OTHERS[5], 5)).replace(b"\x21\x11", b"\x21\x12"), "the PROXY header is for datagrams"),
    "half": (line((OTHERS[5], 5))[:-1], "the PROXY header did not come in time"),
    "nothing": (b"", "the PROXY header did not come in time"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_proxy_that_sends_no_header_is_refused(pki: Pki, tmp_path: Path, case: str) -> None:
    sent, why = BAD[case]
    options = ["--proxy-protocol-from", "127.0.0.0/8"]
    limits = {"limits__handshake_timeout": 0.5 if "in time" in why else PATIENCE}
    with BrokerProcess.with_files(tmp_path / "b", pki, *options, **limits) as broker:
        with socket.create_connection(("127.0.0.1", broker.port), PATIENCE, ("127.0.0.9", 0)) as proxy:
            proxy.sendall(sent)
            with contextlib.suppress(ConnectionResetError):
                assert proxy.recv(100) == b""
        (told,) = wait_until(lambda: broker.events("BAD_PROXY_HEADER"), "it is refused")
        assert (told["event"], told["address"], told["detail"]) == (
            "connection without a valid PROXY header refused",
            "127.0.0.9",
            why,
        )
        shown = said(broker.dir / "state", "why", "127.0.0.9")
        assert "BAD_PROXY_HEADER" in shown
        assert "configure the proxy to send it" in " ".join(shown.split())
        status = json.loads(said(broker.dir / "state", "status", "--json"))
        assert status["refused"] == {"BAD_PROXY_HEADER": 1}


def test_nobody_else_is_believed(behind: BrokerProcess, pki: Pki, meter: Held, name: str) -> None:
    forged = line(("203.0.113.66", 5))
    with pytest.raises(OSError), TlsClient(behind.port, pki.anchors, meter.credential, source=OTHERS[6], before=forged):  # noqa: PT011
        pass
    (refused,) = wait_until(lambda: behind.events("NOT_TLS"), "it is refused")
    assert refused["address"].rpartition(":")[0] == OTHERS[6]
    assert "203.0.113.66" not in behind.log
    with TlsClient(behind.port, pki.anchors, meter.credential, source=OTHERS[6]) as client:
        client.connect(client_id=name)
        (admitted,) = behind.events("admitted", client=name)
        assert admitted["address"] == "{}:{}".format(*client.socket.getsockname()), "without a header it is let in"


def test_a_resumed_session_and_tls_in_the_headers_segment(
    behind: BrokerProcess, pki: Pki, meter: Held, name: str
) -> None:
    """The ClientHello follows the header in one segment, in pieces of each size, and none of it is lost."""
    context, session = client_context(pki.anchors, meter.credential), None
    for number, portion in enumerate((1, 7, 10_000)):
        header = block((f"127.0.0.{31 + number}", number + 1))  # Each with a host of its own has a line of its own.
        with socket.create_connection(("127.0.0.1", behind.port), timeout=PATIENCE) as raw:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost", session=session)
            to_send = header
            while True:
                done = False
                try:
                    tls.do_handshake()
                    done = True
                except ssl.SSLWantReadError:
                    pass
                to_send += outgoing.read()
                for start in range(0, len(to_send), portion):
                    raw.sendall(to_send[start : start + portion])
                to_send = b""
                if done:
                    break
                incoming.write(raw.recv(100_000))
            assert tls.version() == "TLSv1.3"
    wait_until(lambda: len(behind.events("CLIENT_CLOSED") + behind.events("CONNECTION_LOST")) >= 3, "they have ended")
    assert name


def test_readiness_is_checked_at_the_metrics_port_without_a_header(
    behind: BrokerProcess, tmp_path: Path, pki: Pki, meter: Held, name: str
) -> None:
    (url,) = (each for each in behind.urls if each.startswith("http://"))
    port = url.removesuffix("/metrics").rpartition(":")[2]
    changes = {
        "backend brokers": "backend brokers\n    option httpchk GET /readyz",
        "send-proxy-v2 check": f"send-proxy-v2 check port {port} inter 100 fall 3",
        "timeout connect 5s": "timeout connect 5s\n    log stdout format raw local0\n    option log-health-checks",
    }
    with load_balancer("haproxy", tmp_path / "balancer", {8883: behind.port}, changes) as ports:
        output = tmp_path / "balancer" / "output"
        wait_until(lambda: "code: 200" in output.read_text(), "a health check has succeeded")
        with TlsClient(ports[8883], pki.anchors, meter.credential, source=OTHERS[9]) as client:
            client.connect(client_id=name)


def test_the_setting_counts_from_a_reload_on_for_each_listener(
    pki: Pki, tmp_path: Path, meter: Held, name: str
) -> None:
    config = tmp_path / "broker.toml"

    def write(first: str, second: str) -> None:
        tables = (f"[[listener]]\nport = 0\nproxy_protocol_from = {each}\n" for each in (first, second))
        config.write_text("watch_files = false\n" + "".join(tables))

    def enters(port: int, before: bytes = b"") -> bool:
        try:
            with TlsClient(port, pki.anchors, meter.credential, before=before) as client:
                client.connect(client_id=name)
                return True
        except (OSError, Ended):
            return False

    write("[]", '["127.0.0.1"]')
    broker = BrokerProcess.with_files(tmp_path / "b", pki, "--config", str(config))
    place = broker.arguments.index("--port")
    del broker.arguments[place : place + 2]
    with broker:
        first, second = (int(url.rpartition(":")[2]) for url in broker.urls)
        header = line(("198.51.100.7", 5))
        assert [enters(first), enters(second), enters(second, header)] == [True, False, True]
        write('["127.0.0.0/8"]', "[]")
        assert "proxy_protocol_from" in said(broker.dir / "state", "reload")
        assert [enters(first), enters(first, header), enters(second)] == [False, True, True]
        write('["0.0.0.0/0"]', "[]")
        code, told, _ = fleet_broker(broker.dir / "state", "reload")
        assert (code, "0.0.0.0/0 would let everybody claim to be any client" in told) == (1, True), told
        assert [enters(first), enters(first, header)] == [False, True], "what was refused changes nothing"
