"""Checks in the background, for ``/readyz`` and metrics, that the tokens with active CAs' keys can sign.

Theory
------
If a token is removed, locked, or its network fails, the service would notice only at the next
signature. So it makes a trial signature with each such key, over a few meaningless bytes of fixed length
(`provisioning.ca.signing.try_key`), every `_EVERY_SECONDS`, however often the result is requested. A key in memory
is not tried: it always signs.

Rules
-----
1. No request starts a trial: ``/readyz`` reports the result of the last one.
2. A token that does not answer within `_PATIENCE_SECONDS` counts as not signing; no second trial is started meanwhile.
   Each trial has a thread to itself, which the service's stop does not wait for.
3. The error is logged by the key; here the failure is logged once when it begins and once when it ends.
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
    """The results of the last trials. *issuers* returns the active ones."""

    def __init__(self, issuers: Callable[[], Iterable[Issuer]]) -> None:
        self._issuers = issuers
        self._under_way: dict[Issuer, asyncio.Future[bool]] = {}
        self.signs = True
        """True before the first trial: the service has opened its keys at start."""

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
            log.error(
                "no token with a CA key signs: nothing is issued", code="SIGNER_FAILED", unanswered=len(self._under_way)
            )
        elif self.signs and not signed:
            log.info("all tokens with CA keys sign again", code="SIGNER_CURRENT")


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
        log.warning("a token was not tried", code="SIGNER_NOT_TRIED", detail=str(error))
        outcome.set_result(False)
    return outcome
