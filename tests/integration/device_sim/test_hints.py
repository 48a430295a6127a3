"""What a broker says about coming again, as both clients of the simulator read it from a real one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from device_sim.link.closure import Verdict
from device_sim.link.driver import Driver
from device_sim.link.keep_alive import KeepAlive
from device_sim.link.tls_dial import Endpoint, NotAdmitted
from provisioning.pki.tls import client_context
from tests.support.broker_process import BrokerProcess
from tests.support.pki import Pki

PATIENCE = 60


@pytest.mark.parametrize("driver", Driver)
async def test_the_hints_of_a_broker_that_stops_and_of_one_that_is_in_the_dark(tmp_path: Path, driver: Driver) -> None:
    pki = Pki()
    pem = pki.device("meter-1").credential
    context = client_context(pki.write_anchors(tmp_path), pem)
    async with KeepAlive() as keep_alive:
        broker = BrokerProcess.with_files(tmp_path / "known", pki)
        with broker:
            connection = await driver.open(
                Endpoint("127.0.0.1", broker.port, "localhost"), context, "meter-1", keep_alive=keep_alive
            )
            assert await asyncio.to_thread(broker.stop) == 0
            closure = await asyncio.wait_for(connection.closed, PATIENCE)
        assert (closure.number, closure.retry_after, closure.verdict) == (0x8B, 2.0, Verdict.AGAIN)
        nobody = "http://127.0.0.1:9/ocsp"
        with BrokerProcess.with_lists(tmp_path / "dark", pki, ocsp_responder=nobody) as broker:
            with pytest.raises(NotAdmitted) as refused:
                await driver.open(
                    Endpoint("127.0.0.1", broker.port, "localhost"), context, "meter-1", keep_alive=keep_alive
                )
            closure = refused.value.closure
        assert (closure.number, closure.retry_after, closure.verdict) == (0x88, 30.0, Verdict.AGAIN)
