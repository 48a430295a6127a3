"""Certificates that no longer speak for the name in them: revoked, suspended, expired. They have buckets of their own.

Theory
------
A caller's bucket is its name's, for a device has many certificates. But whoever has stolen a key still passes TLS with
it when its certificate is revoked, since expired and revoked ones do, and names its victim: an operator, or a broker,
that was enrolled again under its name found its bucket empty for as long as the thief went on. Whether a certificate is
good only the store knows, which is not asked for each request. It is asked when that matters: when a name's bucket is
empty, about the certificate that was shown. What is then found not to be good counts with all else of the same name
that is good for as little: with a bucket for each, a thief would have as many as his victim has had certificates. What
is good for its successor, an expired one in its group's grace time or one on trial, counts apart from what is good for
nothing: the device has no other, and a thief with a revoked one would keep it from renewing.

Rules
-----
1. A flood costs few questions: one at a time about a certificate, with pauses, and a bounded number about all.
2. What was found counts until the next answer. Whoever is resumed has his name's bucket again at that.
3. A certificate of which nothing is known is its name's; a store that does not answer changes nothing. Any other
   failure changes nothing either, and is logged: nobody waits for the answer.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from cryptography import x509

from provisioning.enrolment.authentication import Standing
from provisioning.errors import Refused
from provisioning.program.once_a_minute import OnceAMinute
from provisioning.program.out_of_memory import told

log = structlog.get_logger(__name__)

PAUSE: Final = 5.0
"""Seconds from one question about a certificate to the next."""
_REMEMBERED: Final = 4096
_ASKED_AT_ONCE: Final = 8

AskStanding = Callable[[x509.Certificate], Awaitable[Standing]]
"""Asks what a certificate, that one of our CAs has signed, is good for now; raises `Refused` if nobody can say."""


class FormerCallers:
    """What is known of certificates of ours whose names have asked too much."""

    def __init__(self, ask_standing: AskStanding, clock: Callable[[], float]) -> None:
        """*clock* is monotonic."""
        self._ask_standing = ask_standing
        self._clock = clock
        self._found: OrderedDict[bytes, tuple[Standing, float]] = OrderedDict()
        """By certificate: what it is good for, and when that was asked. The one asked longest ago first."""
        self._asking: dict[bytes, asyncio.Task[None]] = {}
        self._failures: Final = OnceAMinute()

    def standing(self, der: bytes) -> Standing:
        """Return what the certificate was found to be good for; if not for all, that is asked again behind it."""
        found, _ = self._found.get(der, (Standing.GOOD, 0.0))
        if found is not Standing.GOOD:
            self.doubt(der)
        return found

    def doubt(self, der: bytes) -> None:
        """Ask about a certificate whose name's bucket is empty, unless that was just done."""
        found = self._found.get(der)
        recently = found is not None and self._clock() < found[1] + PAUSE
        if recently or der in self._asking or len(self._asking) >= _ASKED_AT_ONCE:
            return
        self._asking[der] = told(asyncio.get_running_loop().create_task(self._ask(der)))

    async def _ask(self, der: bytes) -> None:
        standing, _ = self._found.get(der, (Standing.GOOD, 0.0))
        try:
            standing = await self._ask_standing(x509.load_der_x509_certificate(der))
        except Refused:
            pass
        except MemoryError:
            raise
        except Exception as error:
            if times := self._failures.happened(self._clock()):
                words = "whether a certificate has ended could not be asked"
                log.error(words, code="INTERNAL", times=times, exc_info=error)
        finally:
            del self._asking[der]
            self._found[der] = (standing, self._clock())
            self._found.move_to_end(der)
            if len(self._found) > _REMEMBERED:
                self._found.popitem(last=False)
