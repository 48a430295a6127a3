"""Revoked certificates of the provisioning service and of CAs: known from the moment the broker starts.

Theory
------
The index is empty when the broker starts, and the feed fills it. At that moment an attacker on the network path with a
copied key of the service, or the key of a CA, would be trusted although its certificate is revoked, and could claim for
ever that nothing is. So what the feed has said about the service itself and about CAs is stored in `state_dir`, and a
server that presents such a certificate is rejected. There are few: the service's certificate is not revoked when it is
renewed.

Rules
-----
1. It is stored before the feed goes on, but a hanging disk delays no other revocation. What could not be written is
   logged, applies until the broker ends, and is tried again with the next one.
2. Only final revocations are stored: a suspension may be lifted while the broker is not listening.
3. It only decides which server to trust. Clients are judged by the index, which is complete before any is admitted.
4. A file that was tampered with ends the start: it would be a way to be trusted again.
5. Bounded: if there are more than `MOST`, the newest are kept.

Handles, for an hour after the revocation, whoever has copied the service's key together with its proof that it is not
revoked (`provisioning.client.genuine_server`), and for ever whoever has a CA's key, which signs such proofs.
Does not handle: what the feed had not told yet when the broker stopped; a database restored from before such a
revocation (docs/backup.md says what to do).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from broker.admission.issuers import UnreadableAuthority
from broker.admission.path_ends import VerifiedPath
from provisioning.pki.identity import AUTHORITY_PREFIX, PROVISIONING
from provisioning.pki.keys import KeyFileError, replace_private
from provisioning.pki.revocation import CertificateKey, Revocation, whole_key_text
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.serial_number import serial_text
from provisioning.pki.tls import TlsConfigurationError
from provisioning.program.given_file import contents_of

log = structlog.get_logger("broker")

FILE_NAME: Final = "revoked-services.json"
MOST: Final = 8192
"""Of a CA there are two: its certificate, and its key."""
_BYTES: Final = 4 * 1024 * 1024
_PATIENCE: Final = 2.0
"""Seconds that the feed waits for the disk."""


class RevokedServices:
    """The servers not to trust, regardless of what the index knows yet."""

    def __init__(self, state_dir: Path) -> None:
        """Read the stored file in *state_dir*; raise `TlsConfigurationError` if it was tampered with."""
        self._path: Final = state_dir / FILE_NAME
        self._known: Final[dict[CertificateKey, Revocation]] = {}
        self._writing: asyncio.Future[None] | None = None
        for revocation in _kept(self._path):
            self._add(revocation)

    def __len__(self) -> int:
        return len(self._known)

    def find(self, path: VerifiedPath) -> str | None:
        """Return why a server with the certificates *path* is not trusted, None if nothing is known against it."""
        found = next((self._known[key] for key in path.path_revoked_as if key in self._known), None)
        if found is None:
            return None
        which = whole_key_text(found.key) or f"with serial number {serial_text(found.serial)}"
        return f"the certificate {which} is revoked ({found.reason}; kept in {self._path})"

    def refuse(self, path: Sequence[bytes]) -> str | None:
        """Return why a server with the certificates *path* (DER, its own first) is not trusted, or None."""
        return judged(path, self.find)

    def concern(self, device: str) -> bool:
        """Whether the revocations of *device* are stored: it is the service or a CA."""
        return device == PROVISIONING or device.startswith(AUTHORITY_PREFIX)

    async def note(self, revocation: Revocation, device: str, of_key: Revocation | None = None) -> None:
        """Store *revocation*, reported by the feed for *device*, if it does `concern` these, and that *of_key*."""
        if not self.concern(device) or not revocation.reason.final:
            return
        fresh = [each for each in (revocation, of_key) if each is not None and each.key not in self._known]
        for each in fresh:
            self._add(each)
        if fresh:
            await self._keep()

    async def _keep(self) -> None:
        if self._writing is None or self._writing.done():
            written = _written(self._known.values())
            self._writing = asyncio.ensure_future(asyncio.to_thread(self._write, written))
            await asyncio.wait([self._writing], timeout=_PATIENCE)
        if not self._writing.done():
            _tell_not_kept("the disk has not answered")

    def _write(self, content: bytes) -> None:
        try:
            replace_private(self._path, content)
        except (OSError, KeyFileError) as error:
            _tell_not_kept(str(error))

    def _add(self, revocation: Revocation) -> None:
        self._known[revocation.key] = revocation
        if len(self._known) > MOST:
            del self._known[next(iter(self._known))]


def judged(path: Sequence[bytes], find: Callable[[VerifiedPath], str | None]) -> str | None:
    """Return what *find* knows against a server with the certificates *path* (DER), None if nothing is.

    Without a path, as of a resumed session, nothing is known; the service's clients resume none.
    """
    if not path:
        return None
    try:
        certificates = VerifiedPath(path)
    except UnreadableAuthority as error:  # Made by whoever has a CA's key; it may not end the broker.
        return f"its certificate, or one of a CA above it, cannot be read: {error}"
    return find(certificates)


def _tell_not_kept(why: str) -> None:
    log.warning("revocation of the service not kept", code="REVOKED_SERVICE_NOT_KEPT", detail=why)


def _written(known: Iterable[Revocation]) -> bytes:
    rows = [
        {
            "issuer_key_id": each.issuer_key_id.hex(),
            "serial": serial_text(each.serial),
            "reason": each.reason.value,
            "revoked_at": each.revoked_at.astimezone(UTC).isoformat(timespec="seconds"),
        }
        for each in known
    ]
    return json.dumps(rows, indent=1).encode() + b"\n"


def _kept(path: Path) -> Iterator[Revocation]:
    try:
        rows = json.loads(contents_of(path, _BYTES))
        if not isinstance(rows, list):  # An empty object or text has no rows either.
            raise TypeError("it is no list")  # noqa: TRY301 - the same refusal as for a row
        for row in rows:
            yield Revocation(
                bytes.fromhex(row["issuer_key_id"]),
                int(row["serial"], 16),
                RevocationReason(row["reason"]),
                datetime.fromisoformat(row["revoked_at"]),
            )
    except FileNotFoundError:
        return
    except OSError as error:
        raise TlsConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:  # The last for endlessly nested input.
        raise TlsConfigurationError(
            f"{path} was changed or is damaged: restore it from a backup. Without it the broker, until it has read the "
            "feed, trusts a service whose certificate was revoked within the hour, or whose CA is revoked"
        ) from error
