"""Plugins from start to end: one that does not start ends the broker's start, and none keeps it from ending."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Coroutine
from typing import Any

import pytest
from amqtt.contexts import BaseContext
from amqtt.plugins.base import BaseAuthPlugin, BasePlugin, BaseTopicPlugin

from broker.metrics import Metrics
from broker.plugins import plugin_set as starting
from broker.plugins import watch
from broker.plugins.errors import PluginError
from broker.plugins.loading import Wanted
from broker.plugins.logs import Outcomes
from broker.plugins.plugin_set import PluginSet
from broker.plugins.watch import Watch


class Hears(BasePlugin[BaseContext]):
    """Writes down what it hears, and does what its subclass says."""

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self.heard: list[str] = []

    async def on_broker_pre_shutdown(self) -> None:
        self.heard.append("stop")

    async def on_broker_post_shutdown(self) -> None:
        self.heard.append("stopped")

    async def close(self) -> None:
        self.heard.append("close")


async def never_enough() -> None:
    for _ in range(5):  # So that a test that fails ends, too.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


class Deaf(Hears):
    """Catches its cancellation, and goes on."""

    async def on_broker_pre_start(self) -> None:
        await never_enough()


class DeafLater(Hears):
    async def on_broker_post_start(self) -> None:
        await never_enough()


class Belated(Hears):
    """Has started when its time is over."""

    async def on_broker_pre_start(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


class DeafToTheEnd(Hears):
    """Catches its cancellation whatever it is told at the end."""

    async def on_broker_pre_shutdown(self) -> None:
        await never_enough()

    async def on_broker_post_shutdown(self) -> None:
        await never_enough()

    async def close(self) -> None:
        await never_enough()


class Exits(Hears):
    async def on_broker_pre_start(self) -> None:
        sys.exit()


class Cancels(Hears):
    async def on_broker_pre_start(self) -> None:
        waits = asyncio.ensure_future(asyncio.Event().wait())
        waits.cancel()
        await waits


class ExitsAtOnce(Hears):
    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        sys.exit()


def plugin_set_of(*plugins: type[BasePlugin[Any]], patience: float = 30.0) -> PluginSet:
    outcomes = Outcomes(Metrics(), asyncio.get_running_loop().time)
    wanted = [Wanted(f"fleet_plugins.{each.__name__}", each, None) for each in plugins]
    return PluginSet(wanted, BaseContext(), outcomes, Watch(Metrics(), outcomes), lambda: 100, patience)


async def ended(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Return the task of *work*, which must end; fail if it does not."""
    task = asyncio.create_task(work)
    done, _ = await asyncio.wait({task}, timeout=30)
    while not task.done():  # It does not end by itself.
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)
    assert done
    return task


async def started(plugin_set: PluginSet) -> None:
    await plugin_set.pre_start()
    await plugin_set.post_start()


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        (Deaf, "Deaf: on_broker_pre_start has not returned within 0.05 s; do in a task of its own what takes longer"),
        (DeafLater, "DeafLater: on_broker_post_start has not returned within 0.05 s; "),
        (Belated, "Belated: on_broker_pre_start has not returned within 0.05 s; "),
        (Exits, "Exits: on_broker_pre_start has failed: SystemExit: ; correct its configuration, or leave it out"),
        (Cancels, "Cancels: on_broker_pre_start has failed: CancelledError: ; correct its configuration, or leave"),
    ],
)
async def test_a_plugin_that_does_not_start_ends_the_start_and_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, plugin: type[BasePlugin[Any]], said: str
) -> None:
    monkeypatch.setattr(watch, "_CLEANING", 0.05)
    monkeypatch.setattr(starting, "_AT_START", 0.05)
    plugin_set = plugin_set_of(plugin)
    failed = (await ended(started(plugin_set))).exception()
    assert isinstance(failed, PluginError)
    assert str(failed).startswith(f"plugins: fleet_plugins.{said}")
    await plugin_set.close()
    assert plugin_set.plugins[0].heard == ["stop", "stopped", "close"]


async def test_a_start_that_is_stopped_ends_though_a_plugin_catches_its_cancellation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "_CLEANING", 0.05)
    starts = asyncio.create_task(plugin_set_of(Deaf).pre_start())

    async def stop() -> None:
        await asyncio.sleep(0)
        starts.cancel()
        await asyncio.wait({starts})

    await ended(stop())
    assert starts.cancelled()


async def test_a_plugin_that_would_end_the_program_as_it_is_created_is_named() -> None:
    with pytest.raises(PluginError, match=r"plugins: fleet_plugins\.ExitsAtOnce cannot be started: SystemExit"):
        plugin_set_of(ExitsAtOnce)


@pytest.mark.parametrize("error", [None, LookupError, SystemExit])
async def test_all_plugins_are_closed_whatever_one_does_that_is_told_of_something_then(
    error: type[BaseException] | None,
) -> None:
    """One that catches its cancellation, and returns or raises something else, has not ended the task that calls it."""

    class Busy(Hears):
        async def on_broker_client_unsubscribed(self, **_: object) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if error is not None:
                    raise error from None

    plugin_set = plugin_set_of(Hears, Busy, patience=0.05)
    await plugin_set.pre_start()
    for _ in range(2):  # The second is under way when the plugin's time is over.
        plugin_set.tell("broker_client_unsubscribed", client_id="meter-1", topic="t")
    await asyncio.sleep(0)
    (await ended(plugin_set.close())).result()
    assert [plugin.heard for plugin in plugin_set.plugins] == [["stop", "stopped", "close"]] * 2


class Filters(BaseTopicPlugin):
    """Is asked about topics."""


class Asked(BaseAuthPlugin):
    async def on_broker_client_connected(self, **_: object) -> None: ...


class AsksForMessages(Hears):
    async def on_broker_message_received(self, **_: object) -> None: ...


class NotAsync(Hears):
    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self.on_broker_client_connected = self.heard.clear


async def test_each_plugin_has_its_own_configuration_and_logger() -> None:
    outcomes = Outcomes(Metrics(), asyncio.get_running_loop().time)
    wanted = [Wanted("fleet_plugins.Hears", Hears, "first"), Wanted("fleet_plugins.Asked", Asked, "second")]
    plugin_set = PluginSet(wanted, BaseContext(), outcomes, Watch(Metrics(), outcomes), lambda: 100, 30.0)
    assert [(each.context.config, each.context.logger.name) for each in plugin_set.plugins] == [
        ("first", "fleetgate.plugins.Hears"),
        ("second", "fleetgate.plugins.Asked"),
    ]


async def test_an_operator_sees_what_each_plugin_is_asked_and_told_and_how_much_of_it_waits() -> None:
    plugin_set = plugin_set_of(Asked, Filters, Hears)
    for _ in range(2):
        plugin_set.tell("broker_client_connected", client_id="meter-1", client_session=None)
    assert plugin_set.describe() == [
        {
            "path": "fleet_plugins.Asked",
            "hooks": ["authenticate", "broker_client_connected"],
            "events_waiting": 2,
        },
        {
            "path": "fleet_plugins.Filters",
            "hooks": ["topic_filtering"],
            "events_waiting": 0,
        },
        {
            "path": "fleet_plugins.Hears",
            "hooks": ["broker_post_shutdown", "broker_pre_shutdown"],
            "events_waiting": 0,
        },
    ]


async def test_publishers_wait_for_a_plugin_that_is_told_of_messages_and_for_no_other() -> None:
    plugin_set = plugin_set_of(Asked, AsksForMessages)
    assert (plugin_set.looks_at_messages, plugin_set_of(Asked).looks_at_messages) == (True, False)
    for _ in range(100):
        plugin_set.tell("broker_client_connected", client_id="meter-1", client_session=None)
    assert plugin_set.holding() == []
    for _ in range(100):
        plugin_set.tell("broker_message_received", client_id="meter-1", message=None)
    assert plugin_set.holding() == [plugin_set.members[1].events]


async def test_a_plugin_is_told_once_that_the_broker_stops_and_if_it_was_not_told_of_the_start_not_at_all() -> None:
    plugin_set = plugin_set_of(Hears, Exits, Hears)
    with pytest.raises(PluginError):
        await plugin_set.pre_start()
    await plugin_set.pre_shutdown()
    await plugin_set.close()
    told = ["stop", "stopped", "close"]
    assert [plugin.heard for plugin in plugin_set.plugins] == [told, told, ["close"]]


async def test_the_others_are_told_of_the_end_though_one_never_has_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "_CLEANING", 0.05)
    plugin_set = plugin_set_of(DeafToTheEnd, Hears, patience=0.05)
    await plugin_set.pre_start()
    (await ended(plugin_set.close())).result()
    assert plugin_set.plugins[1].heard == ["stop", "stopped", "close"]


async def test_events_that_nobody_delivers_any_more_are_not_waited_for() -> None:
    plugin_set = plugin_set_of(Asked, patience=300.0)
    plugin_set.tell("broker_client_connected", client_id="meter-1", client_session=None)
    (await ended(plugin_set.close())).result()


async def test_a_handler_that_only_an_instance_has_must_be_a_coroutine_too() -> None:
    with pytest.raises(PluginError, match=r"NotAsync: on_broker_client_connected must be defined with 'async def'"):
        plugin_set_of(NotAsync)


async def test_no_memory_for_events_is_the_event_loops_which_ends_the_process() -> None:
    """The plugin heard nothing more, and nobody was told: its task was looked at when the broker stopped."""

    def fail() -> None:
        raise MemoryError

    class Listens(Hears):
        async def on_broker_client_connected(self, client_id: str, client_session: object) -> None: ...

    met, told = list[object](), asyncio.Event()

    def meet(_loop: object, context: dict[str, Any]) -> None:
        met.append(type(context["exception"]))
        told.set()

    asyncio.get_running_loop().set_exception_handler(meet)
    plugin_set = plugin_set_of(Listens, patience=0.1)
    await plugin_set.pre_start()
    (member,) = plugin_set.members
    member.events.when_room(fail)
    plugin_set.tell("broker_client_connected", client_id="meter-1", client_session=None)
    async with asyncio.timeout(60):
        await told.wait()
    assert met == [MemoryError]
    await plugin_set.close()
