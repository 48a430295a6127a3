"""Plugins that do not come to an end while they are made: who it is, is said meanwhile."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.plugins.errors import PluginError
from broker.plugins.program import Plugins
from broker.settings.config_loading import load
from tests.support.pki import shared_device
from tests.support.wire import MemoryBroker

SLOW_PLUGINS = """
import threading

from amqtt.plugins.base import BasePlugin

said = threading.Event()


class Slow(BasePlugin):
    def __init__(self, context):
        super().__init__(context)
        assert said.wait(30), "nobody said it"


class Broken(BasePlugin):
    def __init__(self, context):
        raise ValueError("no such database")
"""
SLOW_MODULE = """
from amqtt.plugins.base import BasePlugin
from slow_plugins import said

assert said.wait(30), "nobody said it"


class Quick(BasePlugin):
    pass
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "slow_plugins.py").write_text(SLOW_PLUGINS)
    (tmp_path / "slow_module.py").write_text(SLOW_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "slow_plugins", raising=False)
    monkeypatch.delitem(sys.modules, "slow_module", raising=False)
    return tmp_path


def attached(directory: Path, plugin: str) -> Plugins:
    files = shared_device("meter-1").write(directory)
    settings: dict[str, Any] = {"plugins": {plugin: {}}, "unsafe_no_revocation": True}
    config = load(None, {"cafile": directory, "certfile": files.certificate, "keyfile": files.key, **settings})
    return Plugins.attached(config, MemoryBroker().engine)


@pytest.mark.parametrize(
    ("plugin", "named", "hook"),
    [
        ("slow_plugins.Slow", "Slow", "__init__"),
        ("slow_module.Quick", "slow_module.Quick", "import"),
    ],
)
async def test_a_plugin_that_blocks_while_it_is_made_is_named_while_it_does(
    modules: Path, plugin: str, named: str, hook: str
) -> None:
    import slow_plugins  # type: ignore[import-not-found]

    with capture_logs() as logs:
        telling = threading.Thread(target=_say, args=(logs, slow_plugins.said))
        telling.start()
        plugins = attached(modules, plugin)
        telling.join()
    await plugins.close()
    lines = [(each["plugin"], each["hook"]) for each in logs if each.get("code") == "PLUGIN_BLOCKS"]
    assert lines == [(named, hook)], "and that it took long is no offence: nobody was served"


def _say(logs: list[Any], said: threading.Event) -> None:
    """Set *said* when the log has a line, or after half a minute, so that a test that fails ends, too."""
    waiting = threading.Event()
    for _ in range(3000):
        if logs:
            break
        waiting.wait(0.01)
    said.set()


async def test_a_plugin_that_cannot_be_made_leaves_no_thread(modules: Path) -> None:
    with pytest.raises(PluginError, match="no such database"):
        attached(modules, "slow_plugins.Broken")
    assert "plugin-watch" not in {each.name for each in threading.enumerate()}
