"""HTTP validators (RFC 9110 §8.8): kept from a response, and sent in the next request to ask whether it has changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

MAXIMUM_VALIDATOR: Final = 200
"""Maximum length of an ETag or a date; a longer one is not kept."""


def validator_of(headers: Mapping[str, str], name: str) -> str:
    """Return the validator in an answer's *headers*, empty if no request could send it: a server may send anything."""
    said = headers.get(name, "")
    return said if len(said) <= MAXIMUM_VALIDATOR and said.isascii() and said.isprintable() else ""


def conditions(etag: str, modified: str) -> dict[str, str]:
    """Return the headers of a conditional request; without unknown validators."""
    said = {"If-None-Match": etag, "If-Modified-Since": modified}
    return {name: value for name, value in said.items() if value}
