"""Error texts for a token's module, which name the token and the remedy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

import pkcs11
from pkcs11 import PKCS11Error

from provisioning.signers.pkcs11_calls import TokenHangs
from provisioning.signers.pkcs11_module import WRONG_PIN, LastTry, NoModule
from provisioning.signers.pkcs11_uri import Pkcs11Uri
from provisioning.signers.signer import SignerError

_AWAY: Final = (
    "token {token} is not there, or does not respond ({error}): check that it is plugged in, and its device on"
)
_REMEDIES: Final[dict[type[PKCS11Error], str]] = {
    pkcs11.exceptions.PinLocked: "the PIN of token {token} is locked, too many wrong ones were tried: unlock it with "
    "the token's own tool and its security officer's PIN",
    pkcs11.exceptions.PinExpired: "the PIN of token {token} has expired: set a new one with the token's own tool, and "
    "give that to the service",
    pkcs11.exceptions.UserPinNotInitialized: "token {token} has no PIN yet: set one with the token's own tool",
    LastTry: "one more wrong PIN would lock token {token}, so none is tried: log in once with the token's own tool and "
    "the right PIN, then give that to the service",
    pkcs11.exceptions.SessionCount: "token {token} has no session left for this service: end another program that uses "
    "it, or raise its limit of sessions",
    pkcs11.exceptions.TokenNotPresent: _AWAY,
    pkcs11.exceptions.TokenNotRecognised: _AWAY,
    pkcs11.exceptions.DeviceRemoved: _AWAY,
    TokenHangs: "{error}: check that token {token} can be reached (network, power); the module's own log says more",
}


def place_of(uri: Pkcs11Uri) -> str:
    """Return token and label."""
    return f"{uri.label!r} in token {uri.token!r}"


@contextlib.contextmanager
def explained(uri: Pkcs11Uri) -> Iterator[None]:
    """Raise `SignerError`, with a remedy, for errors of the token or its module about the key at *uri*."""
    try:
        yield
    except pkcs11.exceptions.NoSuchToken:
        raise SignerError(f"there is no token {uri.token!r} in {uri.module}: check that it is plugged in") from None
    except pkcs11.exceptions.MultipleTokensReturned:
        raise SignerError(
            f"more than one token in {uri.module} is called {uri.token!r}: unplug the others, or give them other labels"
        ) from None
    except WRONG_PIN:
        raise SignerError(
            f"the PIN of token {uri.token!r} is wrong: correct it; a token locks after a few tries"
        ) from None
    except NoModule as error:
        raise SignerError(str(error)) from error
    except PKCS11Error as error:
        for kind, words in _REMEDIES.items():
            if isinstance(error, kind):
                raise SignerError(words.format(token=repr(uri.token), error=sentence(error))) from error
        raise SignerError(
            f"{place_of(uri)} cannot be used: {sentence(error)}; check module-path, and that this user "
            "may use the token and read its configuration"
        ) from error


def sentence(error: Exception) -> str:
    """Return the text of *error*, or the name: many of the library's errors have only that."""
    return str(error) or type(error).__name__
