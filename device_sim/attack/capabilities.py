"""What a broker claims to support, from a TOML file, so that brokers of different abilities give one comparable table.

    name = "mosquitto"
    supports = ["mqtt5", "qos2", "topic_policy", "revocation"]

    [limits]                      # seconds after which a silent peer must be disconnected
    handshake = 15
    connect = 15
    revocation = 3                # from the call that revokes to the end of a live session
    revocation_p95 = 0.5          # the same for 19 of 20 devices

    [expected]                    # where the right answer differs from the catalogue's, or is more specific
    "5-revoked" = ["tls certificate_revoked"]

    [revocation]                  # how a CRL is installed, for a broker that reads a file
    crl_file = "/etc/mosquitto/crl.pem"
    reload = ["systemctl", "reload", "mosquitto"]

A case that needs an unclaimed feature is still run where possible, and its verdict is `skip` with the missing claim:
the table shows what happened without calling a missing feature a vulnerability. ``subscription_policy`` means refusing
a subscription; a broker that grants it is held to ``topic_policy`` alone if something is then delivered.

Rules
-----
1. An unknown key, feature or case is an error: a misspelt one must not silently change a verdict.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from provisioning.program.given_file import SETTINGS_BYTES, named, not_text, text_of, unread
from provisioning.program.given_toml import NotToml, toml_of


class CapabilityError(Exception):
    """The capability file cannot be used; the text names the file, the key and the remedy."""


class Feature(StrEnum):
    """What a broker may or may not be able to do."""

    MQTT5 = "mqtt5"
    TLS12 = "tls12"
    QOS2 = "qos2"
    CLIENT_ID_BINDING = "client_id_binding"
    URI_IDENTITY = "uri_identity"
    TOPIC_POLICY = "topic_policy"
    SUBSCRIPTION_POLICY = "subscription_policy"
    REVOCATION = "revocation"
    CERTIFICATE_REVOCATION = "certificate_revocation"
    REGISTRY = "registry"
    SUSPENSION = "suspension"
    FLAPPING_ALERT = "flapping_alert"
    LIVE_EXPIRY = "live_expiry"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TimeLimits(_Strict):
    """Seconds within which the broker must have closed an idle stranger."""

    handshake: float = Field(default=15.0, gt=0)
    connect: float = Field(default=15.0, gt=0)
    keep_alive: float = Field(default=5.0, gt=0)
    """From the last packet of a device with a keep alive of one second."""
    revocation: float = Field(default=3.0, gt=0)
    """From the call that revokes to the end of the live session."""
    revocation_p95: float = Field(default=0.5, gt=0)
    """The same for 19 of 20 devices that are revoked one after the other: what is usual, on a machine that has time."""


class CrlFile(_Strict):
    """A CRL that the broker reads from a file, and the command that makes it reread the file."""

    crl_file: Annotated[Path, BeforeValidator(named)]
    reload: tuple[str, ...] = ()


class Capabilities(_Strict):
    """All that is claimed for one broker."""

    name: str
    supports: frozenset[Feature]
    limits: TimeLimits = TimeLimits()
    expected: dict[str, tuple[str, ...]] = {}
    revocation: CrlFile | None = None

    def missing(self, needs: Iterable[Feature]) -> list[str]:
        """Return those of *needs* that are not claimed, in order."""
        return sorted(need.value for need in needs if need not in self.supports)

    def check_cases(self, known: Iterable[str]) -> None:
        """Raise `CapabilityError` if an expectation names none of the *known* cases."""
        unknown = sorted(set(self.expected) - set(known))
        if unknown:
            raise CapabilityError(f"capabilities of {self.name}: no such case: {', '.join(unknown)}; see --list")


EVERYTHING = Capabilities(name="broker", supports=frozenset(Feature) - {Feature.TLS12})
"""The standard for a broker without a capability file."""


def load(path: Path) -> Capabilities:
    """Return the capabilities in the TOML file *path*; raise `CapabilityError`."""
    try:
        content = toml_of(text_of(path, SETTINGS_BYTES))
    except OSError as error:
        raise CapabilityError(unread(path, error)) from error
    except UnicodeDecodeError as error:
        raise CapabilityError(f"{path} is not TOML: {not_text(error)}") from error
    except NotToml as error:
        raise CapabilityError(f"{path} is not TOML: {error}") from error
    try:
        return Capabilities.model_validate(content)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg'][:1].lower()}{each['msg'][1:]}" for each in error.errors()
        )
        raise CapabilityError(f"{path}: {wrong}") from None
