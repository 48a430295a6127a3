"""A broker with `cafile` alone, and a CA that ends before its devices' certificates: real handshakes, real time."""

from __future__ import annotations

import json
import signal
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from broker.cli import app
from broker.mqtt.codes import ReasonCode
from provisioning.pki.tls import client_context
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.pki import Pki, pem_of
from tests.support.tls_client import TlsClient

SECONDS = 9
"""How long the CA lasts: a few handshakes are in it, on a busy machine too."""


def test_who_came_back_to_its_tls_session_ends_with_the_ca(tmp_path: Path) -> None:
    pki = Pki()
    with ExitStack() as stack:
        broker = stack.enter_context(BrokerProcess.with_files(tmp_path / "b", pki))
        end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=SECONDS)
        ending = pki.authority("Ending CA", pki.root, not_after=end)
        live, back, late = (pki.device(name, issuer=ending) for name in ("live", "back", "late"))
        sessions: dict[str, dict[str, Any]] = {}
        for holder, name in ((back, "back"), (late, "late")):
            context = client_context(pki.anchors, holder.credential)
            with TlsClient(broker.port, "", context=context) as first:
                first.connect(client_id=name)
                sessions[name] = {"context": context, "session": first.leave()}
        client = stack.enter_context(TlsClient(broker.port, pki.anchors, live.credential))
        resumed = stack.enter_context(TlsClient(broker.port, "", **sessions["back"]))
        client.connect(client_id="live")
        resumed.connect(client_id="back")
        assert resumed.socket.session_reused
        for each in (client, resumed):
            assert str(each.farewell().properties.reason_string).startswith("EXPIRED")
        assert 0 <= time.time() - end.timestamp() < 60, "with the CA, not with the device's own certificate"
        with TlsClient(broker.port, "", **sessions["late"]) as again:
            answer = again.connect(client_id="late", expect=ReasonCode.NOT_AUTHORIZED)
            assert again.socket.session_reused
            assert str(answer.properties.reason_string).startswith("EXPIRED: a CA's certificate above it expired")


def test_a_renewed_ca_certificate_in_cafile_counts_for_who_is_connected(tmp_path: Path) -> None:
    pki = Pki()
    ends, renewed_ends = (pki.now + timedelta(seconds=seconds) for seconds in (1000, 50_000))
    ending = pki.authority("Ending CA", pki.root, not_after=ends)
    renewed = pki.authority("Ending CA", pki.root, key=ending.key, not_after=renewed_ends)
    broker = BrokerProcess.with_files(tmp_path / "b", pki, "--no-watch-files")
    anchors = tmp_path / "b" / "anchors.pem"

    def left() -> int:
        state = str(tmp_path / "b" / "state")
        done = CliRunner().invoke(app, ["sessions", "--state-dir", state, "--json"])
        seconds: int = json.loads(done.stdout)["sessions"][0]["certificate_expires_in"]
        return seconds

    anchors.write_bytes(pem_of(ending.certificate, pki.issuing.certificate))
    context = client_context(pki.anchors, pki.device("meter", issuer=ending).credential)
    with broker:
        with TlsClient(broker.port, "", context=context) as first:
            first.connect(client_id="meter")
            session = first.leave()
        with TlsClient(broker.port, "", context=context, session=session) as client:
            client.connect(client_id="meter")
            assert client.socket.session_reused
            assert 0 < left() <= 1000
            anchors.write_bytes(pem_of(renewed.certificate, pki.issuing.certificate))
            broker.send_signal(signal.SIGHUP)
            wait_until(lambda: broker.events("RELOADED", part="trust"), "the renewed certificate")
            assert 1000 < left() <= 50_000
            client.check_alive()
