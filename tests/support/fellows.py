"""Several workers' places in one process, with the sockets through which they ask each other."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager

from provisioning.config import Settings
from provisioning.connections.listening import bound_for
from provisioning.service.fellow_workers import Answer, FellowWorkers
from provisioning.service.living_workers import LivingWorkers
from provisioning.service.worker_place import WorkerPlace


@asynccontextmanager
async def workers(*answers: Mapping[str, Answer], silent: int | None = None) -> AsyncIterator[list[FellowWorkers]]:
    """Yield a worker for each of *answers*; all but *silent* read their inboxes."""
    with ExitStack() as stack:
        places = stack.enter_context(bound_for(Settings(port=0, http_port=0), len(answers)))
        boxes = []
        for _ in answers:
            boxes.append(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
            for end in boxes[-1]:
                end.setblocking(False)
                stack.enter_context(end)
        control = stack.enter_context(socket.socket())
        living = stack.enter_context(contextlib.closing(LivingWorkers()))
        made = []
        for number, own in enumerate(answers, 1):
            others = {other: box[1] for other, box in enumerate(boxes, 1) if other != number}
            place = WorkerPlace(number, 1, places[number - 1], control, boxes[number - 1][0], others, living)
            made.append(FellowWorkers(place, own))
        running = [asyncio.create_task(each.run()) for each in made if each.place.number != silent]
        try:
            yield made
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
