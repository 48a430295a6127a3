"""Anchors in files: whole, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from broker.admission.bundle import ListTerms, OcspTerms
from broker.settings.config import BrokerConfig
from broker.settings.trust_settings import REQUIRE, StatusPolicy, TrustSettings
from broker.sources.anchor_copy import copy_of, keep
from broker.sources.trust_files import anchor_files, load_trust, read_anchors
from provisioning.pki.tls import TlsConfigurationError
from tests.support.examples import examples
from tests.support.manufacturer import Manufacturer
from tests.support.null_parameters import with_null
from tests.support.pki import pem_of, shared_pki
from tests.support.somebody_else import as_somebody_else

FIRST, SECOND = (pem_of(held.certificate) for held in (shared_pki().root, shared_pki().issuing))


@examples(100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, len(SECOND.rstrip()) - 1))
def test_a_file_that_is_being_written_is_not_a_smaller_one(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "anchors.pem"
    file.write_bytes(FIRST + SECOND[:cut])
    if cut < len(b"-----BEGIN CERTIFICATE-----"):  # Nothing of it says yet that there is to be one.
        assert len(read_anchors([file])) == 1
        return
    with pytest.raises(TlsConfigurationError, match=r"anchors\.pem holds no certificate, .* or one that is cut off"):
        read_anchors([file])


def test_a_whole_file_is_read_with_what_else_it_holds(tmp_path: Path) -> None:
    file = tmp_path / "anchors.pem"
    file.write_bytes(
        b"# ours\n" + FIRST + b"\n" + SECOND + b"-----BEGIN DH PARAMETERS-----\nAA==\n-----END DH PARAMETERS-----\n"
    )
    assert len(read_anchors([file])) == 2


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (FIRST + Manufacturer().unreadable_ca().encode(), r"CN=Acme.* cannot be read: error parsing .*; leave it out$"),
        (shared_pki().root.der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x04"), "holds no certificate"),
        (with_null(shared_pki().root.der), r"its signature algorithm has a NULL parameter, .* issue it anew without$"),
    ],
    ids=["an issuer whose name is no text", "version 5", "of a TPM's provider"],
)
def test_a_certificate_that_cannot_be_read_is_no_anchor_and_named(tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "anchors.pem"
    file.write_bytes(content)
    with pytest.raises(TlsConfigurationError, match=rf"anchors\.pem:? {why}"):
        read_anchors([file])


def test_a_directory_that_cannot_be_read_ends_nobody_who_looks_whether_it_has_changed(tmp_path: Path) -> None:
    directory = tmp_path / "anchors"
    directory.mkdir()
    (directory / "ca.pem").write_bytes(FIRST)
    bundle = TrustSettings(name="fleet", anchors=(directory,), unsafe_no_revocation=True)
    config = BrokerConfig(cafile=tmp_path, certfile=tmp_path, keyfile=tmp_path, trust=(bundle,))
    assert anchor_files(config) == [directory, directory / "ca.pem"]
    directory.chmod(0)
    with as_somebody_else():
        assert anchor_files(config) == [directory]
        with pytest.raises(TlsConfigurationError, match="cannot be read"):
            read_anchors([directory])
    directory.chmod(0o700)


def test_each_bundle_is_judged_on_the_terms_of_its_own_table(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(FIRST)
    asked: dict[str, Any] = {"crlfile": "lists", "crl_policy": "grace 1h", "crl_from_certificates": True}
    asked |= {"ocsp_responder": "http://a/", "ocsp_policy": "require", "ocsp_from_certificates": True}
    tables = (
        TrustSettings(name="asked", anchors=(file,), **asked),
        TrustSettings(name="followed", anchors=(file,), feed=True, feed_policy=REQUIRE),
    )
    trust = load_trust(BrokerConfig(provisioning="https://localhost:8443", cafile=file, trust=tables), 7)
    assert trust is not None
    assert trust.generation == 7
    first, second = trust.bundles
    assert first.lists == ListTerms(StatusPolicy(3600.0), from_certificates=True)
    assert first.ocsp == OcspTerms(REQUIRE, "http://a/", from_certificates=True)
    assert (first.name, first.feed, first.feed_terms) == ("asked", False, None)
    assert (second.lists, second.ocsp, second.feed) == (None, None, True)
    assert second.feed_terms is not None
    assert second.feed_terms.strict


@pytest.mark.parametrize(
    ("settings", "lists", "asks"),
    [({}, False, False), ({"crlfile": "lists"}, True, False), ({"ocsp_responder": "http://a/"}, False, True)],
)
def test_cafile_is_a_bundle_where_lists_or_a_responder_say_who_is_revoked(
    tmp_path: Path, settings: dict[str, Any], lists: bool, asks: bool
) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(FIRST)
    trust = load_trust(BrokerConfig(provisioning="https://localhost:8443", cafile=file, **settings))
    assert (trust is None) is not (lists or asks)
    for each in () if trust is None else trust.bundles:
        assert (each.lists is not None, each.ocsp is not None) == (lists, asks)


@pytest.mark.parametrize("pinned", [False, True])
def test_what_a_url_names_is_known_as_such_unless_the_settings_name_it_too(tmp_path: Path, *, pinned: bool) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(FIRST)
    pki = shared_pki()
    url: dict[str, Any] = {"anchors_url": "https://plant.example/", "anchors_url_cafile": file}
    if pinned:
        url["anchors_sha256"] = tuple(each.certificate.fingerprint(SHA256()).hex() for each in (pki.root, pki.issuing))
    table = TrustSettings(name="plant", anchors=(file,), unsafe_no_revocation=True, **url)
    config = BrokerConfig(cafile=file, certfile=file, keyfile=file, trust=(table,), state_dir=tmp_path)
    copy = copy_of(table, tmp_path)
    assert copy is not None
    keep(copy, [pki.root.certificate, pki.issuing.certificate])
    trust = load_trust(config)
    assert trust is not None
    (bundle,) = trust.bundles
    assert bundle.fetched == (frozenset() if pinned else {pki.issuing.der})
