"""The CRL file of a broker that runs already: whom it keeps out stays out during an attack, and it is put back.

Rules
-----
1. What the attack writes there revokes all whom the CA has revoked, as the CA did; CRLs of other CAs stay as they are.
2. Its number is that of the CA's own and its date each time a later one: the next one of the CA replaces it, whatever
   a broker goes by.
3. At the end the file is as it was. Until then a copy lies beside it, since a killed process puts nothing back.
4. What somebody else writes there meanwhile is the CA's: rule 1 is for that from then on, and at the end it stays.
5. One attack at a time: the copy is there for the first one that writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from device_sim.attack.capabilities import CapabilityError, CrlFile
from device_sim.attack.issuer import Issuer
from device_sim.attack.own_command import CommandFailed, carried_out
from provisioning.pki.extension import UNUSABLE, extension

_BEGIN: Final = b"-----BEGIN X509 CRL-----"
_END: Final = b"-----END X509 CRL-----"
_EARLIER: Final = timedelta(minutes=1)
"""How old the first list claims to be: so many may follow it in quick succession, each by a second younger."""
_SECOND: Final = timedelta(seconds=1)


class CrlInUse:
    """*file* as it is without the attack: the CRLs that *issuer* has signed, and those of others.

    Raises `CapabilityError` if it is no file of CRLs, or if an attack has not put it back.
    """

    def __init__(self, file: CrlFile, issuer: Issuer) -> None:
        self.file = file
        self.copy = file.crl_file.with_name(f"{file.crl_file.name}.before-attack")
        self._issuer = issuer
        self._written: bytes | None = None
        """What the attack has written there; None: nothing yet."""
        self._dated: datetime | None = None
        self._is_spoilt = False
        """Whether that has failed, so that what is there now may be a part of it."""
        if self.copy.exists():
            raise CapabilityError(
                f"{self.copy} is there: an attack that was killed has not put {file.crl_file} back; move the former "
                "there, or remove it if the CA has published since"
            )
        try:
            self._take(file.crl_file.read_bytes())
        except OSError as error:
            raise CapabilityError(f"crl_file {file.crl_file} cannot be read: {error.strerror}") from error

    def publish(self, serials: Sequence[int]) -> None:
        """Write there what the CA has, with *serials* revoked as well; raise `OSError` or `CapabilityError`."""
        if self._is_spoilt:
            raise CapabilityError(f"{self.file.crl_file} could not be written before")
        content = self.file.crl_file.read_bytes()
        if content not in (self._content, self._written):
            self._take(content)
            if self._written is not None:  # As a whole, or not at all.
                (new := self.copy.with_name(f"{self.copy.name}.new")).write_bytes(content)
                new.replace(self.copy)
        if self._written is None:
            self._keep()
        self._dated = self._date()
        self._written = self._issuer.crl(serials, self.own, self._dated) + self.others
        try:
            self.file.crl_file.write_bytes(self._written)
        except OSError:
            self._is_spoilt = True
            with contextlib.suppress(OSError):  # The disk may be full; there was room for what it held.
                self.file.crl_file.write_bytes(self._content)
            raise

    async def put_back(self, within: float) -> str:
        """Have the file as it was, and the broker read it within *within* seconds; return what failed."""
        if self._written is None:
            return ""
        try:
            if self._is_spoilt or not self._is_anothers():
                self.file.crl_file.write_bytes(self._content)
            self.copy.unlink(missing_ok=True)
            if self.file.reload:
                await carried_out(self.file.reload, within)
        except OSError as error:
            return f"{self.file.crl_file} is not as it was ({error.strerror}): {self.copy} is what it held"
        except CommandFailed as error:
            return f"{self.file.crl_file} is as it was, and the broker may not have read it: {error}"
        return ""

    def _date(self) -> datetime:
        """Return a second more than any before, as a CRL has no fractions, but not one to come: that is not valid."""
        now = datetime.now(UTC)
        before = [each.last_update_utc for each in self.own] + ([self._dated] if self._dated else [])
        return min(now, max([now - _EARLIER, *(each + _SECOND for each in before)])).replace(microsecond=0)

    def _take(self, content: bytes) -> None:
        """Go by *content* from now on."""
        try:
            lists = [x509.load_pem_x509_crl(each) for each in _pem_blocks(content)]
            own = [each for each in lists if self._issuer.has_signed(each)]
            is_whole = all(map(_is_whole, own))
            self._issuer.crl((), own)  # Whether all entries can be written as they are.
        except UNUSABLE as error:
            text = f"crl_file {self.file.crl_file} holds no CRL in PEM that can be read: {error}"
            raise CapabilityError(text) from error
        if not lists:
            text = f"crl_file {self.file.crl_file} holds no CRL in PEM: name the file that the broker reads"
            raise CapabilityError(text)
        if not is_whole:
            text = f"crl_file {self.file.crl_file} holds a delta CRL, or an indirect one: an attack writes neither"
            raise CapabilityError(text)
        self._content, self.own = content, tuple(own)
        self.others = b"".join(each.public_bytes(Encoding.PEM) for each in lists if each not in own)

    def _keep(self) -> None:
        """Put a copy beside the file; raise `CapabilityError` if another attack has."""
        try:
            copy = self.copy.open("xb")
        except FileExistsError:
            raise CapabilityError(f"{self.copy} is there: another attack uses {self.file.crl_file}") from None
        try:
            with copy:
                copy.write(self._content)
        except OSError:
            self.copy.unlink()
            raise

    def _is_anothers(self) -> bool:
        """Whether somebody else has written what is there now, and it is of use to a broker."""
        with contextlib.suppress(FileNotFoundError, CapabilityError):
            content = self.file.crl_file.read_bytes()
            if content != self._written:
                self._take(content)
                return True
        return False


def _is_whole(crl: x509.CertificateRevocationList) -> bool:
    """Whether *crl* alone says who is revoked, of its own issuer's certificates."""
    point = extension(crl, x509.IssuingDistributionPoint)
    return extension(crl, x509.DeltaCRLIndicator) is None and not (point is not None and point.indirect_crl)


def _pem_blocks(content: bytes) -> list[bytes]:
    return [_BEGIN + each.partition(_END)[0] + _END + b"\n" for each in content.split(_BEGIN)[1:]]
