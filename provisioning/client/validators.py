"""HTTP validators (RFC 9110 §8.8): kept from a response, and sent in the next request to ask whether it has changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

MAXIMUM_VALIDATOR: Final = 200
"""Characters of an ETag or a date that are kept; of a longer one nothing is."""


def validator_of(headers: Mapping[str, str], name: str) -> str:
    """Return what *headers* of an answer say, or nothing where no request could say it: a server may send anything."""
    said = headers.get(name, "")
    return said if len(said) <= MAXIMUM_VALIDATOR and said.isascii() and said.isprintable() else ""


def conditions(etag: str, modified: str) -> dict[str, str]:
    """Return the headers that ask for what is not the same; none for what is not known."""
    said = {"If-None-Match": etag, "If-Modified-Since": modified}
    return {name: value for name, value in said.items() if value}
