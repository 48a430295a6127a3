"""The plugins of one broker, from start to end: created, started, told of events, stopped, closed.

Rules
-----
1. A plugin that cannot be created, or raises in ``on_broker_pre_start`` or ``on_broker_post_start``, ends the broker's
   start: half a configuration does not run. After that, whatever a plugin does only affects itself.
2. At the end each plugin is told that the broker stops (`pre_shutdown`), then the remaining events, then that it has
   stopped (`post_shutdown`), and is closed; each step has the same time-out. The same happens if the start fails or is
   cancelled; a plugin that had not been told of the start by then is only closed.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Callable, Sequence
from inspect import iscoroutinefunction
from typing import Any

from amqtt.contexts import BaseContext
from amqtt.events import BrokerEvents, MQTTEvents
from amqtt.plugins.base import BaseAuthPlugin, BasePlugin, BaseTopicPlugin

from broker.plugins.errors import PluginError, is_a_plugin_s
from broker.plugins.events import Handler, PluginEvents
from broker.plugins.loading import Wanted
from broker.plugins.logs import LOGGER, Outcomes
from broker.plugins.watch import Watch
from provisioning.program.out_of_memory import told

_AT_START = 30.0
"""Seconds for one plugin to start: it may create a database, or ask a service."""
_MESSAGES = frozenset({BrokerEvents.MESSAGE_RECEIVED, BrokerEvents.MESSAGE_BROADCAST})
_PACKETS = frozenset({MQTTEvents.PACKET_RECEIVED, MQTTEvents.PACKET_SENT})


class Member:
    """One plugin, and the events for it."""

    def __init__(self, path: str, plugin: BasePlugin[Any], events: PluginEvents) -> None:
        self.path = path
        self.plugin = plugin
        self.events = events

    @property
    def kinds(self) -> list[str]:
        """The kinds of questions and events it takes."""
        kinds = ["authenticate"] if isinstance(self.plugin, BaseAuthPlugin) else []
        kinds += ["topic_filtering"] if isinstance(self.plugin, BaseTopicPlugin) else []
        return kinds + sorted(self.events.handlers)


class PluginSet:
    """All plugins."""

    def __init__(
        self,
        wanted: Sequence[Wanted],
        context: BaseContext,
        outcomes: Outcomes,
        watch: Watch,
        most_events: Callable[[], int],
        patience: float,
    ) -> None:
        """Create the plugins that are *wanted*, each with a copy of *context*. Raises `PluginError`."""
        context.loop = asyncio.get_running_loop()
        self.members: list[Member] = []
        for each in wanted:
            own = copy.copy(context)
            own.logger = logging.getLogger(f"{LOGGER}.{each.name}")
            with watch.during(each.name, "__init__"):
                plugin = each.make(own)
            events = PluginEvents(each.name, _handlers(each.path, plugin), most_events, patience, outcomes, watch)
            self.members.append(Member(each.path, plugin, events))
        self.looks_at_messages = any(_MESSAGES & member.events.handlers.keys() for member in self.members)
        self.looks_at_packets = any(_PACKETS & member.events.handlers.keys() for member in self.members)
        self._watch = watch
        self._begun: list[Member] = []
        """The plugins that have been, or are being, told that the broker is about to listen."""
        self._parting = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def plugins(self) -> list[BasePlugin[Any]]:
        """The plugins themselves."""
        return [member.plugin for member in self.members]

    def describe(self) -> list[dict[str, object]]:
        """Return which plugins there are, for operators."""
        return [{"path": m.path, "hooks": m.kinds, "events_waiting": len(m.events)} for m in self.members]

    def tell(self, event: str, **facts: Any) -> None:
        """Tell each plugin that wants it about *event*."""
        for member in self.members:
            member.events.tell(event, **facts)

    def holding(self) -> list[PluginEvents]:
        """Return the queues for which publishers should wait."""
        return [m.events for m in self.members if m.events.holds and _MESSAGES & m.events.handlers.keys()]

    async def pre_start(self) -> None:
        """Tell that the broker is about to listen. Raises `PluginError`."""
        await self._start(BrokerEvents.PRE_START)
        self._tasks = [told(asyncio.create_task(member.events.run())) for member in self.members]

    async def post_start(self) -> None:
        """Tell that the broker listens. Raises `PluginError`."""
        await self._start(BrokerEvents.POST_START)

    async def _start(self, event: BrokerEvents) -> None:
        for member in self.members:
            if event is BrokerEvents.PRE_START:
                self._begun.append(member)
            handler = member.events.handlers.get(event)
            if handler is None:
                continue
            try:
                async with asyncio.timeout(_AT_START) as patience:
                    await self._watch.watched(member.events.name, event, handler())
            except BaseException as error:
                if not is_a_plugin_s(error):
                    raise
                if patience.expired():
                    raise PluginError(
                        f"plugins: {member.path}: on_{event} has not returned within {_AT_START:g} s; do in a task of "
                        "its own what takes longer, or leave it out"
                    ) from error
                raise PluginError(
                    f"plugins: {member.path}: on_{event} has failed: {type(error).__name__}: {error}; correct its "
                    "configuration, or leave it out"
                ) from error

    async def pre_shutdown(self) -> None:
        """Tell that the broker is about to stop."""
        self._parting = True
        await self._each(BrokerEvents.PRE_SHUTDOWN)

    async def close(self) -> None:
        """Deliver the remaining events, then report that the broker has stopped, and close every plugin."""
        if not self._parting:
            await self.pre_shutdown()
        await asyncio.gather(*(member.events.drained() for member in self.members if self._tasks))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._each(BrokerEvents.POST_SHUTDOWN)
        await asyncio.gather(*(member.events.call("close", member.plugin.close) for member in self.members))

    async def _each(self, event: BrokerEvents) -> None:
        calls = [(m.events, m.events.handlers[event]) for m in self._begun if event in m.events.handlers]
        await asyncio.gather(*(events.call(event, handler) for events, handler in calls))


def _handlers(path: str, plugin: BasePlugin[Any]) -> dict[str, Handler]:
    """Return the handlers of *plugin*, by event."""
    found: dict[str, Handler] = {}
    for event in (*BrokerEvents, *MQTTEvents):
        handler = getattr(plugin, f"on_{event}", None)
        if handler is not None:
            if not iscoroutinefunction(handler):
                raise PluginError(f"plugins: {path}: on_{event} must be defined with 'async def'")
            found[str(event)] = handler
    return found
