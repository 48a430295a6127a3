"""A loaded PKCS #11 module: tracks the calls in it, and reinitialises it when its token has been away.

Theory
------
After a token was removed, or its network was gone, a module finds it only when it looks again. Many do so by
themselves; others (SoftHSM, several modules of network devices) only at C_Initialize, so
C_Finalize and C_Initialize work with every module. Both affect the whole process: all sessions of all keys
end, and no call may be in the module meanwhile.

Login state is per process, too. One session of each token has logged in and does nothing else; those
of the keys are opened beside it, without a PIN, so that closing one logs nothing out.

The library initialises the module without a word about threads, C_Initialize(NULL), which promises that there will be
one at a time (PKCS #11 §5.4), and releases the interpreter's lock during each call. SoftHSM then takes no locks of its
own, and two keys that signed at once ended the process.

Rules
-----
1. A session belongs to one generation of its module. Afterwards its handle may be another session's, and its key's
   handle another key's: it is never used again, not even to be closed.
2. The module is reinitialised when no call is in it, and at most every `_PAUSE_SECONDS`: with a token
   that stays away the keys of another one would lose their sessions each time.
3. A refused PIN is not tried again, and a token's last try is not used: a token locks after a
   few tries, and signing retries for ever, as does a supervisor that restarts the service.
4. The module is not reinitialised if that cannot help: a locked PIN, or another program that has all sessions. The
   keys that still sign would lose theirs.
5. One thread at a time is in the module, unless one has been there for `_HANGS_SECONDS`: the keys of others must sign
   beside a call that never returns.

Does not handle: a call that never returns; while there is one, the module is not reinitialised.
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
_HANGS_SECONDS: Final = 1.0
"""Less than callers wait for a signature (`provisioning.signers.token_key`): it is a matter of milliseconds."""
_LOCKED_SECONDS: Final = 60.0
"""How long a token that allows no login is not tried again: each try costs a session (`_log_in`)."""

WRONG_PIN: Final = (PinIncorrect, PinLenRange, PinInvalid)
_NOBODY_LOGS_IN: Final = (PinLocked, PinExpired, UserPinNotInitialized)


class SessionsEnded(PKCS11Error):
    """The module was reinitialised since the session was opened."""


class LastTry(PKCS11Error):
    """Another wrong PIN would lock the token."""


class NoModule(PKCS11Error):
    """The module cannot be loaded; the text says why."""


class TokenModule:
    """The module at *path*, for every key in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._at_work = 0
        self._turn = threading.RLock()
        """Held by the thread in the module; another one once that has been there for `_HANGS_SECONDS`."""
        self._turn_began = 0.0
        self._generation = 0
        self._begun_at = -math.inf
        self._beginning = threading.Lock()
        """Held while it is loaded or initialised: getting the library initialises it if it is not, even halfway."""
        self._logging_in = threading.Lock()
        self._logged_in: dict[str, Any] = {}
        """By token: the session that has logged in, of this generation."""
        self._refused: dict[str, tuple[str, float, PKCS11Error]] = {}
        """By token: the refused PIN, until when it is not tried, and why."""
        self._calls: dict[tuple[str, str | None], TokenCalls] = {}

    def calls(self, token: str, label: str | None) -> TokenCalls:
        """Return the calls of one key: the same object, however often the key is opened."""
        # Without a lock: a module that hangs while initialising would keep it, and callers must be refused in time.
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
            opened = self._try_to_open(token, pin)
            # Not of each try while a token is away: a service looks for it every few seconds, for years if it is lost.
            log.info(
                "PKCS #11 module initialised again", module=str(self._path), detail=str(error) or type(error).__name__
            )
            return opened

    @contextlib.contextmanager
    def at_work(self, generation: int | None = None) -> Iterator[int]:
        """Be alone in the module, as far as rule 5 goes, and keep it from being reinitialised meanwhile.

        Raises `SessionsEnded` if it was since *generation*.
        """
        with self._changed:
            if generation not in (None, self._generation):
                raise SessionsEnded("the token's sessions have ended")
            self._at_work += 1
            current = self._generation
        turn = self._take_turn()
        try:
            yield current
        finally:
            turn.release()
            with self._changed:
                self._at_work -= 1
                self._changed.notify_all()

    def _take_turn(self) -> threading.RLock:
        """Wait until no other thread is in the module (rule 5), and return what to release afterwards."""
        while True:
            turn = self._turn
            if turn.acquire(timeout=_HANGS_SECONDS):
                if turn is self._turn:
                    self._turn_began = time.monotonic()
                    return turn
                turn.release()  # Given up while this thread waited for it.
            elif time.monotonic() - self._turn_began >= _HANGS_SECONDS:
                with self._changed:
                    if turn is self._turn:
                        self._turn = threading.RLock()

    def _try_to_open(self, token: str, pin: str) -> tuple[Any, int]:
        with self.at_work() as generation:
            found = self._library().get_token(token_label=token)
            self._log_in(found, pin)
            return found.open(rw=True), generation

    def _log_in(self, token: Any, pin: str) -> None:
        """Log the process in to *token*; raise `PKCS11Error`.

        A session that the library opens for a failed login stays open until the module is reinitialised, so a login
        that must fail is not repeated.
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
        """Close the logged-in session: the token may have lost the login, and hides private objects."""
        with self.at_work(), self._logging_in, contextlib.suppress(PKCS11Error):
            session = self._logged_in.pop(token, None)
            if session is not None:
                session.close()

    def _library(self) -> Any:
        try:
            with self._beginning:
                return pkcs11.lib(str(self._path))
        except PKCS11Error as error:
            if type(error) is not PKCS11Error:  # The module's own error: it could be loaded.
                raise
            reason = str(error).rpartition(f"{self._path}: ")[2]
            raise NoModule(
                f"{self._path} is no PKCS #11 module that this machine can load ({reason}): install the token's module "
                "for this system and its processor, or correct module-path"
                if self._path.exists()
                else f"there is no module {self._path}: install the token's PKCS #11 module, or correct module-path"
            ) from error

    def begin_again(self) -> bool:
        """Reinitialise the module, which looks for its tokens; return whether that was done, now or since the call."""
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
    """Return the process's one object for the module at *path*."""
    return TokenModule(path)
