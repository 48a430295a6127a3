"""A device that answers commands as real ones do: late, with a refusal now and then, or not at all."""

from __future__ import annotations

from dataclasses import dataclass

from device_sim.behaviour.behaviour import Acting, Answering, Behaviour, Outcome
from device_sim.randomness import randomness_of
from device_sim.scenario.groups import Commands


@dataclass(frozen=True, slots=True)
class Responding(Behaviour):
    """It answers commands late, badly or not at all; see `device_sim.scenario.groups.Commands`."""

    commands: Commands

    def answering(self, device: Acting, seed: int, number: int) -> Answering:
        """Return how it answers this one."""
        source = randomness_of(seed, device.name, f"command {number}")
        drawn, commands = source.random(), self.commands
        if drawn < commands.ignore:
            return Answering(commands.delay, Outcome.IGNORED)
        if drawn < commands.ignore + commands.refuse:
            return Answering(commands.delay, Outcome.REFUSED)
        return Answering(commands.delay)
