"""The stages of a scenario: what happens to the fleet, one after the other, under traffic."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from device_sim.scenario.pacer import Spread
from device_sim.scenario.values import Pause, Rate, ScenarioPart, Seconds, Share
from provisioning.pki.revocation import RevocationReason


class Ramp(ScenarioPart):
    """Devices connect, *rate* a second, until the share *to* of the fleet has been told to."""

    kind: Literal["ramp"] = "ramp"
    to: Share = 1.0
    rate: Rate
    spread: Spread = Spread.EVEN


class Hold(ScenarioPart):
    """Nothing changes for *seconds*."""

    kind: Literal["hold"] = "hold"
    seconds: Seconds


class Storm(ScenarioPart):
    """The share *drop* of the connections breaks within a short time; the devices come back by their own backoff."""

    kind: Literal["storm"] = "storm"
    drop: Share = 1.0
    within: Pause = 0.0
    settle: Seconds = 60.0


class Revoke(ScenarioPart):
    """An operator revokes the share *select* of the connected devices, *rate* a second; each then tries again."""

    kind: Literal["revoke"] = "revoke"
    select: Share
    rate: Rate = 10.0
    reason: RevocationReason = RevocationReason.KEY_COMPROMISE
    deadline: Seconds = 5.0


class Renew(ScenarioPart):
    """The share *select* of the devices renews its certificate with a new key and reconnects, *rate* a second."""

    kind: Literal["renew"] = "renew"
    select: Share
    rate: Rate = 10.0


class Command(ScenarioPart):
    """The backend sends the share *select* of the devices a command, *rate* a second."""

    kind: Literal["command"] = "command"
    select: Share = 1.0
    rate: Rate = 100.0
    deadline: Seconds = 10.0


class Restart(ScenarioPart):
    """The broker is stopped and started again; only where the run has started it itself (``--self-hosted``)."""

    kind: Literal["restart"] = "restart"
    settle: Seconds = 60.0


Stage = Annotated[Ramp | Hold | Storm | Revoke | Renew | Command | Restart, Field(discriminator="kind")]
KINDS = ("ramp", "hold", "storm", "revoke", "renew", "command", "restart")
