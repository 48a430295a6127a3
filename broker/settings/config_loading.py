"""Where the broker's settings come from: flags, then environment (``FLEET_BROKER_…``), then a TOML file.

An error names the source, the key and the remedy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsError

from broker.settings.config import FILE_VALUES, PREFIX, BrokerConfig
from broker.settings.config_file import ConfigError, read_file
from broker.settings.config_hints import hint
from broker.settings.limits import Limits
from broker.settings.listener_settings import ListenerSettings
from broker.settings.mosquitto_options import OPTIONS
from broker.settings.trust_settings import TrustSettings
from provisioning.program.setting_variables import NoSettingVariable, named_in_variables
from provisioning.program.value_words import WORDS

_TABLES = frozenset({"trust", "listener", "plugins"})
_MERGED = ("limits", "plugins")
"""Tables whose entries may come partly from the file and partly from the environment."""
_JSON_TABLES = {
    "limits": "",
    "plugins": "use [plugins] in the file",
    "trust": "use [[trust]] tables in the file",
    "listener": "use [[listener]] tables in the file",
}
"""Settings that the environment can only hold as JSON, and the easier alternative."""


def load(path: Path | None, flags: dict[str, Any]) -> BrokerConfig:
    """Return the settings from *flags* (None: not given), the environment and the TOML file *path*.

    Raises `ConfigError`.
    """
    values = read_file(path) if path is not None else {}
    for table in _MERGED:  # Otherwise one entry from the environment would replace all others.
        if not isinstance(values.get(table, {}), dict):
            raise ConfigError(f"{path}: {table}: {WORDS['dict_type'].format(key=table)}")
    _refuse_unknown_variables()
    before = FILE_VALUES.set(values)
    try:
        return BrokerConfig(**{key: value for key, value in flags.items() if value is not None})
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(each, path, flags) for each in error.errors())) from None
    except SettingsError as error:
        raise ConfigError(_not_json(str(error))) from None
    finally:
        FILE_VALUES.reset(before)


def _with_its_source(message: str, path: Path | None, flags: Mapping[str, Any]) -> str:
    """Return *message*, which begins with names of settings that do not fit, behind where one of them comes from."""
    named = message.partition(":")[0].replace(" and ", ", ").split(", ")
    others = [name for name in named if flags.get(name) is None]  # A flag is before the eyes of whoever gave it.
    set_by = next((_variable(name) for name in others if _variable(name) in os.environ), None)
    if set_by is None and path is not None and any(name in FILE_VALUES.get() for name in others):
        set_by = str(path)
    return message if set_by is None else f"{set_by}: {message}"


def with_its_file(problem: str, path: Path | None, flags: Mapping[str, Any]) -> str:
    """Return *problem*, which begins with names of settings, behind the file *path* if they are from there.

    A pipe, from which settings came, has them no more.
    """
    named = problem.partition(":")[0].split(", ")
    values = read_file(path) if path is not None and path.is_file() else {}
    if all(each in values and flags.get(each) is None and _variable(each) not in os.environ for each in named):
        return f"{path}: {problem}"
    return problem


def _not_json(said: str) -> str:
    """Return the error for a table that the environment should hold as JSON, but does not."""
    table = next((each for each in _JSON_TABLES if f'"{each}"' in said), "limits")
    remedy = _JSON_TABLES[table] or f"set {_variable('limits', 'max_inflight')} and the others one by one"
    return f"{table}: the environment variable {_variable(table)} is not JSON; {remedy}"


def _refuse_unknown_variables() -> None:
    """Raise `ConfigError` for a variable that looks like a setting but is none."""
    try:
        for variable, setting in named_in_variables(PREFIX):
            key, _, limit = setting.partition("__")
            known_limit = not limit or (key == "limits" and limit in {each.name for each in fields(Limits)})
            if key not in BrokerConfig.model_fields or not known_limit:
                place = [key, limit] if key == "limits" else [key]
                raise ConfigError(f"{variable}: no such setting{_instead(place)}")
    except NoSettingVariable as error:
        raise ConfigError(str(error)) from error


def _explain(error: Any, path: Path | None, flags: dict[str, Any]) -> str:
    keys = [str(part) for part in error["loc"]]
    key = ".".join(keys)
    message = error["msg"].removeprefix("Value error, ")
    if not keys:
        return _with_its_source(message, path, flags)
    flag, variable = f"--{keys[0].replace('_', '-')}", _variable(*keys)
    in_table = keys[0] in _TABLES
    if error["type"] == "missing" and not in_table:
        return f"{key}: missing; give {flag}, {variable} or {key} in the file"
    message = f"{message[:1].lower()}{message[1:]}"
    if (words := WORDS.get(error["type"])) is not None:
        message = words.format(key=key if len(keys) == 1 else f'{keys[0]}."{".".join(keys[1:])}"')
    if error["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        message = f"no such setting{_instead(keys)}"
    elif keys == ["listener"]:
        message = OPTIONS["listener"].text
    elif keys == ["trust"]:
        message = "write a [[trust]] table for each bundle"
    if flags.get(keys[0]) is not None:
        return f"{flag}: {message}"
    where = _of_environment(keys)
    if in_table:
        return f"{where or path or variable}: {_in_table(keys)}: {message}"
    if where is not None:
        return f"{where}: {message}" if where == variable else f"{where}: {key}: {message}"
    return f"{path}: {key}: {message}" if path is not None else f"{key}: {message}"


def _of_environment(keys: list[str]) -> str | None:
    """Return the variable that sets *keys*, or None; if the file sets them too, the variable takes precedence."""
    variable, whole = _variable(*keys), _variable(keys[0])
    if variable in os.environ:
        return variable
    if whole not in os.environ:
        return None
    named = keys[0] not in {"limits", "plugins"} or keys[1] in (json.loads(os.environ[whole]) or ())
    return whole if named else None  # The entries of these two tables may come from different sources.


def _instead(keys: list[str]) -> str:
    """Return what to write instead of the unknown setting *keys*."""
    limits = [each.name for each in fields(Limits)]
    if keys[0] in _TABLES:
        table = ListenerSettings.model_fields if keys[0] == "listener" else TrustSettings.model_fields
        return hint(keys[-1], list(table), ())
    return hint(keys[-1], limits if keys[0] == "limits" else list(BrokerConfig.model_fields), limits)


def _in_table(keys: list[str]) -> str:
    """Return which table of an array *keys* point to, counted from 1."""
    named = [f"[{int(key) + 1}]" if key.isdigit() else f".{key}" for key in keys[1:]]
    return f"{keys[0]}{''.join(named)}"


def _variable(*keys: str) -> str:
    return PREFIX + "__".join(keys).upper()
