"""Transports a question to an OCSP responder, and verifies the answer.

Rules
-----
1. Plain HTTP, no redirects, no proxy, bounded in bytes and time: answers are signed.
2. If a responder cannot be asked or believed, there is no answer. Whether it is revoked itself is asked by the caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from cryptography import x509

from provisioning.client.plain_http import OK, AnswerRefused, HttpFailed, PlainHttp, body_of
from provisioning.pki.ocsp import Answer, OcspRefused, Question, ask, read_answer
from provisioning.pki.revocation import RevocationIndex

PATIENCE = 2.5
"""Seconds that a responder has."""
_MOST_BYTES = 64 * 1024


class OcspUnreachable(OcspRefused):
    """There is no answer."""


class OcspHttp:
    """Connections to responders."""

    def __init__(self) -> None:
        self._http = PlainHttp(PATIENCE, elsewhere=True)

    async def ask(
        self,
        url: str,
        serial: int,
        issuer: x509.Certificate,
        *,
        nonce: bool = True,
        time_at: Callable[[datetime], datetime] | None = None,
    ) -> tuple[Answer, bytes]:
        """Return the answer of the responder at *url* about a certificate of *issuer*, and its raw response.

        *time_at* returns the time that it is judged by, given the clock's; None: that. Raises `OcspRefused`.
        """
        question = ask(serial, issuer, nonce=nonce)
        try:
            async with asyncio.timeout(PATIENCE):
                der = await self._post(url, question)
        except TimeoutError as error:
            raise OcspUnreachable(f"no answer within {PATIENCE:g} s") from error
        except HttpFailed as error:
            raise OcspUnreachable(f"cannot be asked: {error}") from error
        except AnswerRefused as error:
            raise OcspRefused(str(error)) from error
        now = datetime.now(UTC)
        return read_answer(der, question, serial, issuer, now if time_at is None else time_at(now)), der

    async def _post(self, url: str, question: Question) -> bytes:
        headers = {"Content-Type": "application/ocsp-request", "Accept": "application/ocsp-response"}
        async with self._http.asked("POST", url, headers, question.der) as response:
            if response.status_code != OK:
                raise OcspUnreachable(f"HTTP status {response.status_code}")
            return await body_of(response, _MOST_BYTES)

    async def close(self) -> None:
        """Stop asking."""
        await self._http.close()


def is_signed_by_revoked(answer: Answer, index: RevocationIndex) -> bool:
    """Whether the responder that has signed *answer* has a certificate that is revoked by now."""
    return answer.signer is not None and index.find(answer.signer) is not None


def refuse_if_signed_by_revoked(answer: Answer, index: RevocationIndex) -> None:
    """Raise `OcspRefused` in that case."""
    if is_signed_by_revoked(answer, index):
        raise OcspRefused("the responder's own certificate is revoked")
