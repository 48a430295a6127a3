"""The broker's TOML file: read, and not checked; and the few values in it by which a command finds a broker.

Rules
-----
1. Without the settings themselves (`broker.settings.config`), and so without pydantic: a command that asks a running
   broker needs neither, and starts in half the time.
2. An error names the file, the key and the remedy.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from provisioning.pki.open_to_all import written_by_all
from provisioning.program.given_file import EMPTY, SETTINGS_BYTES, contents_of, not_text, text_of, unread
from provisioning.program.given_toml import NotToml, toml_of
from provisioning.program.value_words import WORDS


class ConfigError(Exception):
    """The settings are unusable; the text names the source, the key and the remedy."""


def read_file(path: Path) -> dict[str, Any]:
    """Return the contents of the TOML file *path*, unchecked.

    Raises `ConfigError`, also for one that everybody may write to.
    """
    if (why := written_by_all(path)) is not None:
        raise ConfigError(why)
    try:
        return toml_of(text_of(path, SETTINGS_BYTES))
    except OSError as error:
        raise ConfigError(unread(path, error)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {not_text(error)}") from error
    except NotToml as error:
        raise ConfigError(f"{path} is {_no_toml(path, error)}") from error


def _no_toml(path: Path, error: ValueError) -> str:
    """Return what *path* is instead, and the remedy."""
    from broker.settings.config import BrokerConfig  # Late: rule 1.
    from broker.settings.config_hints import of_mosquitto
    from broker.settings.limits import Limits

    text = contents_of(path, SETTINGS_BYTES).decode(errors="replace")
    told = of_mosquitto(text, BrokerConfig.model_fields, {each.name for each in fields(Limits)})
    if not told:
        return f"not TOML: {error}"
    return "\n".join(
        (
            f"mosquitto's, and not TOML: fleet-broker config convert {path} > broker.toml converts it.",
            "What to do with its settings (docs/coming-from-mosquitto.md):",
            *told,
        )
    )


def read_texts(path: Path | None, *keys: str) -> dict[str, str]:
    """Return those of *keys* (all are files) in the TOML file *path*, if given: this is how a command finds a broker.

    Raises `ConfigError`, also for a value that is empty or not text.
    """
    values = {} if path is None else read_file(path)
    found = {key: values[key] for key in keys if key in values}
    for key, value in found.items():
        if not isinstance(value, str):
            raise ConfigError(f"{path}: {key}: {WORDS['string_type']}")
        if not value:
            raise ConfigError(f"{path}: {key}: {EMPTY}")
    return found
