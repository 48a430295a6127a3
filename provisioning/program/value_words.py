"""What to write instead of a value of the wrong type: pydantic's own messages use Python's terms.

The same sentences for a setting in a file, a variable in the environment and a value on a command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

WORDS: Final[Mapping[str, str]] = {
    "bool_parsing": "give true or false",
    "bool_type": "give true or false",
    "dataclass_type": "write a table, [{key}]",
    "dict_type": "write a table, [{key}]",
    "float_parsing": "give a number, without a unit",
    "float_type": "give a number, without a unit",
    "int_from_float": "give a whole number",
    "int_parsing": "give a whole number, without a unit",
    "int_type": "give a whole number, without a unit",
    "path_type": "give the name of a file, as a text",
    "string_type": "give a text, in quotes",
    "tuple_type": "give a list, in brackets",
    "url_parsing": "write the whole URL, with its scheme: http://NAME:PORT",
}
"""By pydantic's names of errors; ``{key}`` stands for the name of the setting."""
