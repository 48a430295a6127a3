"""A loaded PKCS #11 module: who is at work in it, and how it is begun again when its token has been away.

Theory
------
A token that was pulled out, or whose network was gone, is back for a module only when the module looks again. Many do
so by themselves; others (SoftHSM, several of those that speak to a device on the network) only at C_Initialize, so
C_Finalize and C_Initialize are what every module understands. Both are for the whole process: all sessions of all keys
end, and nobody may be inside the module meanwhile.

Rules
-----
1. A session is of one generation of its module. Afterwards its numbers may be those of another session, and its key's
   those of another key: it is never used again, not even to be closed.
2. The module is begun again when nobody is at work in it, and not oftener than every `_PAUSE_SECONDS`: with a token
   that stays away the keys of another one would lose their sessions each time.
3. A PIN that was refused is not tried again: a token locks after a few tries, and what signs tries for ever.

Does not handle: a call that never returns; while there is one, the module is not begun again.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pkcs11
import structlog
from pkcs11 import PKCS11Error

log = structlog.get_logger(__name__)

_PAUSE_SECONDS: Final = 5.0
_PATIENCE_SECONDS: Final = 5.0


class SessionsEnded(PKCS11Error):
    """The module was begun again since the session was opened."""


class TokenModule:
    """The module at *path*, for every key in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._at_work = 0
        self._generation = 0
        self._begun_at = -math.inf
        self._refused_pins: dict[str, str] = {}

    def open_session(self, token: str, pin: str) -> tuple[Any, int]:
        """Return a session with the token of that label, logged in, and its generation; raise `PKCS11Error`."""
        if self._refused_pins.get(token) == pin:
            raise pkcs11.exceptions.PinIncorrect
        try:
            session, generation = self._try_to_open(token, pin)
        except (pkcs11.exceptions.PinIncorrect, pkcs11.exceptions.PinLenRange, pkcs11.exceptions.PinInvalid):
            self._refused_pins[token] = pin
            raise
        except PKCS11Error as error:
            if not self.begin_again():
                raise
            log.info("token's module begun again", module=str(self._path), error=str(error) or type(error).__name__)
            session, generation = self._try_to_open(token, pin)
        self._refused_pins.pop(token, None)
        return session, generation

    @contextlib.contextmanager
    def at_work(self, generation: int | None = None) -> Iterator[int]:
        """Keep the module from being begun again meanwhile; raise `SessionsEnded` if it was since *generation*."""
        with self._changed:
            if generation not in (None, self._generation):
                raise SessionsEnded("the token's sessions have ended")
            self._at_work += 1
            current = self._generation
        try:
            yield current
        finally:
            with self._changed:
                self._at_work -= 1
                self._changed.notify_all()

    def _try_to_open(self, token: str, pin: str) -> tuple[Any, int]:
        with self.at_work() as generation:
            found = pkcs11.lib(str(self._path)).get_token(token_label=token)
            try:
                return found.open(rw=True, user_pin=pin), generation
            except pkcs11.exceptions.UserAlreadyLoggedIn:  # For the whole process: another key's session did it.
                return found.open(rw=True), generation

    def begin_again(self) -> bool:
        """Have the module look for its tokens anew; return whether it has, now or since the caller has asked it."""
        asked = self._generation
        with self._changed:
            if time.monotonic() - self._begun_at < _PAUSE_SECONDS:
                return False
            idle = self._changed.wait_for(lambda: not self._at_work or self._generation != asked, _PATIENCE_SECONDS)
            if not idle or self._generation != asked:
                return idle
            self._begun_at = time.monotonic()
            self._generation += 1
            library = pkcs11.lib(str(self._path))
            library.reinitialize()
            return True


@functools.cache
def module_at(path: Path) -> TokenModule:
    """Return what there is once in the process for the module at *path*."""
    return TokenModule(path)
