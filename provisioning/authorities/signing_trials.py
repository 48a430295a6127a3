"""Do the tokens sign that hold the keys of the CAs that issue? Tried in the background, for ``/readyz`` and metrics.

Theory
------
A token is pulled out, locked, or its network away, and the service is told nothing of it: it sees that with the next
signature. So it has each such key sign a few bytes of fixed length that are nothing
(`provisioning.ca.signing.try_key`), every `_EVERY_SECONDS` whoever asks and however often. A key in memory
is not tried: it signs.

Rules
-----
1. Nobody's request begins a trial: who reads ``/readyz`` is told what the last one has found.
2. A token that does not answer within `_PATIENCE_SECONDS` does not sign; it is not asked again beside that. It has a
   thread to itself, which no stop waits for.
3. The refusal is logged by the key; here it is said once when it begins and once when it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import Final

import structlog
from cryptography.exceptions import InvalidSignature

from provisioning.ca.issuer import Issuer
from provisioning.errors import Refused

_EVERY_SECONDS: Final = 10.0
_PATIENCE_SECONDS: Final = 5.0

log = structlog.get_logger(__name__)


class SigningTrials:
    """What the last trials have found. *issuers* returns those that issue now."""

    def __init__(self, issuers: Callable[[], Iterable[Issuer]]) -> None:
        self._issuers = issuers
        self._under_way: dict[Issuer, asyncio.Future[bool]] = {}
        self.signs = True
        """Until the first trial: to start, the service has opened its keys."""

    async def run(self) -> None:
        """Try them until it is cancelled."""
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Try each once, and wait for the answers as long as patience lasts."""
        tokens = [issuer for issuer in self._issuers() if not issuer.key_in_memory]
        asked = {issuer: self._under_way.get(issuer) or _trial(issuer) for issuer in tokens}
        if asked:
            await asyncio.wait(asked.values(), timeout=_PATIENCE_SECONDS)
        self._under_way = {issuer: trial for issuer, trial in asked.items() if not trial.done()}
        signed, self.signs = self.signs, all(trial.done() and trial.result() for trial in asked.values())
        if signed and not self.signs:
            log.error("a token does not sign: nothing is issued", unanswered=len(self._under_way))
        elif self.signs and not signed:
            log.info("every token signs again")


def _trial(issuer: Issuer) -> asyncio.Future[bool]:
    """Have the key of *issuer* sign in a thread of its own; return what becomes of it."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[bool] = loop.create_future()

    def told(signs: bool, fault: Exception | None) -> None:
        if outcome.done():
            return
        if fault is None:
            outcome.set_result(signs)
        else:
            outcome.set_exception(fault)

    def work() -> None:
        signs, fault = True, None
        try:
            issuer.try_key()
        except (Refused, InvalidSignature):
            signs = False
        except Exception as error:  # noqa: BLE001 - a fault of ours: it ends whoever waits, as it would without a thread
            fault = error
        with contextlib.suppress(RuntimeError):  # The service has ended meanwhile.
            loop.call_soon_threadsafe(told, signs, fault)

    try:
        threading.Thread(target=work, name="signing-trial", daemon=True).start()
    except RuntimeError as error:  # The limit of threads, or of memory: it will not last, and must not end the service.
        log.warning("a token was not tried", error=str(error))
        outcome.set_result(False)
    return outcome
