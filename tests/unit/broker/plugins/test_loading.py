"""What is wrong with the setting ``plugins`` is said by name, with the remedy, before anything runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from amqtt.contrib.http import RequestMethod
from amqtt.events import BrokerEvents, MQTTEvents
from typer.testing import CliRunner

from broker.cli import app
from broker.plugins.errors import PluginError
from broker.plugins.hooks import EVENTS
from broker.plugins.loading import find_plugins
from broker.settings.config_file import ConfigError
from broker.settings.config_loading import load
from tests.support.pki import shared_pki

MODULE = """
from dataclasses import dataclass
from pathlib import Path
from amqtt.plugins.base import BaseAuthPlugin, BasePlugin, BaseTopicPlugin

class Good(BasePlugin):
    @dataclass
    class Config:
        path: Path
        often: int = 1

class NotAsync(BaseAuthPlugin):
    def authenticate(self, *, session):
        return True

class NoPlugin:
    pass

class AsksMore(BaseAuthPlugin):
    async def authenticate(self, username):
        return True

class TakesLess(BaseTopicPlugin):
    async def topic_filtering(self, *, session, topic):
        return True

class EventAsksMore(BasePlugin):
    async def on_broker_client_connected(self, client_id, client_session, packet):
        pass

class EventNotAsync(BasePlugin):
    def on_broker_pre_start(self):
        pass

class Misspelt(BasePlugin):
    async def on_broker_client_conected(self, client_id, client_session):
        pass

class Roomy(BaseAuthPlugin, BaseTopicPlugin):
    async def authenticate(self, **asked):
        return True

    async def topic_filtering(self, session=None, topic=None, action=None, more=None):
        return True

    async def on_broker_message_received(self, *, client_id, **_):
        pass

    async def on_message(self, of_its_own):
        pass

class Untidy(BasePlugin):
    Config = dict
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_plugins.py").write_text(MODULE)
    (tmp_path / "broken_plugins.py").write_text("raise RuntimeError('no luck')")
    (tmp_path / "exiting_plugins.py").write_text("raise SystemExit(0)")
    (tmp_path / "poor_plugins.py").write_text("import aiohttp.nothing_of_the_kind")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_plugins", raising=False)


@pytest.mark.parametrize(
    ("path", "config", "said"),
    [
        ("odd_plugins.Missing", {}, "plugins: odd_plugins.Missing cannot be imported: .*; correct the dotted path, or"),
        ("no_such_thing.Plugin", {}, "plugins: no_such_thing.Plugin cannot be imported: .*; correct the dotted path"),
        ("nodots", {}, "plugins: nodots cannot be imported: "),
        ("broken_plugins.X", {}, "plugins: broken_plugins.X cannot be imported: RuntimeError: no luck"),
        ("exiting_plugins.X", {}, "plugins: exiting_plugins.X cannot be imported: SystemExit: 0"),
        (
            "odd_plugins.NoPlugin",
            {},
            "plugins: odd_plugins.NoPlugin is not an amqtt plugin: it must be a class derived",
        ),
        ("odd_plugins.NotAsync", {}, "plugins: odd_plugins.NotAsync: authenticate must be defined with 'async def'"),
        (
            "odd_plugins.AsksMore",
            {},
            r"AsksMore: authenticate has the wrong parameters .*; define it as .*\(self, \*, session\)",
        ),
        (
            "odd_plugins.TakesLess",
            {},
            r"topic_filtering has the wrong parameters .*'action'.*, session, topic, action\)",
        ),
        ("odd_plugins.EventAsksMore", {}, "on_broker_client_connected has the wrong parameters .*'packet'"),
        ("odd_plugins.EventNotAsync", {}, "EventNotAsync: on_broker_pre_start must be defined with 'async def'"),
        ("odd_plugins.Misspelt", {}, r"is never called: .*; did you mean on_broker_client_connected\?"),
        ("odd_plugins.Untidy", {}, "plugins: odd_plugins.Untidy: its Config must be a dataclass"),
        ("odd_plugins.Good", {}, 'plugins: odd_plugins.Good: missing value for field "path"; it takes path, often'),
        ("odd_plugins.Good", {"path": "x", "rare": 1}, "odd_plugins.Good: no such setting: rare; it takes path, often"),
        ("odd_plugins.Good", {"path": "x", "often": "a"}, "Good: often: the value must be of the type int"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_named_with_the_remedy(path: str, config: dict[str, object], said: str) -> None:
    with pytest.raises(PluginError, match=said):
        find_plugins({path: config})


def test_hooks_are_called_as_amqtt_calls_them() -> None:
    assert {f"on_{event}" for event in (*BrokerEvents, *MQTTEvents)} == EVENTS.keys()
    assert [each.name for each in find_plugins({"odd_plugins.Roomy": {}})] == ["Roomy"]


def test_texts_become_paths_and_words_of_an_enumeration() -> None:
    (good,) = find_plugins({"odd_plugins.Good": {"path": "/tmp/x"}})  # noqa: S108 - nothing is written there
    assert good.config.path == Path("/tmp/x")  # noqa: S108
    where = {"host": "localhost", "port": 1, "request_method": "post"}
    (http,) = find_plugins({"amqtt.contrib.http.UserAuthHttpPlugin": where})
    assert http.config.request_method is RequestMethod.POST
    with pytest.raises(PluginError, match=r"plugins: amqtt\.contrib\.http\.UserAuthHttpPlugin: .*it takes host, port"):
        find_plugins({"amqtt.contrib.http.UserAuthHttpPlugin": where | {"request_method": "head"}})


def test_what_a_contributed_plugin_lacks_has_a_remedy_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "amqtt.contrib.http", raising=False)
    with pytest.raises(PluginError, match=r"pip install -e '\.\[amqtt-contrib\]'"):
        find_plugins({"amqtt.contrib.http.UserAuthHttpPlugin": {}})


@pytest.mark.parametrize(
    ("plugins", "code", "said"),
    [
        ('"odd_plugins.Good" = { path = "x" }', 0, "the settings are valid"),
        ('"odd_plugins.Good" = { path = 7 }', 2, "broker.toml: plugins: odd_plugins.Good: .* str.*int.*; it takes "),
        ('"odd_plugins.Good" = 7', 2, 'plugins.odd_plugins.Good: write a table, .plugins."odd_plugins.Good".'),
    ],
)
def test_the_check_of_the_settings_checks_plugins(tmp_path: Path, plugins: str, code: int, said: str) -> None:
    files, anchors = shared_pki().broker().write(tmp_path), shared_pki().write_anchors(tmp_path)
    (tmp_path / "broker.toml").write_text(
        f'cafile = "{anchors}"\ncertfile = "{files.certificate}"\nkeyfile = "{files.key}"\n'
        f"unsafe_no_revocation = true\n[plugins]\n{plugins}\n"
    )
    done = CliRunner().invoke(app, ["run", "--config", str(tmp_path / "broker.toml"), "--test-config"])
    assert (done.exit_code, bool(re.search(said, done.output))) == (code, True), done.output


def test_plugins_in_the_environment_are_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    anchors = shared_pki().write_anchors(tmp_path)
    flags = {"cafile": anchors, "provisioning": "https://localhost:8443"}
    monkeypatch.setenv("FLEET_BROKER_PLUGINS", '{"a.b": {"c": 1}}')
    assert load(None, flags).plugins == {"a.b": {"c": 1}}
    monkeypatch.setenv("FLEET_BROKER_PLUGINS", "a.b")
    with pytest.raises(ConfigError, match=r"plugins: the environment variable FLEET_BROKER_PLUGINS is not JSON"):
        load(None, flags)
