"""Reads the configured anchors, and builds a generation of trust from them; completely, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography import x509

from broker.admission.bundle import ListTerms, OcspTerms, TrustBundle
from broker.admission.bundle_terms import BundleTerms
from broker.admission.peer import DEFAULT_BUNDLE
from broker.admission.trust import Trust
from broker.settings.config import BrokerConfig
from broker.settings.trust_settings import StatusSources, TrustSettings
from broker.sources.anchor_copy import copy_of, is_authority, read_copy, unreadable
from broker.sources.leniency import feed_terms
from provisioning.pki.extension import UNUSABLE
from provisioning.pki.null_parameters import null_in
from provisioning.pki.open_to_all import written_by_all
from provisioning.pki.shown_subject import shown_subject
from provisioning.pki.tls import TlsConfigurationError, certificates_in
from provisioning.program.given_file import PEM_BYTES, contents_of, unread

_SUFFIXES = frozenset({".pem", ".crt", ".cer", ".der"})


def load_trust(config: BrokerConfig, generation: int = 1) -> Trust | None:
    """Return the bundles of *config*; None if `cafile` alone says who is trusted, and the feed who is revoked.

    Nothing is fetched: for an anchors_url the copy is used. Raises `TlsConfigurationError`, or its `AnchorsNotFetched`.
    """
    if config.trust:
        return Trust([_bundle(each, config.state_dir) for each in config.trust], generation)
    if not config.has_crls and not config.has_ocsp:
        return None
    return trust_of_cafile(config, generation)


def trust_of_cafile(config: BrokerConfig, generation: int = 1, *, has_room: bool = False) -> Trust:
    """Return `cafile` as a bundle; *has_room* as in `Trust`. Raises `TlsConfigurationError`."""
    anchors = read_anchors([config.cafile])
    bundle = TrustBundle(DEFAULT_BUNDLE, anchors, lists=_lists(config), ocsp=_ocsp(config))
    return Trust([bundle], generation, has_room=has_room)


def _lists(settings: StatusSources) -> ListTerms | None:
    return ListTerms(settings.crl_policy, settings.crl_from_certificates) if settings.has_crls else None


def _ocsp(settings: StatusSources) -> OcspTerms | None:
    if not settings.has_ocsp:
        return None
    return OcspTerms(settings.ocsp_policy, settings.ocsp_responder, settings.ocsp_from_certificates)


def anchor_files(config: BrokerConfig) -> list[Path]:
    """Return every file with anchors in use, and every directory of such files."""
    if not config.trust:
        return [config.cafile]
    named = [path for bundle in config.trust for path in bundle.anchors]
    copies = [copy_of(bundle, config.state_dir) for bundle in config.trust]
    named += [copy for copy in copies if copy is not None and copy.exists()]
    return [file for path in named for file in (path, *_files_in(path))]


def _bundle(settings: TrustSettings, state_dir: Path) -> TrustBundle:
    where = f"trust bundle {settings.name}"
    try:
        terms = BundleTerms.of(settings)
    except ValueError as error:
        raise TlsConfigurationError(f"{where}: required_eku: {error}; give clientAuth, or dotted numbers") from error
    anchors = read_anchors(settings.anchors, where=f"{where}: ")
    copy = copy_of(settings, state_dir)
    fetched: list[x509.Certificate] = []
    if copy is not None and (copy.exists() or not anchors):
        answered = read_copy(settings, copy)
        if not settings.anchors_sha256:
            fetched = [each for each in answered if each not in anchors]
        anchors += answered
    for anchor in anchors:
        if not is_authority(anchor):
            raise TlsConfigurationError(
                f"{where}: anchors: {anchor.subject.rfc4514_string()} is not the certificate of a CA; "
                "name the CA, and select its clients with identity and issuers"
            )
    lists, ocsp = _lists(settings), _ocsp(settings)
    own = None if settings.feed_policy is None else feed_terms(settings.feed_policy)
    return TrustBundle(
        settings.name,
        anchors,
        terms=terms,
        lists=lists,
        ocsp=ocsp,
        feed=settings.feed,
        feed_terms=own,
        fetched=fetched,
    )


def read_anchors(paths: Sequence[Path], where: str = "") -> list[x509.Certificate]:
    """Return every certificate in *paths*, files or directories of them.

    Raises `TlsConfigurationError` naming, after *where*, the unusable path, or one that everybody may write to.
    """
    anchors: list[x509.Certificate] = []
    for path in paths:
        try:
            files = _files(path)
            for each in {path, *files}:
                if (why := written_by_all(each)) is not None:
                    raise TlsConfigurationError(f"{where}{why}")
            found = [anchor for file in files for anchor in _certificates(file, where)]
        except OSError as error:
            raise TlsConfigurationError(f"{where}{unread(path, error)}") from error
        except UNUSABLE as error:
            raise TlsConfigurationError(
                f"{where}{path} holds no certificate, neither PEM nor DER, or one that is cut off"
            ) from error
        if not found:
            raise TlsConfigurationError(f"{where}{path} holds no certificate file (.pem, .crt, .cer, .der)")
        for anchor in found:
            if why := unreadable(anchor):
                name = shown_subject(anchor)
                raise TlsConfigurationError(f"{where}{path}: {name} cannot be read: {why}; leave it out")
        anchors += found
    return anchors


def _certificates(file: Path, where: str) -> list[x509.Certificate]:
    content = contents_of(file, PEM_BYTES)
    try:
        return certificates_in(content)
    except UNUSABLE as error:
        if why := null_in(content):
            raise TlsConfigurationError(f"{where}{file}: {why}") from error
        raise


def _files_in(path: Path) -> Sequence[Path]:
    """Return the files of *path* if it is a directory; none if it is unreadable: reading it will report that."""
    try:
        return _files(path) if path.is_dir() else ()
    except OSError:
        return ()


def _files(path: Path) -> Sequence[Path]:
    if not path.is_dir():
        return [path]
    return sorted(each for each in path.iterdir() if each.suffix in _SUFFIXES and not each.name.startswith("."))
