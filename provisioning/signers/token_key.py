"""A CA's key that stays in its token, as a key of the library's own classes.

Theory
------
`TokenKey` is a subclass of the library's elliptic-curve key whose `sign` hashes here and lets the token sign the hash;
everything that signs with a key signs with it, unaware.

A token can be removed and reinserted. A failed signature is tried once more in a new session, for which the module
searches its token, and the key in it, again if necessary (`provisioning.signers.pkcs11_module`); if that fails too, or
the PIN cannot be read by then, the caller is told that the service cannot sign now, so that clients
retry. The same applies if the token does not answer: signing may block all revocations meanwhile
(`provisioning.signers.pkcs11_calls`).

Rules
-----
1. One session per key, used by one thread: not all modules support more. A session no longer used is closed, and a
   closed one is never used: its handle may be another's by then.
2. Every signature is verified with the public key: with a token whose key halves do not match, or that fails,
   invalid certificates and CRLs would be issued.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from pkcs11 import Mechanism, PKCS11Error

from provisioning.errors import Code, ConfigurationError, Refused
from provisioning.signers.pkcs11_calls import TokenCalls
from provisioning.signers.pkcs11_module import TokenModule
from provisioning.signers.pkcs11_words import sentence
from provisioning.signers.signer import SignerError

log = structlog.get_logger(__name__)

_SIGN_SECONDS: Final = 5.0


class _AnotherKey(PKCS11Error):
    """The key in the token is not the one that was there before."""


class _WrongSignature(PKCS11Error):
    """The token's result is not a signature of this key."""


@dataclass(frozen=True, slots=True)
class Connected:
    """A key in an open session."""

    module: TokenModule
    generation: int
    session: Any
    handle: Any
    public_key: ec.EllipticCurvePublicKey

    def sign(self, digest: bytes) -> bytes:
        """Return the token's signature, r and s concatenated; raise `PKCS11Error`."""
        with self.module.at_work(self.generation):
            signature: bytes = self.handle.sign(digest, mechanism=Mechanism.ECDSA)
            return signature

    def close(self) -> None:
        """Close the session, if the token lets us."""
        with contextlib.suppress(PKCS11Error), self.module.at_work(self.generation):
            self.session.close()


class TokenPlace(Protocol):
    """Where the key is."""

    @property
    def place(self) -> str:
        """For people."""
        ...

    @property
    def calls(self) -> TokenCalls:
        """The thread for calls to the token."""
        ...

    def connect_again(self) -> Connected:
        """Find a key that was there; raise `SignerError`."""
        ...


class TokenKey(ec.EllipticCurvePrivateKey):
    """A private key that stays in its token."""

    def __init__(self, signer: TokenPlace, connected: Connected) -> None:
        self._signer = signer
        self._connected: Connected | None = connected
        self._public_key = connected.public_key

    def __del__(self) -> None:
        """Close the session when the key is no longer referenced: a root's is opened for each of its CRLs.

        The key's thread does it, as this may be called in any thread, and the module may hang.
        """
        if self._connected is not None:
            self._signer.calls.later(self._connected.close)

    @property
    def curve(self) -> ec.EllipticCurve:
        """The key's curve."""
        return self._public_key.curve

    @property
    def key_size(self) -> int:
        """Its size in bits."""
        return self._public_key.key_size

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Return the public half."""
        return self._public_key

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """Return the token's signature, in DER; raise `Refused` with UNAVAILABLE if it gives none."""
        digest, hashed = _digest(bytes(data), signature_algorithm)
        try:
            return self._signer.calls.do(lambda: self._signed(digest, hashed), _SIGN_SECONDS)
        except PKCS11Error as error:  # No answer, or no thread for the call.
            log.error("token does not sign", code="SIGNER_FAILED", key=self._signer.place, detail=sentence(error))
            raise _unavailable() from error

    def _signed(self, digest: bytes, hashed: hashes.HashAlgorithm) -> bytes:
        """Let the token sign; retry once in a new session if that fails. Called by the one thread of this key."""
        connected, self._connected = self._connected, None  # In any case: no closed session is used again.
        if connected is not None:
            try:
                signature = self._verified(connected, digest, hashed)
            except PKCS11Error as error:
                connected.close()
                log.warning(
                    "token failed to sign once", code="SIGNER_FAILED", key=self._signer.place, detail=sentence(error)
                )
            else:
                self._connected = connected
                return signature
        return self._signed_again(digest, hashed)

    def _signed_again(self, digest: bytes, hashed: hashes.HashAlgorithm) -> bytes:
        try:
            connected = self._signer.connect_again()
            try:
                signature = self._verified(connected, digest, hashed)
            except BaseException:
                connected.close()
                raise
        except (PKCS11Error, SignerError, ConfigurationError) as error:  # The last: the PIN can no longer be read.
            log.error("token does not sign", code="SIGNER_FAILED", key=self._signer.place, detail=sentence(error))
            raise _unavailable() from error
        self._connected = connected
        log.info("token signs again", code="SIGNER_CURRENT", key=self._signer.place)
        return signature

    def _verified(self, connected: Connected, digest: bytes, hashed: hashes.HashAlgorithm) -> bytes:
        if connected.public_key != self._public_key:
            raise _AnotherKey("the token has another key under this label")
        raw = connected.sign(digest)
        half = len(raw) // 2
        signature = encode_dss_signature(int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))
        try:
            self._public_key.verify(signature, digest, ec.ECDSA(Prehashed(hashed)))
        except InvalidSignature:
            raise _WrongSignature(
                "its signature is wrong: check that private and public key of this label belong together"
            ) from None
        return signature

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:  # noqa: ARG002 - of the library's class
        """Refuse: a CA's key only signs."""
        raise TypeError("a CA's key signs and does nothing else")

    def private_numbers(self) -> NoReturn:
        """Refuse: the key never leaves its token."""
        raise TypeError("the key never leaves its token")

    def private_bytes(self, *_encoding: object, **_named: object) -> NoReturn:
        """Refuse: the key never leaves its token."""
        raise TypeError("the key never leaves its token")

    def __copy__(self) -> TokenKey:
        return self

    def __deepcopy__(self, _memo: dict[int, Any]) -> TokenKey:
        return self


def _digest(data: bytes, algorithm: ec.EllipticCurveSignatureAlgorithm) -> tuple[bytes, hashes.HashAlgorithm]:
    """Return the digest of *data* to sign, and its hash algorithm."""
    if not isinstance(algorithm, ec.ECDSA):
        raise TypeError("the token signs with ECDSA only")
    if isinstance(algorithm.algorithm, Prehashed):
        return data, _HASH_OF[len(data)]
    digest = hashes.Hash(algorithm.algorithm)
    digest.update(data)
    return digest.finalize(), algorithm.algorithm


_HASH_OF: Final[dict[int, hashes.HashAlgorithm]] = {
    each.digest_size: each for each in (hashes.SHA256(), hashes.SHA384())
}


def _unavailable() -> Refused:
    return Refused(Code.UNAVAILABLE, "the CA's key in its token cannot be used now; the log says why, try again")
