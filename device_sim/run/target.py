"""What a run is aimed at: a broker, the fleet's credentials, and what an operator may do there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from device_sim.credentials.fleet_directory import FleetDirectory
from device_sim.link.tls_dial import Endpoint
from device_sim.run.manner import Manner, Share, commander_of, receivers_of
from device_sim.scenario.model import Scenario
from device_sim.scenario.stages import Stage
from provisioning.client.operator import OperatorClient


class Impossible(Exception):
    """The scenario asks for something this target cannot do; the text says which stage, and how it could."""


class NoReceiver(Exception):
    """The run's own backend is not admitted, so nothing can be counted; the text says where and why."""


@dataclass(frozen=True, slots=True)
class Target:
    """A broker and a fleet for it.

    *operator* is None where no service of ours enrolled the fleet, *restart* where the run did not start the broker;
    *broker_name* is for the report.
    """

    broker: Endpoint
    fleet: FleetDirectory
    provisioning_url: str | None = None
    operator: OperatorClient | None = None
    restart: Callable[[], Awaitable[None]] | None = None
    broker_name: str = "unknown"

    def check(self, scenario: Scenario, manner: Manner) -> None:
        """Raise `Impossible` if a stage of *scenario* cannot be done here, or not in this *manner*."""
        for number, stage in enumerate(scenario.stages, 1):
            try:
                self.check_stage(stage)
            except Impossible as error:
                raise Impossible(f"stage {number} ({stage.kind}): {error}") from error
        if self.provisioning_url is None and any(group.renewal is not None for group in scenario.groups):
            raise Impossible("a group that renews its certificates needs our provisioning service: enrol with it")
        there = len(self.fleet.devices)
        if there < scenario.devices:
            fewer = f"--devices {there}, or " if there else ""
            raise Impossible(
                f"{self.fleet.path} has {there} usable devices, the scenario needs {scenario.devices}: use "
                f"{fewer}{self.fleet.adding}"
            )

        self._check_identifiers(scenario, manner)

    def _check_identifiers(self, scenario: Scenario, manner: Manner) -> None:
        """Raise `Impossible` if a device would connect under the run's own client identifier: each ends the other."""
        service = self.fleet.client_id(self.fleet.service)
        own = {commander_of(service, Share(number, manner.workers)): "--workers" for number in range(manner.workers)}
        own |= dict.fromkeys(receivers_of(service, scenario.receivers), "`receivers`")
        for name in self.fleet.devices[: scenario.devices]:
            if (client_id := self.fleet.client_id(name)) in own:
                raise Impossible(
                    f"{name} connects as {client_id}, and so does the run's own backend with so many {own[client_id]}: "
                    "use fewer, or give one of them another client identifier"
                )

    def check_stage(self, stage: Stage) -> None:
        """Raise `Impossible` if *stage* cannot be done here."""
        if stage.kind in {"revoke", "suspend", "renew"} and self.operator is None:
            whence = "was imported" if self.fleet.origin.imported else "is from a CA of your own"
            raise Impossible(
                f"it needs our provisioning service, and this fleet {whence}: "
                "enrol a fleet with --provisioning, or leave the stage out"
            )
        if stage.kind == "restart" and self.restart is None:
            raise Impossible("only a broker of the run's own can be restarted: use --self-hosted")


@asynccontextmanager
async def operator_of(fleet: FleetDirectory) -> AsyncIterator[OperatorClient | None]:
    """Yield a client of the service that enrolled *fleet*; None if there is none."""
    origin = fleet.origin
    if origin.provisioning_url is None or origin.operator is None:
        yield None
        return
    fleet.expect_operator()
    async with OperatorClient(origin.provisioning_url, fleet.anchors, origin.operator) as operator:
        yield operator
