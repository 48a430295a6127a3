"""The service's own certificate was lost: it issues itself another, with the same names, and starts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from structlog.testing import capture_logs

from provisioning.authorities.own_credentials import OwnCredentials
from provisioning.ca.profile import Profile, ProfileConfig, ProfileName, profile_of
from provisioning.directory.files import OPERATOR, SERVER, AuthorityFiles, read_certificate
from provisioning.errors import ConfigurationError
from provisioning.pki.keys import load_key
from provisioning.pki.pem import pem_of
from tests.support.fleet import Fleet

PROFILES: dict[str, Profile] = {name: profile_of(ProfileConfig(name, timedelta(days=90))) for name in ProfileName}


def own(fleet: Fleet, directory: Path) -> OwnCredentials:
    return OwnCredentials(
        AuthorityFiles(directory),
        fleet.issuer,
        fleet.database,
        fleet.serial_numbers,
        PROFILES,
        "fleet.internal",
        fleet.clock,
    )


def names_in(certificate: x509.Certificate) -> list[str]:
    alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return alternatives.get_values_for_type(x509.DNSName)


def removed(files: AuthorityFiles, _fleet: Fleet) -> None:
    files.certificate(SERVER).unlink()
    files.key(SERVER).unlink()


def emptied(files: AuthorityFiles, _fleet: Fleet) -> None:
    files.certificate(SERVER).write_bytes(b"")


def overwritten_by_the_operator_s(files: AuthorityFiles, _fleet: Fleet) -> None:
    shutil.copy(files.certificate(OPERATOR), files.certificate(SERVER))


def overwritten_by_the_ca_s(files: AuthorityFiles, fleet: Fleet) -> None:
    files.certificate(SERVER).write_bytes(pem_of(fleet.authority.issuing_ca.certificate))


@pytest.mark.parametrize("lose", [removed, emptied, overwritten_by_the_operator_s, overwritten_by_the_ca_s])
async def test_another_with_the_same_names_takes_its_place(
    fleet: Fleet, tmp_path: Path, lose: Callable[[AuthorityFiles, Fleet], None]
) -> None:
    credentials = own(fleet, tmp_path)
    await credentials.issue_first(["ca.example.org"])
    lose(credentials.files, fleet)
    assert credentials.seconds_to_renewal() == 0, "a service that runs does not wait for its next renewal"
    with capture_logs() as logs:
        assert await credentials.renew_server()
    certificate = read_certificate(credentials.files.certificate(SERVER))
    assert names_in(certificate) == ["ca.example.org"]
    assert load_key(credentials.files.key(SERVER)).public_key() == certificate.public_key()
    assert [each["code"] for each in logs] == ["RENEWED"]
    assert not await credentials.renew_server()


async def test_the_names_in_the_settings_come_first(fleet: Fleet, tmp_path: Path) -> None:
    credentials = own(fleet, tmp_path)
    await credentials.issue_first(["old.example.org"])
    credentials.files.certificate(SERVER).unlink()
    assert await replace(credentials, server_names=("new.example.org",)).renew_server()
    assert names_in(read_certificate(credentials.files.certificate(SERVER))) == ["new.example.org"]


async def test_without_any_record_of_its_names_the_remedy_is_named(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"server\.crt is missing .* backup, or set server_names in .*toml"):
        await own(fleet, tmp_path).renew_server()


async def test_it_is_of_no_other_trust_domain_than_the_last(fleet: Fleet, tmp_path: Path) -> None:
    """Nobody could compare the configured one with the file, and every client would refuse the service."""
    credentials = own(fleet, tmp_path)
    await credentials.issue_first(["localhost"])
    credentials.files.certificate(SERVER).unlink()
    for configured in ((), ("localhost",)):
        moved = replace(credentials, trust_domain="elsewhere.example", server_names=configured)
        with pytest.raises(ConfigurationError, match=r'put trust_domain = "fleet\.internal" back'):
            await moved.renew_server()
    assert not credentials.files.certificate(SERVER).exists()
