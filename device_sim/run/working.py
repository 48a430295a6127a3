"""What a worker process does: run one part of a fleet, as the conductor says (`dialogue`).

Rules
-----
1. When the conductor ends, the worker ends: when its standard input closes, it cancels whatever it was doing. After its
   last message it waits for that, and then lets its devices disconnect.
2. It reports its state each second, unprompted; standard output carries only the dialogue, logs go to stderr.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack

from device_sim.credentials.fleet_directory import FleetDirectory
from device_sim.fleet.backend import Backend
from device_sim.link.keep_alive import KeepAlive
from device_sim.run import dialogue
from device_sim.run.dialogue import Begin, Change, Close, Ended, Finish, Job, Outcome, Play, Ready, State, Stop, Strayed
from device_sim.run.manner import commander_of
from device_sim.run.part import Part, Strays
from device_sim.run.target import Target, operator_of

_STATE_SECONDS = 1.0
_ACKNOWLEDGEMENTS = "fleet/+/+/ack"


class _Worker:
    """The worker's side of the dialogue."""

    def __init__(self, orders: asyncio.StreamReader, reports: asyncio.StreamWriter) -> None:
        self._orders = orders
        self._reports = reports

    async def run(self) -> None:
        """Follow orders until told to finish or until the conductor is gone."""
        job = await self._next()
        if not isinstance(job, Job):
            raise TypeError(f"a job comes first, not {job!r}")
        async with AsyncExitStack() as stack:
            part = await stack.enter_async_context(await _part(job, stack))
            self._say(Ready())
            async with asyncio.TaskGroup() as tasks:
                reporting: asyncio.Task[None] | None = None
                while True:
                    match await self._next():
                        case Begin() as begin:
                            await part.begin(begin.started)
                            reporting = tasks.create_task(self._report(part), name="report")
                        case Play() as play:
                            tasks.create_task(self._play(part, play), name=f"stage {play.number}")
                        case Stop():
                            part.stop()
                        case Change() as change:
                            part.change(change.rate, change.paused)
                        case Finish():
                            break
                        case other:
                            raise TypeError(f"not now: {other!r}")
                outcome = await part.finish()
                if reporting is not None:
                    reporting.cancel()
            self._say(State(state=part.state()))
            self._say(Outcome(outcome=outcome))
            while not isinstance(await self._next(), Close):
                pass  # It comes too late to stop or to change anything.
            self._say(Strayed(strays=await _strays(part)))
            await self._reports.drain()
            # Devices leave when the conductor has counted: until then nothing may change.
            await self._orders.read()

    async def _play(self, part: Part, play: Play) -> None:
        acted = await part.play(play.number, play.stage)
        self._say(Ended(request=play.request, acted=acted))

    async def _report(self, part: Part) -> None:
        while True:
            await asyncio.sleep(_STATE_SECONDS)
            self._say(State(state=part.state()))

    async def _next(self) -> dialogue.Order:
        text = await self._orders.readline()
        if not text:
            raise EOFError("the conductor is gone")
        return dialogue.order(text)

    def _say(self, said: dialogue.Report) -> None:
        self._reports.write(dialogue.line(said))


async def _strays(part: Part) -> Strays:
    """Return what has strayed to *part* and to its commander: receivers cannot tell which of its answers are due."""
    strays, commander = await part.strays(), part.commander
    if commander is None:
        return strays
    return Strays(strays.altered + commander.altered, strays.unexpected + commander.unexpected)


async def _part(job: Job, stack: AsyncExitStack) -> Part:
    fleet = stack.enter_context(FleetDirectory.read(job.fleet).joined())
    operator = await stack.enter_async_context(operator_of(fleet))
    target = Target(job.broker, fleet, fleet.origin.provisioning_url, operator)
    commander = None
    if any(stage.kind == "command" for stage in job.scenario.stages):
        names = fleet.devices[: job.scenario.devices]  # It also hears what the other parts' devices answer.
        commander = Backend(
            commander_of(fleet.client_id(fleet.service), job.share),
            names,
            mark=job.manner.mark,
            driver=job.manner.driver,
            others=True,
        )
        context = fleet.credential(fleet.service).context(fleet.anchors)
        keep_alive = await stack.enter_async_context(KeepAlive())
        await commander.connect(job.broker, context, keep_alive, (_ACKNOWLEDGEMENTS,))
        stack.push_async_callback(commander.close)
    return Part(job.scenario, target, job.manner, job.share, commander)


async def work() -> None:
    """Talk to the conductor on standard input and output until the end."""
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(dialogue.LONGEST_LINE)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sys.stdout)
    reports = asyncio.StreamWriter(transport, protocol, None, loop)
    try:
        await _Worker(orders, reports).run()
    finally:
        reports.close()
