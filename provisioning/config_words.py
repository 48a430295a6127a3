"""The error text for a setting that cannot be used: its source, its name, and what to write instead.

Rules
-----
1. The source is the flag, the variable or the file; of several, the one in force (`provisioning.config`).
2. A similar valid name is suggested if there is one, otherwise the page that describes all of them.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from provisioning.program.durations import REMEDY
from provisioning.program.near_names import nearest
from provisioning.program.value_words import WORDS

_REFERENCE: Final = "docs/reference/settings-of-provisioning.md"
_DURATIONS: Final = frozenset({"time_delta_parsing", "time_delta_type"})


def explain(error: Any, prefix: str, file: Path, flags: Mapping[str, Any], known: Mapping[str, Collection[str]]) -> str:
    """Return the sentence about one of pydantic's errors, *error*.

    *known* has the names of all settings under ``""``, and those in each kind of table under the table's name.
    """
    keys = [str(part) for part in error["loc"]]
    if not keys:
        return f"{file}: {_plain(error['msg'])}"
    variable = f"{prefix}{keys[0].upper()}"
    message = _plain(error["msg"])
    if error["type"] == "extra_forbidden":
        message = no_such(keys[-1], known[keys[0] if len(keys) > 1 else ""])
    elif error["type"] in _DURATIONS:
        message = REMEDY
    elif error["type"] in WORDS:
        message = WORDS[error["type"]].format(key=".".join(keys))
    if keys[0] in flags:
        return f"--{keys[0].replace('_', '-')}: {message}"
    key = ".".join(keys)
    if variable in os.environ:
        return f"{variable}: {message}" if len(keys) == 1 else f"{variable}: {key}: {message}"
    return f"{file}: {key}: {message}"


def no_such(name: str, known: Collection[str]) -> str:
    """Return the error text for the setting *name*, which is not one of *known*."""
    near = nearest(name, known)
    return f"no such setting; {f'is {near} meant?' if near else f'see {_REFERENCE}'}"


def _plain(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message if message[:2].isupper() else f"{message[:1].lower()}{message[1:]}"
