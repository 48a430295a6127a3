"""Whose CA is revoked leaves no will: though the broker has begun afresh meanwhile, and that CA is no anchor."""

from __future__ import annotations

import functools
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from broker.mqtt.packets import Publish
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.crl import crl, pem
from tests.support.pki import Pki, pem_of
from tests.support.tls_client import TlsClient
from tests.support.wire import KEPT, will


@pytest.mark.parametrize("begins_afresh", ["with other anchors", "restarted", "restarted under it"])
def test_a_ca_that_is_no_anchor_takes_the_wills_below_it_along(tmp_path: Path, pki: Pki, begins_afresh: str) -> None:
    """With a root alone as anchor, nothing was known of the CA but its key, and so nothing against the will."""
    stolen, honest = (pki.authority(name, pki.root) for name in ("Stolen CA", "Honest CA"))
    lists, cafile = tmp_path / "lists.pem", tmp_path / "b" / "anchors.pem"
    of_issuing = [crl(each) for each in (pki.issuing, stolen, honest)]
    lists.write_bytes(pem(*of_issuing, crl(pki.root)))
    broker = BrokerProcess.with_lists(
        tmp_path / "b", pki, "--no-watch-files", "--crlfile", str(lists), anchors=pem_of(pki.root.certificate)
    )
    with ExitStack() as stack:
        stack.enter_context(broker)
        for issuer, name in ((stolen, "thief"), (honest, "meter")):
            held = pki.device(name, issuer=issuer)
            device = stack.enter_context(TlsClient(broker.port, pki.anchors, held.credential))
            last = will(f"fleet/meters/{name}/event", name.encode(), 1, will_delay_interval=600)
            device.connect(client_id=name, will=last, **KEPT)
            device.publish(f"fleet/meters/{name}/telemetry", b"here", qos=1)  # Acknowledged when all is on disk.
            if begins_afresh != "restarted under it":
                device.socket.close()
                wait_until(functools.partial(broker.events, "CLIENT_CLOSED", client=name), "it is gone")
        if begins_afresh == "with other anchors":
            cafile.write_bytes(pem_of(pki.root.certificate, Pki().root.certificate))
            broker.send_signal(signal.SIGHUP)
            wait_until(lambda: broker.events("RELOADED", part="trust"), "other anchors")
        else:
            broker.stop(signal.SIGKILL)
            broker.start()
        lists.write_bytes(pem(*of_issuing, crl(pki.root, [stolen], number=2)))
        wait_until(lambda: broker.events("CRL_CURRENT", revoked=1), "the CA is revoked")
        watcher = stack.enter_context(TlsClient(broker.port, pki.anchors, pki.service("watcher").credential))
        watcher.connect(client_id="watcher")
        watcher.subscribe("fleet/+/+/event", qos=1)
        for name in ("thief", "meter"):  # A certificate of another CA, and a clean start: the will is due.
            with TlsClient(broker.port, pki.anchors, pki.device(name).credential) as again:
                again.connect(client_id=name)
                again.leave()
        assert watcher.expect(Publish).payload == b"meter"
        watcher.check_alive()  # Raises for a message that has come before the answer.
