"""Which signer holds a CA's key: what is made is found again, nothing is overwritten, and nothing is left of a failure.

With real keys, in files and in a token in software.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from provisioning.ca.ceremony import found_authority
from provisioning.config import Settings
from provisioning.directory.files import AuthorityFiles
from provisioning.errors import ConfigurationError
from provisioning.pki.keys import PrivateKey, generate_key, write_private
from provisioning.signers.file import FileSigner
from provisioning.signers.pkcs11 import Pkcs11Signer
from provisioning.signers.pkcs11_uri import Pkcs11Uri
from provisioning.signers.places import SignerPlaces
from provisioning.signers.signer import SignerError
from tests.support.requests import NOON
from tests.support.softhsm import PIN, SoftToken


def places(directory: Path, signer: str = "file") -> SignerPlaces:
    settings = Settings(
        directory=directory,
        signer=signer,
        passphrase=SecretStr("correct horse battery staple"),
        pkcs11_pin=SecretStr(PIN),
        trust_domain=f"{directory.name}.internal".replace("_", "-").lower(),
    )
    return SignerPlaces(AuthorityFiles(directory), settings)


@pytest.fixture(params=["file", "token"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> SignerPlaces:
    if request.param == "file":
        return places(tmp_path)
    return places(tmp_path, request.getfixturevalue("token").uri)


def test_a_key_that_another_command_makes_at_the_same_time_is_not_to_be_moved_away_unless_unused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the key of a CA by now."""
    create = FileSigner.create

    def overtaken(signer: FileSigner) -> PrivateKey:
        monkeypatch.setattr(FileSigner, "create", create)
        places(tmp_path).create("issuing-2")
        return signer.create()

    monkeypatch.setattr(FileSigner, "create", overtaken)
    with pytest.raises(ConfigurationError, match=r"If `ca list` shows no issuing-2, .*: move issuing-2\.key away$"):
        places(tmp_path).create("issuing-2")


def test_a_key_is_made_once_and_found_again_whatever_new_keys_are_made_by(kept: SignerPlaces, tmp_path: Path) -> None:
    assert not kept.holds("root-ca")
    assert kept.place("root-ca") == "elsewhere"
    key, signer = kept.create("root-ca")
    for each in (kept, places(tmp_path), places(tmp_path, "pkcs11:token=another?module-path=/nowhere.so")):
        assert each.holds("root-ca")
        assert each.place("root-ca") == signer.place
        assert each.open("root-ca").public_key() == key.public_key()
        with pytest.raises(
            ConfigurationError, match=r"has a key of root-ca already: .*: move root-ca\.\w+ away$"
        ) as said:
            each.create("root-ca")
        assert (tmp_path / str(said.value).split()[-2]).exists()
    assert kept.open("root-ca").public_key() == key.public_key()
    kept.discard("root-ca", signer)
    assert not kept.holds("root-ca")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigurationError, match="the key of root-ca: "):
        kept.open("root-ca")
    again, signer = kept.create("root-ca")
    assert again.public_key() != key.public_key()
    kept.discard("root-ca", signer)


def test_a_key_that_is_another_certificate_s_is_not_opened_for_it(kept: SignerPlaces) -> None:
    key, signer = kept.create("root-ca")
    authority = found_authority("fleet.internal", NOON, (1 << 126 | 1, 1 << 126 | 2), keys=(key, generate_key()))
    mine, theirs = authority.root_ca.certificate, authority.issuing_ca.certificate
    assert kept.open_for("root-ca", mine).public_key() == key.public_key()
    with pytest.raises(ConfigurationError, match=r"the key of root-ca .* does not belong to its certificate .*restore"):
        kept.open_for("root-ca", theirs)
    kept.discard("root-ca", signer)


def test_where_it_cannot_be_written_down_in_which_token_a_key_is_there_is_none(
    token: SoftToken, tmp_path: Path
) -> None:
    before = sorted(token.objects)
    kept = places(tmp_path / "absent", token.uri)
    with pytest.raises(ConfigurationError, match=r"a key for root-ca cannot be made: .*root-ca.pkcs11 cannot be writ"):
        kept.create("root-ca")
    assert sorted(token.objects) == before


def test_a_key_that_is_found_unfit_when_it_is_made_is_not_left_in_its_token(
    token: SoftToken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a token that does not do as it was asked: the next one would be told that the key is there already."""
    before = sorted(token.objects)
    kept = places(tmp_path, token.uri)

    def unfit(*_arguments: object) -> None:
        raise SignerError("can be taken out of the token")

    with monkeypatch.context() as patched:
        patched.setattr(Pkcs11Signer, "_checked", unfit)
        with pytest.raises(ConfigurationError, match="a key for root-ca cannot be made: can be taken out"):
            kept.create("root-ca")
    assert sorted(token.objects) == before
    kept.discard("root-ca", kept.create("root-ca")[1])


def test_where_the_key_cannot_be_taken_back_it_is_said_and_nothing_points_to_it(
    token: SoftToken, tmp_path: Path
) -> None:
    kept = places(tmp_path, token.uri)
    _, signer = kept.create("root-ca")
    gone = Pkcs11Signer(Pkcs11Uri(token.module, "another", "x"), lambda: PIN)
    with pytest.raises(ConfigurationError, match="the unused key of root-ca cannot be deleted"):
        kept.discard("root-ca", gone)
    assert not kept.holds("root-ca")
    kept.discard("root-ca", signer)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("vault", "signer is 'vault': use file, or pkcs11:"),
        ("pkcs11:token=fleet", "a key for root-ca cannot be made: signer: "),
        ("pkcs11:token=fleet;object=x?module-path=/x.so", "signer names an object: leave it out"),
    ],
)
def test_a_setting_that_says_no_place_makes_no_key(tmp_path: Path, setting: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        places(tmp_path, setting).create("root-ca")
    assert list(tmp_path.iterdir()) == []


def test_what_says_nothing_of_a_token_is_named(tmp_path: Path) -> None:
    kept = places(tmp_path)
    write_private(kept.files.token_key("root-ca"), b"nonsense\n")
    for asked in (kept.open, kept.place):
        with pytest.raises(ConfigurationError, match=r"the key of root-ca: .*root-ca.pkcs11: "):
            asked("root-ca")
    kept.files.token_key("root-ca").write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match=r"root-ca.pkcs11"):
        kept.open("root-ca")
    kept.files.token_key("root-ca").unlink()
    kept.files.token_key("root-ca").mkdir()
    with pytest.raises(ConfigurationError, match=r"root-ca.pkcs11 cannot be read: Is a directory"):
        kept.open("root-ca")


def test_only_the_key_that_was_made_is_taken_away(tmp_path: Path) -> None:
    """By then the key of the CA may be there, which another host was faster to make."""
    here, there = places(tmp_path), places(tmp_path / "other")
    there.files.directory.mkdir()
    key, signer = here.create("issuing-2")
    there.create("issuing-2")
    made, copied = (each.path("issuing-2").read_bytes() for each in (here, there))
    for other in (copied, b"damaged"):
        here.path("issuing-2").write_bytes(other)
        assert not here.discard_if_own("issuing-2", signer, key)
        assert here.path("issuing-2").read_bytes() == other
    here.path("issuing-2").write_bytes(made)
    assert here.discard_if_own("issuing-2", signer, key)
    assert not here.holds("issuing-2")
