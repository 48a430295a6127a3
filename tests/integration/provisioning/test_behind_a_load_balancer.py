"""Callers through HAProxy, and curl as a proxy: each caller has its own address at both ports, and nobody else's."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.broker_process import wait_until
from tests.support.curl import Curl
from tests.support.load_balancer import load_balancer
from tests.support.provisioning import ProvisioningService
from tests.support.proxy_headers import LOCAL

PROXY = "127.0.0.2"
"""The proxy's address: on one machine it needs one of its own, so that others on it are not taken for it."""
BURST = 4


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProvisioningService]:
    settings = {
        "proxy_protocol_from": PROXY,
        "http_proxy_protocol_from": f'["{PROXY}"]',
        "requests_per_second": 0.001,
        "ocsp_requests_per_second": 0.001,
        "request_burst": BURST,
        "metrics": "loopback",
    }
    with ProvisioningService.copied(tmp_path_factory.mktemp("behind") / "fleet", settings) as running:
        yield running


@pytest.fixture
def through(behind: ProvisioningService, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Curl]:
    """A way to the HTTPS port through HAProxy, with the version that the test's parameter says."""
    send = getattr(request, "param", "send-proxy-v2")
    changes = {"send-proxy-v2 check": f"{send} source {PROXY}"}
    with load_balancer("haproxy", tmp_path / "balancer", {8443: behind.port}, changes) as ports:
        yield Curl(f"https://localhost:{ports[8443]}", behind.bundle)


def statuses(curl: Curl, path: str, *options: str, times: int = BURST + 1) -> list[int]:
    return [curl.run(path, *options).status for _ in range(times)]


@pytest.mark.parametrize(
    ("through", "network"), [("send-proxy", 3), ("send-proxy-v2", 4)], ids=["v1", "v2"], indirect=["through"]
)
def test_each_caller_behind_a_proxy_has_a_rate_of_its_own(through: Curl, network: int) -> None:
    path = "/.well-known/est/cacerts"
    for host in (11, 12):
        caller = f"127.0.{network}.{host}"
        assert statuses(through, path, "--interface", caller) == [200] * BURST + [429], caller


def test_so_has_each_at_the_plain_port(behind: ProvisioningService) -> None:
    """Curl sends the header itself, and the address that it is told to."""
    curl = Curl(behind.http)
    for client in ("198.51.100.7", "198.51.100.8"):
        said = ("--interface", PROXY, "--haproxy-protocol", "--haproxy-clientip", client)
        assert statuses(curl, "/ocsp/x", *said) == [200] * BURST + [429], client
    assert curl.run("/ocsp/x").status == 200, "the others have not used up what is his"


def test_an_address_makes_nobody_an_operator(behind: ProvisioningService) -> None:
    said = ("--interface", PROXY, "--haproxy-protocol", "--haproxy-clientip", "127.0.0.1")
    answer = Curl(behind.https, behind.bundle).run("/v1/status", *said)
    assert (answer.status, json.loads(answer.body)["code"]) == (403, "CERTIFICATE_MISSING")


def test_a_loopback_address_from_another_machine_is_not_this_one(behind: ProvisioningService) -> None:
    curl, said = Curl(behind.http), ("--interface", PROXY, "--haproxy-protocol", "--haproxy-clientip")
    assert curl.run("/metrics").status == 200, "who connects himself"
    assert curl.run("/metrics", *said, "127.0.0.9").status == 200, "the proxy is on this machine, and so is its client"
    assert curl.run("/metrics", *said, "198.51.100.7").status == 404
    assert curl.run("/metrics", "--header", "Host: page.example").status == 404, "a browser's, for a page of that name"


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_who_is_no_proxy_is_not_believed(behind: ProvisioningService, scheme: str) -> None:
    url, bundle = (behind.https, behind.bundle) if scheme == "https" else (behind.http, None)
    command = Curl(url, bundle).arguments("/crl", "--haproxy-protocol", "--haproxy-clientip", "198.51.100.66")
    done = subprocess.run([*command, "--include"], capture_output=True, text=True, check=False, timeout=90)
    if scheme == "https":
        assert done.returncode == 35, "no TLS"
    else:
        assert done.stdout.startswith("HTTP/1.1 400 ")
    assert "198.51.100.66" not in behind.log


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_proxy_without_its_header_is_refused_and_a_health_check_is_not(tmp_path: Path, scheme: str) -> None:
    settings = {"proxy_protocol_from": PROXY, "http_proxy_protocol_from": PROXY}
    with ProvisioningService.copied(tmp_path / "fleet", settings) as service:
        url = service.https if scheme == "https" else service.http
        where = ("127.0.0.1", int(url.rpartition(":")[2]))
        for _ in range(3):
            with socket.create_connection(where, 60, (PROXY, 0)) as check:
                check.sendall(LOCAL)
        command = Curl(url, service.bundle).arguments("/crl", "--interface", PROXY)
        assert subprocess.run(command, capture_output=True, check=False, timeout=90).returncode != 0

        def refused() -> list[dict[str, object]]:
            lines = [json.loads(line) for line in service.log.splitlines() if line.startswith("{")]
            return [each for each in lines if each.get("code") == "BAD_PROXY_HEADER"]

        (told,) = wait_until(refused, "the log says so")
    assert (told["address"], told["connections"]) == (PROXY, 1)


def test_commands_on_the_machine_reach_the_service_directly(behind: ProvisioningService) -> None:
    done = behind.command("doctor", "--dir", str(behind.dir))
    assert "answers" in done.stdout or done.returncode == 0, done.stdout + done.stderr
