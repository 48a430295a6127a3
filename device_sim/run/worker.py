"""A worker process. Started by `workers` only."""

from __future__ import annotations

import asyncio

from provisioning.program.starting import importing

with importing():
    import uvloop

    from device_sim.run.working import work

if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())
