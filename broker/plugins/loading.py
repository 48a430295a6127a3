"""From the setting ``plugins`` to classes with their configuration, and to instances.

Rules
-----
1. All errors in the setting are found without creating an instance: ``--test-config`` does just that.
2. A plugin's `Config` is filled in as in amqtt, strictly; a text is converted to an enumeration or a path where one of
   these is required, since TOML has neither.
3. An error names the plugin, the problem and the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, cast

from amqtt.contexts import BaseContext
from amqtt.plugins.base import BasePlugin
from amqtt.utils import import_string
from dacite import Config, DaciteError, WrongTypeError, from_dict
from dacite.exceptions import UnexpectedDataError

from broker.plugins.errors import PluginError
from broker.plugins.hooks import check_hooks

_EXTRA = {"aiohttp", "aiosqlite", "bcrypt", "greenlet", "jwt", "mergedeep"}
"""Packages that amqtt's own contributed plugins need; this distribution's extra ``amqtt-contrib`` installs them."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One configured plugin: its dotted path, its class, and its configuration."""

    path: str
    plugin_class: type[BasePlugin[Any]]
    config: Any

    @property
    def name(self) -> str:
        """Its name in the log: that of its class."""
        return self.plugin_class.__name__

    def make(self, context: BaseContext) -> BasePlugin[Any]:
        """Return an instance with *context*. Raises `PluginError`."""
        context.config = self.config
        try:
            return self.plugin_class(context)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"plugins: {self.path} cannot be started: {type(error).__name__}: {error}; correct its configuration, "
                "or leave it out"
            ) from error


def find_plugins(settings: Mapping[str, Mapping[str, Any]]) -> list[Wanted]:
    """Return the plugins in *settings*, in their order. Raises `PluginError`."""
    return [find_plugin(path, config) for path, config in settings.items()]


def find_plugin(path: str, config: Mapping[str, Any]) -> Wanted:
    """Return the plugin at the dotted *path*, with *config*. Raises `PluginError`."""
    try:
        found = import_string(path)
    except ImportError as error:
        raise PluginError(f"plugins: {path} cannot be imported: {error}; {_import_remedy(error)}") from error
    except (Exception, SystemExit) as error:  # Importing the module may raise anything.
        raise PluginError(f"plugins: {path} cannot be imported: {type(error).__name__}: {error}") from error
    if not isinstance(found, type) or not issubclass(found, BasePlugin):
        raise PluginError(
            f"plugins: {path} is not an amqtt plugin: it must be a class derived from BasePlugin, BaseAuthPlugin or "
            "BaseTopicPlugin of amqtt.plugins.base"
        )
    check_hooks(path, found)
    return Wanted(path, found, _configured(path, found, config))


def _import_remedy(error: ImportError) -> str:
    if error.name in _EXTRA:
        return "amqtt's contributed plugins need an extra: in the clone, .venv/bin/pip install -e '.[amqtt-contrib]'"
    return "correct the dotted path, or install the package that holds it where fleet-broker is installed"


def _configured(path: str, plugin_class: type[BasePlugin[Any]], config: Mapping[str, Any]) -> Any:
    if not is_dataclass(plugin_class.Config):
        raise PluginError(f"plugins: {path}: its Config must be a dataclass")
    names = ", ".join(each.name for each in fields(plugin_class.Config)) or "nothing"
    try:
        return from_dict(cast("type[Any]", plugin_class.Config), dict(config), Config(strict=True, cast=[Enum, Path]))
    except UnexpectedDataError as error:
        unknown = ", ".join(sorted(map(str, error.keys)))
        raise PluginError(f"plugins: {path}: no such setting: {unknown}; it takes {names}") from error
    except WrongTypeError as error:  # Its text shows the value as a generator, where a list was expected.
        wanted = getattr(error.field_type, "__name__", error.field_type)
        raise PluginError(f"plugins: {path}: {error.field_path}: the value must be of the type {wanted}") from error
    except (DaciteError, TypeError, ValueError) as error:
        raise PluginError(f"plugins: {path}: {error}; it takes {names}") from error
