"""The HTTP library's errors in words: it has none for a connection that breaks off, falls silent, or was refused.

Its own words quote what has come, however long that is: a hundred kilobytes, each as four characters, from anybody who
is on the way of a CRL. They end in logs, in the store and in what operators are shown, so only their beginning is told.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from typing import Final

_TOO_LONG: Final = {
    "ConnectTimeout": "it takes too long to connect",
    "PoolTimeout": "no connection was free in time",
    "ReadTimeout": "nothing came any more for too long",
    "WriteTimeout": "nothing was taken any more for too long",
}
"""By name: whoever asks has the library already, and nobody else should load it. Its own words say only "timed out"."""
_WORDLESS: Final = {
    "ConnectError": "no connection comes about",
    "ReadError": "the connection broke off",
    "WriteError": "the connection broke off",
    "CloseError": "the connection broke off",
}

_LONGEST: Final = 300


def network_words(error: Exception) -> str:
    """Return what is wrong: the beginning of the library's own words, where it has any that say so."""
    name = type(error).__name__
    words = _TOO_LONG.get(name) or _of_connecting(error) or str(error) or _WORDLESS.get(name, name)
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}…"


def _of_connecting(error: Exception) -> str:
    """Return why nothing was connected, if *error* is that: its own words are that all attempts have failed."""
    if type(error).__name__ != "ConnectError":
        return ""
    for cause in causes(error):
        if isinstance(cause, ConnectionRefusedError):
            return "nothing listens there"
        if isinstance(cause, socket.gaierror):
            return f"its host is not found ({cause.strerror})"
        if isinstance(cause, ssl.SSLError):
            return ""
        if isinstance(cause, OSError) and cause.errno is not None:
            return os.strerror(cause.errno)
    return ""


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield *error* and its causes; of several addresses that were tried in vain, the first one's."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause.__cause__ or cause.__context__
