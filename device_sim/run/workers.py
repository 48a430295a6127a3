"""Worker processes as the conductor sees them: parts of the fleet in other processes.

Rules
-----
1. A worker that ends before it was told to is an error that includes the end of its log.
2. Leaving the context leaves no worker behind (`device_sim.stage.processes`). Their logs are gone then; a killed
   conductor's at the start of the next one (`device_sim.stage.workplace`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from device_sim.run import dialogue
from device_sim.run.dialogue import Begin, Change, Close, Ended, Finish, Job, Outcome, Play, Ready, State, Stop, Strayed
from device_sim.run.manner import Manner, Share
from device_sim.run.part import PartOutcome, PartState, Strays
from device_sim.run.stages import Acted
from device_sim.run.target import Target
from device_sim.scenario.metrics import Duration
from device_sim.scenario.model import Scenario
from device_sim.scenario.stages import Stage
from device_sim.stage.processes import Child, talking
from device_sim.stage.workplace import workplace

_GOODBYE_DEADLINE = 30.0


class RemotePart:
    """A part in a worker. Created by `workers`."""

    def __init__(self, child: Child, share: Share) -> None:
        self.share = share
        self._child = child
        self._ready = asyncio.Event()
        self._requests = itertools.count(1)
        self._playing: dict[int, asyncio.Future[Acted]] = {}
        self._outcome: asyncio.Future[PartOutcome] = asyncio.get_running_loop().create_future()
        self._strays: asyncio.Future[Strays] = asyncio.get_running_loop().create_future()
        self._state: PartState | None = None
        self._known = asyncio.Event()

    async def prepare(self, job: Job) -> None:
        """Give the worker its job, and wait until it has its devices."""
        self._say(job)
        await self._ready.wait()

    async def begin(self, started: float) -> None:
        """Let its fleet publish, and wait for its first state."""
        self._say(Begin(started=started))
        await self._known.wait()

    async def play(self, number: int, stage: Stage) -> Acted:
        """Play one stage to its end; return what came of it."""
        request = next(self._requests)
        ended: asyncio.Future[Acted] = asyncio.get_running_loop().create_future()
        self._playing[request] = ended
        self._say(Play(request=request, number=number, stage=stage))
        return await ended

    def stop(self) -> None:
        """End stages early."""
        self._say(Stop())

    def change(self, rate: float | None, paused: bool | None) -> None:
        """Let the fleet publish more, less, or nothing for a while."""
        self._say(Change(rate=rate, paused=paused))

    async def finish(self) -> PartOutcome:
        """Stop publishing, wait for what is in flight, and return what was observed."""
        self._say(Finish())
        return await self._outcome

    async def strays(self) -> Strays:
        """Return what has come, by now, that should not have; nothing may be asked of it afterwards."""
        self._say(Close())
        return await self._strays

    def state(self) -> PartState:
        """Return the state since the last call."""
        state = self._state
        if state is None:
            raise RuntimeError("begin() comes first")
        self._state = PartState(
            state.connected, state.told, state.published, state.lost_connections, state.revoked, state.done,
            state.refused, {}, state.health,
        )  # fmt: skip
        return state

    async def leave(self) -> None:
        """Let its devices disconnect, and wait for the worker's end."""
        await self._child.end(_GOODBYE_DEADLINE)

    async def listen(self) -> None:
        """Process the worker's messages until it closes its output."""
        async for text in self._child.lines():
            match dialogue.report(text):
                case Ready():
                    self._ready.set()
                case Ended() as ended:
                    self._playing.pop(ended.request).set_result(ended.acted)
                case State() as report:
                    self._take(report.state)
                case Outcome() as report:
                    self._outcome.set_result(report.outcome)
                case Strayed() as report:
                    self._strays.set_result(report.strays)
                    return
        await self._child.watch()

    def _take(self, state: PartState) -> None:
        if self._state is not None:
            # Two states within one of the conductor's seconds: no measurement is dropped.
            merged: dict[Duration, list[float]] = {}
            for windows in (self._state.windows, state.windows):
                for metric, values in windows.items():
                    merged.setdefault(metric, []).extend(values)
            state.windows = merged
        self._state = state
        self._known.set()

    def _say(self, said: dialogue.Order) -> None:
        self._child.say(dialogue.line(said))


@asynccontextmanager
async def workers(
    scenario: Scenario, target: Target, manner: Manner, said: Callable[[str], None]
) -> AsyncIterator[list[RemotePart]]:
    """Start ``manner.workers`` workers, and wait until all have their devices.

    *said* is told what a command that was killed had left.
    """
    with workplace("workers", said) as logs:
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as listening:
            parts, jobs = [], []
            for number in range(manner.workers):
                share = Share(number, manner.workers)
                name = f"worker {number + 1}"
                log = logs / f"worker-{number + 1}.log"
                child = await stack.enter_async_context(
                    talking(name, ["device_sim.run.worker"], log=log, longest_line=dialogue.LONGEST_LINE)
                )
                part = RemotePart(child, share)
                parts.append(part)
                jobs.append(
                    Job(scenario=scenario, fleet=target.fleet.path, broker=target.broker, manner=manner, share=share)
                )
            tasks = [listening.create_task(part.listen(), name="listen") for part in parts]
            await asyncio.gather(*(part.prepare(job) for part, job in zip(parts, jobs, strict=True)))
            yield parts
            for task in tasks:
                task.cancel()
            await asyncio.gather(*(part.leave() for part in parts))
