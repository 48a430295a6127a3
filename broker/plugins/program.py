"""Plugins in the broker's process: from its settings, through its life, to their end. The entry point of the package.

Rules
-----
1. This module, and with it amqtt, is imported only if the setting ``plugins`` is not empty.
2. Plugins are created before the store is opened, and told of the start after that, before anything listens; an error
   in either ends the start. What they retain or publish then is stored. They are closed after the last client has left,
   and before the store is closed; also when the start fails.
"""

from __future__ import annotations

import asyncio

import structlog

from broker.engine.engine import Engine
from broker.plugins.context import HostedContext
from broker.plugins.host import PluginHost
from broker.plugins.loading import find_plugin
from broker.plugins.logs import Outcomes, forward_logs
from broker.plugins.plugin_set import PluginSet
from broker.plugins.questions import Questions
from broker.plugins.watch import Watch
from broker.settings.config import BrokerConfig

log = structlog.get_logger("broker")

_SWEEP_SECONDS = 60.0


class Plugins:
    """The plugins of one process."""

    def __init__(self, plugin_set: PluginSet, questions: Questions, host: PluginHost, watch: Watch) -> None:
        self._watch = watch
        self._plugin_set = plugin_set
        self._questions = questions
        self._host = host

    @classmethod
    def attached(cls, config: BrokerConfig, engine: Engine) -> Plugins:
        """Create the plugins of *config*, and attach them to *engine*, which has no sessions yet. Raises `PluginError`.

        Sessions that come from the store then know that plugins decide what they may receive.
        """
        forward_logs(config.log_level)
        outcomes = Outcomes(engine.metrics, asyncio.get_running_loop().time)
        watch = Watch(engine.metrics, outcomes)
        watch.start()  # One whose constructor never returns is named, too.
        try:
            return cls._attached(config, engine, outcomes, watch)
        except BaseException:
            watch.close()
            raise

    @classmethod
    def _attached(cls, config: BrokerConfig, engine: Engine, outcomes: Outcomes, watch: Watch) -> Plugins:
        host = PluginHost(
            engine,
            claimed_names=config.plugin_username == "connect",
            keeps_passwords=config.plugin_sees_password,
        )
        wanted = []
        for path, settings in config.plugins.items():
            with watch.during(path, "import"):
                wanted.append(find_plugin(path, settings))
        plugin_set = PluginSet(
            wanted,
            HostedContext(engine, host.hosted, host.figures, asyncio.get_running_loop().time),
            outcomes,
            watch,
            lambda: engine.limits.max_plugin_events,
            config.plugin_timeout,
        )
        questions = Questions(
            plugin_set.plugins,
            lambda: engine.limits.max_plugin_verdicts,
            outcomes,
            watch,
            patience=config.plugin_timeout,
            verdict_seconds=config.plugin_verdict_seconds,
        )
        host.attach(plugin_set, questions)
        return cls(plugin_set, questions, host, watch)

    async def begin(self) -> None:
        """Tell plugins that the broker is about to listen. Raises `PluginError`; `close` them then, too."""
        await self._plugin_set.pre_start()
        for each in self._plugin_set.describe():
            log.info("plugin", code="PLUGIN_STARTED", **each)

    async def opened(self) -> None:
        """Tell plugins that the broker listens. Raises `PluginError`."""
        await self._plugin_set.post_start()

    async def run(self) -> None:
        """Periodically drop what is no longer needed, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self._host.sweep()

    async def closing(self) -> None:
        """Tell plugins that the broker is about to stop."""
        await self._plugin_set.pre_shutdown()

    async def close(self) -> None:
        """Stop asking, deliver the remaining events, and close the plugins."""
        await self._questions.close()
        await self._plugin_set.close()
        self._watch.close()
