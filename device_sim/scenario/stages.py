"""The stages of a scenario: what happens to the fleet, in sequence, under traffic."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from device_sim.scenario.pacer import Spread
from device_sim.scenario.values import Bytes, Pause, Rate, ScenarioPart, Seconds, Share
from device_sim.trouble.trouble import NONE, Direction
from device_sim.trouble.trouble import Trouble as TroubleState
from provisioning.pki.revocation_reason import RevocationReason


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
    """The share *drop* of the connections breaks within a short time; the devices reconnect with their own backoff."""

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


class Suspend(ScenarioPart):
    """An operator suspends the share *select*, *rate* a second, and resumes each after *seconds*: it must get in again.

    In between it must be disconnected; *deadline* applies to closing its session, and to its readmission.
    """

    kind: Literal["suspend"] = "suspend"
    select: Share
    rate: Rate = 10.0
    seconds: Seconds = 2.0
    deadline: Seconds = 5.0


class Trouble(ScenarioPart):
    """The network of *groups* is in trouble for *seconds*; the other fields are those of `device_sim.trouble`.

    Without *groups*: of all groups but probes. Bandwidth is in bytes per second of each connection.
    """

    kind: Literal["trouble"] = "trouble"
    seconds: Seconds
    groups: list[str] = Field(default_factory=list)
    latency: Pause = 0.0
    jitter: Pause = 0.0
    bandwidth: Bytes | None = None
    slice_bytes: Bytes | None = None
    slice_pause: Pause = 0.0
    blackhole: bool = False
    reset: bool = False
    half_open: bool = False
    direction: Direction = Direction.BOTH
    settle: Seconds = 60.0

    @model_validator(mode="after")
    def _troubled(self) -> Self:
        if self.state() == NONE:
            raise ValueError("a trouble that is none: say latency, bandwidth, blackhole, reset, …")
        return self

    def state(self) -> TroubleState:
        """Return the state of the network. Raises `ValueError` if it is impossible."""
        return TroubleState(
            self.latency,
            self.jitter,
            self.bandwidth,
            self.slice_bytes,
            self.slice_pause,
            self.blackhole,
            self.reset,
            self.half_open,
            self.direction,
        )


class Renew(ScenarioPart):
    """The share *select* of the devices renews its certificate with a new key and reconnects, *rate* a second."""

    kind: Literal["renew"] = "renew"
    select: Share
    rate: Rate = 10.0


class Command(ScenarioPart):
    """The backend sends the share *select* of the devices a command, *rate* a second.

    *asleep*: to those that are asleep with a kept session; the time until the answer is not measured.
    """

    kind: Literal["command"] = "command"
    asleep: bool = False
    select: Share = 1.0
    rate: Rate = 100.0
    deadline: Seconds = 10.0


class Restart(ScenarioPart):
    """The broker is stopped and started again; only if the run has started it itself (``--self-hosted``)."""

    kind: Literal["restart"] = "restart"
    settle: Seconds = 60.0


Stage = Annotated[
    Ramp | Hold | Storm | Revoke | Suspend | Renew | Command | Restart | Trouble, Field(discriminator="kind")
]
KINDS = ("ramp", "hold", "storm", "revoke", "suspend", "renew", "command", "restart", "trouble")
