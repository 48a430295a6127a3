"""A loaded PKCS #11 module: who is at work in it, and how it is begun again when its token has been away.

Theory
------
A token that was pulled out, or whose network was gone, is back for a module only when the module looks again. Many do
so by themselves; others (SoftHSM, several of those that speak to a device on the network) only at C_Initialize, so
C_Finalize and C_Initialize are what every module understands. Both are for the whole process: all sessions of all keys
end, and nobody may be inside the module meanwhile.

Who is logged in is for the whole process, too. One session of each token has logged in and does nothing else; those
of the keys are opened beside it, without a PIN, so that closing one puts nobody out.

Rules
-----
1. A session is of one generation of its module. Afterwards its numbers may be those of another session, and its key's
   those of another key: it is never used again, not even to be closed.
2. The module is begun again when nobody is at work in it, and not oftener than every `_PAUSE_SECONDS`: with a token
   that stays away the keys of another one would lose their sessions each time.
3. A PIN that was refused is not tried again, and the last try that a token grants is not taken: a token locks after a
   few tries, and what signs tries for ever, as does what starts a service again.
4. The module is not begun again for what that cannot help: a locked PIN, or another program that has all sessions. The
   keys that still sign would lose theirs.

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
from pkcs11 import PKCS11Error, TokenFlag
from pkcs11.exceptions import (
    PinExpired,
    PinIncorrect,
    PinInvalid,
    PinLenRange,
    PinLocked,
    SessionCount,
    UserAlreadyLoggedIn,
    UserPinNotInitialized,
)

from provisioning.signers.pkcs11_calls import TokenCalls

log = structlog.get_logger(__name__)

_PAUSE_SECONDS: Final = 5.0
_PATIENCE_SECONDS: Final = 5.0
_LOCKED_SECONDS: Final = 60.0
"""How long a token that lets nobody log in is not asked again: it costs a session each time (`_log_in`)."""

WRONG_PIN: Final = (PinIncorrect, PinLenRange, PinInvalid)
_NOBODY_LOGS_IN: Final = (PinLocked, PinExpired, UserPinNotInitialized)


class SessionsEnded(PKCS11Error):
    """The module was begun again since the session was opened."""


class LastTry(PKCS11Error):
    """One wrong PIN more would lock the token."""


class NoModule(PKCS11Error):
    """The module cannot be loaded; the text says why."""


class TokenModule:
    """The module at *path*, for every key in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._at_work = 0
        self._generation = 0
        self._begun_at = -math.inf
        self._beginning = threading.Lock()
        """Held while it is loaded or begun: whoever asks for the library begins it where it is not, also by halves."""
        self._logging_in = threading.Lock()
        self._logged_in: dict[str, Any] = {}
        """By token: the session that has logged in, of this generation."""
        self._refused: dict[str, tuple[str, float, PKCS11Error]] = {}
        """By token: the PIN, until when it is not tried, and why."""
        self._calls: dict[tuple[str, str | None], TokenCalls] = {}

    def calls(self, token: str, label: str | None) -> TokenCalls:
        """Return the thread of one key: the same, however often the key is opened."""
        # By no lock: a module that hangs while it begins keeps that, and whoever comes is to be refused in time.
        return self._calls.setdefault((token, label), TokenCalls(f"token-{label}", self._library))

    def open_session(self, token: str, pin: str) -> tuple[Any, int]:
        """Return a session with the token of that label, logged in, and its generation; raise `PKCS11Error`."""
        try:
            return self._try_to_open(token, pin)
        except (*WRONG_PIN, *_NOBODY_LOGS_IN, LastTry, SessionCount, NoModule):
            raise
        except PKCS11Error as error:
            if not self.begin_again():
                raise
            log.info("token's module begun again", module=str(self._path), error=str(error) or type(error).__name__)
            return self._try_to_open(token, pin)

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
            found = self._library().get_token(token_label=token)
            self._log_in(found, pin)
            return found.open(rw=True), generation

    def _log_in(self, token: Any, pin: str) -> None:
        """Have the process logged in to *token*; raise `PKCS11Error`.

        What the library opens in vain stays open until the module is begun again, so what is in vain is not repeated.
        """
        with self._logging_in:
            if token.label in self._logged_in:
                return
            refused, until, why = self._refused.get(token.label, ("", -math.inf, None))
            if why is not None and refused == pin and time.monotonic() < until:
                raise type(why)
            if token.flags & TokenFlag.USER_PIN_LOCKED:
                raise PinLocked
            if token.flags & TokenFlag.USER_PIN_FINAL_TRY:
                raise LastTry
            try:
                session = token.open(user_pin=pin)
            except UserAlreadyLoggedIn:
                session = token.open()
            except (*WRONG_PIN, *_NOBODY_LOGS_IN) as error:
                pause = math.inf if isinstance(error, WRONG_PIN) else _LOCKED_SECONDS
                self._refused[token.label] = pin, time.monotonic() + pause, error
                raise
            self._refused.pop(token.label, None)
            self._logged_in[token.label] = session

    def log_out(self, token: str) -> None:
        """Forget that the process is logged in: the token may have, and shows nobody what is private."""
        with self.at_work(), self._logging_in, contextlib.suppress(PKCS11Error):
            session = self._logged_in.pop(token, None)
            if session is not None:
                session.close()

    def _library(self) -> Any:
        try:
            with self._beginning:
                return pkcs11.lib(str(self._path))
        except PKCS11Error as error:
            if type(error) is not PKCS11Error:  # The module's own, which could be loaded.
                raise
            reason = str(error).rpartition(f"{self._path}: ")[2]
            raise NoModule(
                f"{self._path} is no PKCS #11 module that this machine can load ({reason}): install the token's module "
                "for this system and its processor, or correct module-path"
                if self._path.exists()
                else f"there is no module {self._path}: install the token's PKCS #11 module, or correct module-path"
            ) from error

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
            self._logged_in.clear()
            with self._beginning:
                pkcs11.lib(str(self._path)).reinitialize()
            return True


@functools.cache
def module_at(path: Path) -> TokenModule:
    """Return what there is once in the process for the module at *path*."""
    return TokenModule(path)
