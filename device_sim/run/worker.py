"""A worker process. Started by `workers` only."""

from __future__ import annotations

import asyncio

from provisioning.program.starting import importing

with importing():
    from device_sim.run.working import work
    from provisioning.program.event_loop import new_event_loop

if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(work())
