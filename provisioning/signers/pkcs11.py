"""A CA's key in a PKCS #11 token: made there, used there, and never anywhere else.

Theory
------
A `Pkcs11Signer` makes the key in its token, finds it again, and deletes it; a `TokenKey`
(`provisioning.signers.token_key`) signs with it. The token is asked to make the key sensitive and not extractable, and
this is verified: a key without these attributes is refused.

Rules
-----
1. ECDSA P-256 and P-384. New keys are P-256.
2. A session that does not become a key's is closed: tokens have few, and other programs need some.

Does not handle: other kinds of key in a token, several slots at once, the token's own initialisation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from provisioning.pki.keys import key_identifier
from provisioning.signers.pkcs11_uri import Pkcs11Uri
from provisioning.signers.signer import SignerError

try:
    from pkcs11 import Attribute, KeyType, ObjectClass, PKCS11Error
    from pkcs11.util.ec import encode_ec_public_key, encode_named_curve_parameters
except ImportError as missing:
    raise SignerError(
        "a key in a token needs python-pkcs11: in the clone, .venv/bin/pip install -e '.[pkcs11]'"
    ) from missing

from provisioning.signers.pkcs11_calls import TokenCalls
from provisioning.signers.pkcs11_module import module_at
from provisioning.signers.pkcs11_words import explained, place_of
from provisioning.signers.token_key import Connected, TokenKey

log = structlog.get_logger(__name__)

_OPEN_SECONDS: Final = 10.0
_CREATE_SECONDS: Final = 60.0
"""Smart cards are slow to generate a key."""
_CURVE: Final = "secp256r1"
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1)
_PROTECTION: Final[dict[Any, bool]] = {
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.PRIVATE: True,
}
_Result = TypeVar("_Result")


class _NoKey(SignerError):
    """The token is present, but the module has not found the key in it."""


@dataclass(frozen=True, slots=True)
class Pkcs11Signer:
    """One key in a token. *uri* has its label."""

    uri: Pkcs11Uri
    pin: Callable[[], str] = field(repr=False)
    """Called when it is needed."""

    @property
    def place(self) -> str:
        """Token and label."""
        return place_of(self.uri)

    @property
    def calls(self) -> TokenCalls:
        """The thread for calls to the token."""
        return module_at(self.uri.module).calls(self.uri.token, self.uri.label)

    def create(self) -> TokenKey:
        """Generate a key that cannot leave the token; raise `SignerError` if its label is already used.

        One that is not as it was asked for is destroyed.
        """
        return TokenKey(self, self._in_time(self._create, _CREATE_SECONDS))

    def _create(self) -> Connected:
        with self._session() as (session, generation):
            for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
                if self._found(session, kind):
                    raise SignerError(f"{self.place} exists already and is not overwritten: remove it first")
            parameters = session.create_domain_parameters(
                KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters(_CURVE)}, local=True
            )
            public, private = parameters.generate_keypair(
                store=True,
                label=self.uri.label,
                private_template={**_PROTECTION, Attribute.SIGN: True},
                public_template={Attribute.VERIFY: True},
            )
            try:
                connected = self._checked(session, generation, private, public)
                for half in (public, private):  # A key's usual identifier in a token, for other tools.
                    half[Attribute.ID] = key_identifier(connected.public_key)
            except BaseException:
                for half in (public, private):
                    with contextlib.suppress(PKCS11Error):  # The first error is the one to report.
                        half.destroy()
                raise
            return connected

    def open(self) -> TokenKey:
        """Find the key; raise `SignerError`."""
        return TokenKey(self, self._in_time(self.connect, _OPEN_SECONDS))

    def connect(self) -> Connected:
        """Find the key in a new session; raise `SignerError`."""
        with self._session() as (session, generation):
            private, public = (self._only(session, kind) for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY))
            return self._checked(session, generation, private, public)

    def connect_again(self) -> Connected:
        """Find a key that was there; raise `SignerError`. Many modules see a reinserted one only when reinitialised."""
        module = module_at(self.uri.module)
        with contextlib.suppress(_NoKey):
            return self.connect()
        module.log_out(self.uri.token)
        try:
            return self.connect()
        except _NoKey as error:
            if not module.begin_again():
                raise
            connected = self.connect()
            log.info("PKCS #11 module initialised again", module=str(self.uri.module), detail=str(error))
            return connected

    def discard(self) -> None:
        """Destroy the key in the token; raise `SignerError`."""
        self._in_time(self._discard, _OPEN_SECONDS)

    def _discard(self) -> None:
        with self._session() as (session, _generation):
            for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
                for each in self._found(session, kind):
                    each.destroy()
            session.close()

    def _only(self, session: Any, kind: ObjectClass) -> Any:
        """Return the one object of this kind with its label; raise `SignerError` if there is none, or a second."""
        found = self._found(session, kind)
        if not found:
            if kind is ObjectClass.PUBLIC_KEY:
                raise _NoKey(
                    f"there is no public key {self.place}: store it with the private key, under the same label"
                )
            raise _NoKey(f"there is no key {self.place}")
        if len(found) > 1:
            raise SignerError(f"there is more than one key {self.place}: remove those that are not this CA's")
        return found[0]

    def _found(self, session: Any, kind: ObjectClass) -> list[Any]:
        """Return all objects with its label: a search that is not completed outlives its session."""
        return list(session.get_objects({Attribute.CLASS: kind, Attribute.LABEL: self.uri.label}))

    def _checked(self, session: Any, generation: int, private: Any, public: Any) -> Connected:
        if private.key_type is not KeyType.EC:
            raise SignerError(f"{self.place} is not an elliptic-curve key: use ECDSA P-256 or P-384")
        for attribute, value in _PROTECTION.items():
            if private[attribute] is not value:
                raise SignerError(f"{self.place} can be taken out of the token: make a key that is not extractable")
        try:
            public_key = serialization.load_der_public_key(encode_ec_public_key(public))
        except (ValueError, UnsupportedAlgorithm) as error:
            raise SignerError(f"{self.place} has no usable public key ({error}): use ECDSA P-256 or P-384") from error
        if not (isinstance(public_key, ec.EllipticCurvePublicKey) and isinstance(public_key.curve, _CURVES)):
            raise SignerError(f"{self.place} is on another curve: use ECDSA P-256 or P-384")
        return Connected(module_at(self.uri.module), generation, session, private, public_key)

    @contextlib.contextmanager
    def _session(self) -> Iterator[tuple[Any, int]]:
        """Open a session, which outlives the block; raise `SignerError`, also for failures in the block."""
        pin = self.pin()
        module = module_at(self.uri.module)
        with explained(self.uri):
            session, generation = module.open_session(self.uri.token, pin)
            with module.at_work(generation):
                try:
                    yield session, generation
                except BaseException:
                    with contextlib.suppress(PKCS11Error):
                        session.close()
                    raise

    def _in_time(self, work: Callable[[], _Result], seconds: float) -> _Result:
        """Run *work* in the key's thread; raise `SignerError` also if it does not finish in time."""
        with explained(self.uri):
            return self.calls.do(work, seconds)
