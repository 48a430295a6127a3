"""The parameters of the demo: how many devices, for how long, and the seed that determines everything else.

About a thousand messages a second are published, whatever the number of devices: fewer devices publish more often, up
to a bound. The seed determines which devices are revoked; some always remain.
"""

from __future__ import annotations

from dataclasses import dataclass

from device_sim.randomness import randomness_of

_MESSAGES_A_SECOND = 1000.0
_SHORTEST_INTERVAL = 0.2
_REVOKED = 5


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What the user chose."""

    devices: int = 200
    seconds: float = 15.0
    seed: int = 42

    @property
    def names(self) -> list[str]:
        """The names of the devices."""
        return [f"meter-{number:04d}" for number in range(1, self.devices + 1)]

    @property
    def interval(self) -> float:
        """How often each device publishes, in seconds."""
        return max(_SHORTEST_INTERVAL, self.devices / _MESSAGES_A_SECOND)

    @property
    def to_revoke(self) -> list[str]:
        """The devices that will be revoked: never all of them."""
        source = randomness_of(self.seed, "demo", "revoke")
        return sorted(source.sample(self.names, min(_REVOKED, self.devices - 1)))
