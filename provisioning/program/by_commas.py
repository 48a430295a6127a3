"""Lists in the environment: several words by commas, or JSON as for all other lists."""

from __future__ import annotations

import json


def by_commas(value: object, what: str) -> object:
    """Return the list in *value*, if that is a text, and anything else as it is; *what* it lists is said in errors.

    Raises `ValueError`: it begins like JSON and is none.
    """
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"is not JSON: write the {what} by commas") from error
    return tuple(filter(None, map(str.strip, value.split(","))))
