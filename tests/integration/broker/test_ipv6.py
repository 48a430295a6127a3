"""A broker of a machine without IPv4: it listens on ``::1``, and says who came in a form that tools read."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from tests.support import programs
from tests.support.broker_process import PATIENCE, BrokerProcess, wait_until
from tests.support.pki import Pki
from tests.support.tls_client import TlsClient


def test_who_comes_over_ipv6_is_told_and_found_by_address(tmp_path: Path, pki: Pki, anchors: Path) -> None:
    with BrokerProcess.with_files(tmp_path / "b", pki, "--host", "::1") as broker:
        (url,) = broker.urls
        assert url == f"mqtts://[::1]:{broker.port}"
        with TlsClient(broker.port, anchors, pki.device("meter-1").credential, source="::1") as client:
            client.connect(client_id="meter-1")
            (admitted,) = broker.events("admitted")
            told = urlsplit(f"//{admitted['address']}")
            assert (told.hostname, told.port) == ("::1", client.socket.getsockname()[1])

            def said(*arguments: str) -> str:
                asked = [*arguments, "--state-dir", str(tmp_path / "b" / "state")]
                return programs.run("broker", asked, broker.environment, timeout=PATIENCE).stdout

            for address in ("::1", "[::1]", admitted["address"]):
                assert "meter-1" in said("sessions", address), address
            with TlsClient(broker.port, anchors, source="::1") as stranger:
                stranger.expect_end()
            wait_until(lambda: broker.events("NO_CERTIFICATE"), "the refusal")
            for address in ("::1", "[::1]"):
                assert "NO_CERTIFICATE" in said("why", address), address
