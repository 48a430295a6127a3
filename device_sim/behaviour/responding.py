"""A device that answers commands as real ones do: late, with a refusal now and then, or not at all."""

from __future__ import annotations

from dataclasses import dataclass

from device_sim.behaviour.behaviour import Acting, Answering, Behaviour, Outcome
from device_sim.randomness import randomness_of
from device_sim.scenario.groups import Commands


@dataclass(frozen=True, slots=True)
class Responding(Behaviour):
    """It answers commands late, with a refusal or not at all; see `device_sim.scenario.groups.Commands`."""

    commands: Commands

    def answering(self, device: Acting, seed: int, number: int) -> Answering:
        """Return how *device* answers this command."""
        return Answering(self.commands.delay, self.drawn(device.name, seed, number))

    def drawn(self, device: str, seed: int, number: int) -> Outcome:
        """Return how *device* responds to its *number*-th command."""
        drawn = randomness_of(seed, device, f"command {number}").random()
        if drawn < self.commands.ignore:
            return Outcome.IGNORED
        return Outcome.REFUSED if drawn < self.commands.ignore + self.commands.refuse else Outcome.DONE
