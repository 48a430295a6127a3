"""Tells httpcore, below httpx, that the event loop's library is asyncio, without a search of `sys.path`.

It asks `sniffio` whenever it makes a lock or an event, three times per request. anyio no longer depends on that since
4.12, and a missing module is searched in every folder each time: a third of a request's cost. Only trio, which imports
`sniffio` itself, has something to tell it; so if neither is imported, the answer is known.

Marking it as missing in `sys.modules` would also work, but hide it from code that adds a folder to `sys.path` later, as
a plugin does, or a test suite that uses these clients.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

_QUESTION: Final = "current_async_library"


def look_for_no_other() -> None:
    """Keep httpcore from searching for `sniffio` unless it or trio has been imported."""
    try:
        import httpcore._backends.auto
        import httpcore._synchronization
    except ImportError:  # In another version it is elsewhere: requests only take a little longer.
        return
    namespace: dict[str, Any] = vars(httpcore._synchronization)  # noqa: SLF001 - it has no setting for it
    asked = namespace.get(_QUESTION)
    if asked is None or getattr(asked, "__module__", "") == __name__:
        return
    known = _known_or(asked)
    for place in (namespace, vars(httpcore._backends.auto)):  # noqa: SLF001 - as above
        place[_QUESTION] = known


def _known_or(asked: Callable[[], str]) -> Callable[[], str]:
    def known() -> str:
        modules = sys.modules
        return asked() if "sniffio" in modules or "trio" in modules else "asyncio"

    return known
