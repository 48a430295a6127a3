"""The CRL file of a broker that runs already: whom it keeps out stays out during an attack, and it is put back.

Rules
-----
1. What the attack writes there revokes all whom the CA has revoked, as the CA did; CRLs of other CAs stay as they are.
2. Its number is that of the CA's own and its date later: the next one of the CA replaces it, whatever a broker goes by.
3. At the end the file is as it was. Until then a copy lies beside it, since a killed process puts nothing back.
"""

from __future__ import annotations

import itertools
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from device_sim.attack.capabilities import CapabilityError, CrlFile
from device_sim.attack.issuer import Issuer
from device_sim.attack.own_command import CommandFailed, carried_out
from provisioning.pki.extension import UNUSABLE

_BEGIN: Final = b"-----BEGIN X509 CRL-----"
_END: Final = b"-----END X509 CRL-----"


class CrlInUse:
    """*file* as it was before the attack: the CRLs that *issuer* has signed, and those of others.

    Raises `CapabilityError` if it is no file of CRLs, or if an attack has not put it back.
    """

    def __init__(self, file: CrlFile, issuer: Issuer) -> None:
        self.file = file
        self.copy = file.crl_file.with_name(f"{file.crl_file.name}.before-attack")
        if self.copy.exists():
            raise CapabilityError(
                f"{self.copy} is there: an attack that was killed has not put {file.crl_file} back; move the former "
                "there, or remove it if the CA has published since"
            )
        try:
            self._content = file.crl_file.read_bytes()
            lists = [x509.load_pem_x509_crl(each) for each in _pem_blocks(self._content)]
            signed = [issuer.has_signed(each) for each in lists]
        except OSError as error:
            raise CapabilityError(f"crl_file {file.crl_file} cannot be read: {error.strerror}") from error
        except UNUSABLE as error:
            raise CapabilityError(f"crl_file {file.crl_file} holds no CRL in PEM that can be read: {error}") from error
        if not lists:
            raise CapabilityError(f"crl_file {file.crl_file} holds no CRL in PEM: name the file that the broker reads")
        self.own = tuple(itertools.compress(lists, signed))
        others = (each.public_bytes(Encoding.PEM) for each, ours in zip(lists, signed, strict=True) if not ours)
        self.others = b"".join(others)

    def keep(self) -> None:
        """Put a copy beside the file, once; raise `OSError`."""
        if not self.copy.exists():
            with self.copy.open("xb") as copy:
                copy.write(self._content)

    async def put_back(self, within: float) -> str:
        """Have the file as it was, and the broker read it within *within* seconds; return what failed."""
        if not self.copy.exists():
            return ""
        try:
            self.file.crl_file.write_bytes(self._content)
            if self.file.reload:
                await carried_out(self.file.reload, within)
            self.copy.unlink()
        except OSError as error:
            return f"{self.file.crl_file} is not as it was ({error.strerror}): {self.copy} is what it held"
        except CommandFailed as error:
            return f"{self.file.crl_file} is as it was, and the broker may not have read it: {error}"
        return ""


def _pem_blocks(content: bytes) -> list[bytes]:
    return [_BEGIN + each.partition(_END)[0] + _END + b"\n" for each in content.split(_BEGIN)[1:]]
