"""One plugin's events: they wait in a bounded queue, and are delivered one after the other.

Theory
------
amqtt starts a task per event and plugin, without bound or order. Here each plugin has one task that handles its events
in order. A plugin that is slow, hangs or raises only affects itself: an event that takes longer than the time-out is
abandoned, an exception is logged, and the next event follows.

Rules
-----
1. At most `most` events wait. While the queue is full, publishers are held (`holds`), until there is room or one gives
   up (`give_up`): then what does not fit is dropped and counted, until half of the queue is empty.
2. A call is cancelled when its time is over. What it has done by then stays done.
3. After some milliseconds of events others have a turn of the event loop: a plugin that waits for nothing would
   otherwise handle ten thousand in one.
4. Whatever a plugin raises stays there, including an exit of the program and a cancellation of its own.
5. `drained` waits until all waiting events are delivered, so that a plugin sees the end; then the plugin is closed,
   with the same time-out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from broker.admission.refusal import RefusalCode
from broker.plugins.errors import is_a_plugin_s
from broker.plugins.logs import Outcomes, resume
from broker.plugins.watch import Watch

_SECONDS_A_TURN: Final = 0.005

Handler = Callable[..., Coroutine[Any, Any, object]]
"""A method of a plugin, defined with ``async def``."""


class PluginEvents:
    """The events for one plugin."""

    def __init__(
        self,
        name: str,
        handlers: Mapping[str, Handler],
        most: Callable[[], int],
        patience: float,
        outcomes: Outcomes,
        watch: Watch,
    ) -> None:
        """Deliver events to the plugin *name* through *handlers*, each within *patience* seconds."""
        self.name = name
        self.handlers = handlers
        self._most = most
        self._patience = patience
        self._outcomes = outcomes
        self._watch = watch
        self._waiting: deque[tuple[str, Mapping[str, Any]]] = deque()
        self._news = asyncio.Event()
        self._given_up = False
        self._room: list[Callable[[], None]] = []
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether there is no room for another event."""
        return len(self._waiting) >= self._most()

    @property
    def holds(self) -> bool:
        """Whether sources of events should wait."""
        return self.full and not self._given_up

    def give_up(self) -> None:
        """Hold nobody until half of the queue is empty."""
        self._given_up = self.full

    def when_room(self, call: Callable[[], None]) -> None:
        """Call *call* when there is room again."""
        self._room.append(call)

    def tell(self, event: str, **facts: Any) -> None:
        """Queue *event* for the plugin, if it wants it."""
        if event not in self.handlers:
            return
        if self.full:
            self._dropped("plugin event dropped", hook=event)
            return
        self._waiting.append((event, facts))
        self._idle.clear()
        self._news.set()

    async def run(self) -> None:
        """Deliver waiting events, until cancelled."""
        clock, spent = asyncio.get_running_loop().time, 0.0
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                event, facts = self._waiting.popleft()
                if 2 * len(self._waiting) <= self._most():
                    self._given_up = False
                if self._room and not self.full:
                    room, self._room = self._room, []
                    for call in room:
                        resume(call)
                begun = clock()
                await self.call(event, self.handlers[event], **facts)
                spent += clock() - begun
                if spent >= _SECONDS_A_TURN:
                    spent = 0.0
                    await asyncio.sleep(0)
            self._idle.set()

    async def call(self, event: str, handler: Handler, **facts: Any) -> None:
        """Call *handler* and wait for it, within the time-out."""
        patience = asyncio.timeout(self._patience)
        try:
            async with patience:
                await self._watch.watched(self.name, event, handler(**facts))
        except BaseException as error:
            if not is_a_plugin_s(error):
                raise
            text = f"plugin: not ended in {self._patience:g} s" if patience.expired() else "plugin has raised"
            self._outcomes.tell(RefusalCode.PLUGIN_FAILED, self.name, text, error, hook=event)

    async def drained(self) -> None:
        """Wait until all waiting events are delivered, at most as long as one event may take."""
        try:
            async with asyncio.timeout(self._patience):
                await self._idle.wait()
        except TimeoutError:
            self._dropped("plugin events dropped at the end", waiting=len(self))
            self._waiting.clear()

    def _dropped(self, text: str, **facts: str | int) -> None:
        self._outcomes.tell(code="PLUGIN_EVENT_DROPPED", plugin=self.name, text=text, error=None, **facts)
