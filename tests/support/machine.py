"""A machine that is as busy as a test says, for `fleet-sim qualify`: what stand and device wait is not measured."""

from __future__ import annotations

from device_sim.qualify.starvation import Waited, Watch


class Quiet(Watch):
    """Nobody waits for a core: whatever is slow is slow by itself."""

    seconds = 0.0

    @property
    def waited(self) -> Waited:
        """What the test says; a stage is as long as it is."""
        return Waited(self.seconds, super().waited.elapsed)


class Busy(Quiet):
    """Others hold every core."""

    seconds = 1000.0
