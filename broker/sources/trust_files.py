"""Reads the anchors that the configuration names, and makes a generation of trust of them; whole, or not at all."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509

from broker.admission.admission import DEFAULT_BUNDLE
from broker.admission.bundle import ListTerms, TrustBundle
from broker.admission.trust import Trust
from broker.config import BrokerConfig
from provisioning.pki.tls import TlsConfigurationError, certificates_in


def load_trust(config: BrokerConfig, generation: int = 1) -> Trust | None:
    """Return the bundles of *config*; None where `cafile` alone says who is believed, and the feed who is revoked.

    Raises `TlsConfigurationError`.
    """
    if not config.has_crls:
        return None
    terms = ListTerms(config.crl_policy, config.crl_from_certificates)
    return Trust([TrustBundle(DEFAULT_BUNDLE, read_anchors([config.cafile]), lists=terms)], generation)


def read_anchors(paths: list[Path]) -> list[x509.Certificate]:
    """Return every certificate in the files *paths*; raise `TlsConfigurationError` naming the one that has none."""
    anchors: list[x509.Certificate] = []
    for path in paths:
        try:
            anchors += certificates_in(path.read_bytes())
        except OSError as error:
            raise TlsConfigurationError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise TlsConfigurationError(f"{path} holds no certificate, neither PEM nor DER ({error})") from error
    return anchors
