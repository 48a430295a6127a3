"""The demo's story on the real service and broker, with one fault in front of the latter: it has no happy end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from broker.mqtt.packets import Packet, Publish
from device_sim.attack.issuer import Issuer
from device_sim.demo.demo import _Story
from device_sim.demo.demo_plan import DemoPlan
from device_sim.report import ExitCode
from device_sim.stage.stage import raised
from device_sim.view import View
from provisioning.client.enrolment import EnrolmentOperatorClient
from provisioning.pki.revocation import RevocationReason
from tests.support.one_fault import ForgetsRevocations, OneFault, Passage, proxied

LATE = 3.3
PLAN = DemoPlan(devices=2, seconds=0.5)


class ClosesLate(OneFault):
    """It closes the session of a revoked device after seconds."""

    async def revoke(self, serial: int) -> None:
        self.revoked.add(serial)
        for passage in [each for each in self.passages if each.serial == serial]:
            asyncio.get_running_loop().call_later(LATE, self.end, passage)


class IsSlow(OneFault):
    """Whatever it delivers, it delivers seconds later."""

    async def from_broker(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Publish) and not passage.is_device:
            asyncio.get_running_loop().call_later(LATE, passage.tell_device, packet)
            return []
        return [packet]


class _Operator:
    """The service's own, who revokes at the proxy: the broker behind it sees other certificates."""

    def __init__(self, operator: EnrolmentOperatorClient, fault: OneFault) -> None:
        self._operator = operator
        self._fault = fault

    async def create_tokens(self, **words: Any) -> Any:
        return await self._operator.create_tokens(**words)

    async def revoke(self, *, device: str, reason: RevocationReason) -> None:
        del reason
        for serial in {each.serial for each in self._fault.passages if each.identity.name == device}:
            await self._fault.revoke(serial)


@pytest.mark.parametrize(
    ("fault", "failed", "outcome"),
    [
        (OneFault, [], ExitCode.OK),
        (ClosesLate, ["a revocation closes the live session"], ExitCode.SECURITY),
        (ForgetsRevocations, ["no bad device gets in"], ExitCode.SECURITY),
        (IsSlow, ["telemetry flows"], ExitCode.ERROR),
    ],
)
async def test_the_story_of_a_broker_with_one_fault_says_so(
    tmp_path: Path, fault: Callable[[], OneFault], failed: list[str], outcome: ExitCode
) -> None:
    one = fault()
    async with raised(tmp_path, lambda _: None) as stage:
        ca = tmp_path / "provisioning"
        passphrase = (tmp_path / "passphrase").read_bytes()
        issuer = Issuer.load(ca / "issuing-ca.crt", ca / "issuing-ca.key", passphrase)
        async with proxied(stage.broker, issuer, stage.anchors, one) as endpoint:
            operator = cast("EnrolmentOperatorClient", _Operator(stage.operator, one))
            story = _Story(PLAN, replace(stage, broker=endpoint, operator=operator), View())
            await story._play()
    # What a proxy tells bad devices is asked elsewhere.
    found = [each.name for each in story.report.checks if not each.passed]
    assert [name for name in found if name != "every bad device is told why"] == failed
    story.report.judge_machine({"the fleet": 0.0})
    if "every bad device is told why" not in found:
        assert story.report.exit_code is outcome


async def test_what_was_only_late_is_excused_on_a_machine_that_others_hold() -> None:
    from device_sim.report import Report

    report = Report(1, 1)
    report.check("a revocation closes the live session", False, "", security=True, late=True)
    report.judge_machine({"the broker": 0.4})
    assert report.exit_code is ExitCode.INVALID
