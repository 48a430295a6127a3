"""Calls with one key in a token: in a thread of their own, with a time limit for the caller.

Theory
------
A call into a token's module may never return: its network is gone, its card hangs. It cannot be cancelled.
The signing caller is in a transaction, often the one writer's, and revocations wait behind it: so it waits for a
limited time, and is then refused. The call continues by itself; until it has returned, other callers do not wait, and
are refused at once.

Rules
-----
1. One call at a time with each key, in order of arrival.
2. A result that comes too late is discarded, also a signature.
3. The thread is a daemon, and while it is in the module that stays loaded: at its exit the interpreter would
   unload it during the call, and the process would end by a signal, whatever its exit code.

Does not handle: ending a call. A module in which one hangs is not reinitialised (`provisioning.signers.pkcs11_module`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from pkcs11 import PKCS11Error

_Result = TypeVar("_Result")


class TokenHangs(PKCS11Error):
    """The token has not answered in time, or has not answered an earlier call yet."""


class TokenCalls:
    """The calls that concern one key."""

    def __init__(self, name: str, library: Callable[[], object]) -> None:
        """*name* is the thread's; *library* loads and returns the module, or raises."""
        self._name = name
        self._library = library
        self._turn = threading.Lock()
        self._works: Final[queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]]] = queue.SimpleQueue()
        self._late: Future[Any] | None = None
        self._begun = False

    def do(self, work: Callable[[], _Result], seconds: float) -> _Result:
        """Return the result of *work*, or raise its error; raise `TokenHangs` if it does not finish in *seconds*."""
        with self._turn:
            if self._late is not None and not self._late.done():
                raise TokenHangs("the token has not answered an earlier request yet")
            self._begin()
            outcome: Future[_Result] = Future()
            self._late = outcome
            self._works.put((work, outcome))
            try:
                return outcome.result(seconds)
            except TimeoutError:
                if outcome.done():
                    raise
                raise TokenHangs(f"the token has not answered within {seconds:g} s") from None

    def later(self, work: Callable[[], object]) -> None:
        """Run *work* after all earlier calls; its outcome is discarded."""
        self._works.put((work, Future()))

    def _begin(self) -> None:
        if self._begun:
            return
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError as error:  # The limit of threads, or of memory: temporary.
            raise PKCS11Error(f"no thread for the token: {error}") from error
        self._begun = True

    def _work(self) -> None:
        while True:
            work, outcome = self._works.get()
            library = None
            try:
                library = self._library()  # Kept loaded by this frame, which the interpreter does not clear.
                outcome.set_result(work())
            except BaseException as error:  # noqa: BLE001 - it is raised to whoever waits, as it would without a thread
                outcome.set_exception(error)
            del work, outcome, library  # Not kept until the next call.
