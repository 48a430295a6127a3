"""A CA's key in a PKCS #11 token: made there, used there, and never anywhere else.

Theory
------
`TokenKey` is a subclass of the library's elliptic-curve key whose `sign` hashes here and lets the token sign the hash;
everything that signs with a key signs with it, unaware. The token is asked to make the key sensitive and not
extractable, and is not believed: a key that says otherwise of itself is refused.

A token can be pulled out and put back. A signature that fails is tried once more in a new session, for which the module
looks for its token, and the key in it, anew if it has to (`provisioning.signers.pkcs11_module`); if that fails too, or
there is no PIN to be had by then, the caller is told that the service cannot sign now, which is an answer that clients
repeat.

Rules
-----
1. One session a key, used by one thread at a time: modules differ in what they bear.
2. ECDSA P-256 and P-384. New keys are P-256.

Does not handle: other kinds of key in a token, several slots at once, the token's own initialisation.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import structlog
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature

from provisioning.errors import Code, ConfigurationError, Refused
from provisioning.pki.keys import key_identifier
from provisioning.signers.pkcs11_uri import Pkcs11Uri
from provisioning.signers.signer import SignerError

try:
    import pkcs11
    from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass, PKCS11Error
    from pkcs11.util.ec import encode_ec_public_key, encode_named_curve_parameters
except ImportError as missing:
    raise SignerError("a key in a token needs python-pkcs11: pip install 'fleetgate[pkcs11]'") from missing

from provisioning.signers.pkcs11_module import TokenModule, module_at

log = structlog.get_logger(__name__)

_UNAVAILABLE: Final = Refused(
    Code.UNAVAILABLE, "the CA's key cannot be reached in its token now, the log says why; try again"
)
_CURVE: Final = "secp256r1"
_PROTECTION: Final[dict[Any, bool]] = {
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.PRIVATE: True,
}


class _NoKey(SignerError):
    """The token is there, and the key is not in it, as far as the module has looked."""


@dataclass(frozen=True, slots=True)
class _Connected:
    """A key in an open session."""

    module: TokenModule
    generation: int
    session: Any
    handle: Any
    public_key: ec.EllipticCurvePublicKey

    def sign(self, digest: bytes) -> bytes:
        with self.module.at_work(self.generation):
            signature: bytes = self.handle.sign(digest, mechanism=Mechanism.ECDSA)
            return signature

    def close(self) -> None:
        with contextlib.suppress(PKCS11Error), self.module.at_work(self.generation):
            self.session.close()


class TokenKey(ec.EllipticCurvePrivateKey):
    """A private key that stays in its token."""

    def __init__(self, signer: Pkcs11Signer, connected: _Connected) -> None:
        self._signer = signer
        self._connected = connected
        self._public_key = connected.public_key
        self._lock = threading.Lock()

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
        digest = _digest(bytes(data), signature_algorithm)
        with self._lock:
            try:
                raw = self._connected.sign(digest)
            except PKCS11Error as error:
                log.warning("token did not sign", key=self._signer.place, error=_sentence(error))
                raw = self._sign_again(digest)
        half = len(raw) // 2
        return encode_dss_signature(int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))

    def _sign_again(self, digest: bytes) -> bytes:
        self._connected.close()
        try:
            connected = self._signer.connect_again()
            signature = connected.sign(digest)
        except (PKCS11Error, SignerError, ConfigurationError) as error:  # The last: no PIN can be read any more.
            log.error("token does not sign", key=self._signer.place, error=_sentence(error))  # noqa: TRY400
            raise _UNAVAILABLE from error
        if connected.public_key != self._public_key:
            log.error("another key is in the token", key=self._signer.place)
            raise _UNAVAILABLE
        self._connected = connected
        log.info("token signs again", key=self._signer.place)
        return signature

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:  # noqa: ARG002
        """Refuse: a CA's key signs and does nothing else."""
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


@dataclass(frozen=True, slots=True)
class Pkcs11Signer:
    """One key in a token. *uri* has its label."""

    uri: Pkcs11Uri
    pin: Callable[[], str] = field(repr=False)
    """Asked when it is needed."""

    @property
    def place(self) -> str:
        """Token and label."""
        return f"{self.uri.label!r} in token {self.uri.token!r}"

    def create(self) -> TokenKey:
        """Make a key that cannot leave the token; raise `SignerError` if one of its label is there."""
        with self._session() as (session, generation):
            for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
                if self._found(session, kind):
                    raise SignerError(f"{self.place} exists already: it is never overwritten, remove it first")
            parameters = session.create_domain_parameters(
                KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters(_CURVE)}, local=True
            )
            public, private = parameters.generate_keypair(
                store=True,
                label=self.uri.label,
                private_template={**_PROTECTION, Attribute.SIGN: True},
                public_template={Attribute.VERIFY: True},
            )
            connected = self._checked(session, generation, private, public)
            for half in (public, private):  # The usual name of a key in a token, for the tools of others.
                half[Attribute.ID] = key_identifier(connected.public_key)
            return TokenKey(self, connected)

    def open(self) -> TokenKey:
        """Find the key; raise `SignerError`."""
        return TokenKey(self, self.connect())

    def connect(self) -> _Connected:
        """Find the key in a new session; raise `SignerError`."""
        with self._session() as (session, generation):
            private, public = (self._only(session, kind) for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY))
            return self._checked(session, generation, private, public)

    def connect_again(self) -> _Connected:
        """Find a key that was there; raise `SignerError`. One that was put back many modules see when they begin."""
        try:
            return self.connect()
        except _NoKey as error:
            if not module_at(self.uri.module).begin_again():
                raise
            log.info("token's module begun again", module=str(self.uri.module), error=str(error))
            return self.connect()

    def discard(self) -> None:
        """Destroy the key in the token."""
        with self._session() as (session, _generation):
            for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
                for each in self._found(session, kind):
                    each.destroy()

    def _only(self, session: Any, kind: ObjectClass) -> Any:
        """Return the one half of its label; raise `SignerError` if there is none, or another."""
        found = self._found(session, kind)
        if not found:
            raise _NoKey(f"there is no key {self.place}")
        if len(found) > 1:
            raise SignerError(f"there is more than one key {self.place}: remove those that are not this CA's")
        return found[0]

    def _found(self, session: Any, kind: ObjectClass) -> list[Any]:
        """Return what has its label, all of it: a search that is left in the middle outlives its session."""
        return list(session.get_objects({Attribute.CLASS: kind, Attribute.LABEL: self.uri.label}))

    def _checked(self, session: Any, generation: int, private: Any, public: Any) -> _Connected:
        if private.key_type is not KeyType.EC:
            raise SignerError(f"{self.place} is no elliptic-curve key: use ECDSA P-256 or P-384")
        for attribute, value in _PROTECTION.items():
            if private[attribute] is not value:
                raise SignerError(f"{self.place} can be taken out of the token: make a key that is not extractable")
        public_key = serialization.load_der_public_key(encode_ec_public_key(public))
        if not isinstance(public_key, ec.EllipticCurvePublicKey):
            raise SignerError(f"{self.place} has no usable public key")
        return _Connected(module_at(self.uri.module), generation, session, private, public_key)

    @contextlib.contextmanager
    def _session(self) -> Iterator[tuple[Any, int]]:
        """Open a session for the block and what comes after it; raise `SignerError`, also for what fails within."""
        pin = self.pin()
        module = module_at(self.uri.module)
        with self._explained():
            session, generation = module.open_session(self.uri.token, pin)
            with module.at_work(generation):
                yield session, generation

    @contextlib.contextmanager
    def _explained(self) -> Any:
        try:
            yield
        except pkcs11.exceptions.NoSuchToken:
            raise SignerError(f"there is no token {self.uri.token!r} in {self.uri.module}: is it plugged in?") from None
        except pkcs11.exceptions.MultipleTokensReturned:
            raise SignerError(
                f"more than one token in {self.uri.module} is called {self.uri.token!r}: unplug the others, or give "
                "them other labels"
            ) from None
        except (pkcs11.exceptions.PinIncorrect, pkcs11.exceptions.PinLenRange, pkcs11.exceptions.PinInvalid):
            raise SignerError(
                f"the PIN of token {self.uri.token!r} is wrong: correct it, a token locks after a few tries"
            ) from None
        except PKCS11Error as error:
            raise SignerError(
                f"{self.place} cannot be used: {_sentence(error)}; is module-path right, and may this user use "
                "the token and read its configuration?"
            ) from error


def _digest(data: bytes, algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
    if not isinstance(algorithm, ec.ECDSA):
        raise TypeError("the token signs with ECDSA only")
    if isinstance(algorithm.algorithm, Prehashed):
        return data
    digest = hashes.Hash(algorithm.algorithm)
    digest.update(data)
    return digest.finalize()


def _sentence(error: Exception) -> str:
    return str(error) or type(error).__name__
