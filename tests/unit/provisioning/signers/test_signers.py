"""Every place of a CA's key: openssl accepts what it signs, and the key is where it should be and nowhere else."""

from __future__ import annotations

import math
import stat
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from pkcs11 import Attribute, ObjectClass

from provisioning.ca.ceremony import found_authority
from provisioning.ca.crl import CrlIssuer, CrlRequest, entry_of
from provisioning.ca.issuer import IssuanceRequest, Issuer
from provisioning.ca.profile import ProfileConfig, profile_of
from provisioning.config import Settings
from provisioning.errors import Code, Refused
from provisioning.pki.identity import Identity
from provisioning.pki.keys import PrivateKey, generate_key, key_identifier
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.signers import pkcs11_module
from provisioning.signers.file import FileSigner
from provisioning.signers.pkcs11 import _PROTECTION, Pkcs11Signer
from provisioning.signers.pkcs11_uri import InvalidPkcs11Uri, Pkcs11Uri, parse_pkcs11_uri
from provisioning.signers.signer import Signer, SignerError
from provisioning.signers.token_key import TokenKey
from tests.support.openssl import openssl
from tests.support.pki import pem_of
from tests.support.requests import NOON
from tests.support.softhsm import PIN, FaultyModule, SoftToken

PASSPHRASE = b"correct horse battery staple"
SERIAL = 1 << 126


def in_token(token: SoftToken, label: str, pin: Callable[[], str] = lambda: PIN) -> Pkcs11Signer:
    return Pkcs11Signer(Pkcs11Uri(token.module, token.label, label), pin)


def begin_anew(token: SoftToken) -> pkcs11_module.TokenModule:
    """End every session: whoever is logged in is not asked for a PIN."""
    module = pkcs11_module.module_at(token.module)
    module._begun_at = -math.inf
    assert module.begin_again()
    return module


@pytest.fixture(params=["file", "token"])
def signer(request: pytest.FixtureRequest, tmp_path: Path) -> Signer:
    if request.param == "file":
        return FileSigner(tmp_path / "ca.key", lambda: PASSPHRASE)
    return in_token(request.getfixturevalue("token"), f"{tmp_path.name}.fleet.internal")


def test_a_key_is_made_once_opened_again_and_taken_away(signer: Signer) -> None:
    key = signer.create()
    assert signer.open().public_key() == key.public_key()
    with pytest.raises(SignerError, match="exists already"):
        signer.create()
    signer.discard()
    signer.discard()  # It is gone already.
    with pytest.raises(SignerError, match=r"there is no key|cannot be read"):
        signer.open()


def test_a_key_that_cannot_be_taken_away_is_an_error_of_its_place(tmp_path: Path) -> None:
    (tmp_path / "ca.key").mkdir()
    with pytest.raises(SignerError, match=r"ca\.key: Is a directory"):
        FileSigner(tmp_path / "ca.key", lambda: PASSPHRASE).discard()


def test_everything_that_a_ca_signs_is_accepted_by_openssl(signer: Signer, tmp_path: Path) -> None:
    key = signer.create()
    authority = found_authority("fleet.internal", NOON, (SERIAL | 1, SERIAL | 2), keys=(key, signer.open()))
    issuer = Issuer(authority.issuing_ca.certificate, signer.open())
    assert issuer.key_in_memory is isinstance(signer, FileSigner)
    profile = profile_of(ProfileConfig("device", timedelta(days=30)))
    identity = Identity("fleet.internal", Role.DEVICE, "meter-17", "north")
    request = IssuanceRequest(identity, generate_key().public_key(), SERIAL | 7, NOON)
    leaf = issuer.issue(issuer.prepare(profile, request))
    crls = CrlIssuer(authority.issuing_ca.certificate, signer.open())
    entries = {5: entry_of(5, NOON, RevocationReason.SUPERSEDED)}
    crl = crls.issue(crls.prepare(CrlRequest(1, NOON, NOON + timedelta(days=1), entries)))

    (tmp_path / "root.pem").write_bytes(pem_of(authority.root_ca.certificate))
    (tmp_path / "issuing.pem").write_bytes(pem_of(authority.issuing_ca.certificate))
    (tmp_path / "leaf.pem").write_bytes(pem_of(leaf))
    openssl("verify", "-x509_strict", "-attime", str(int(NOON.timestamp())), "-CAfile", tmp_path / "root.pem",
            "-untrusted", tmp_path / "issuing.pem", tmp_path / "leaf.pem")  # fmt: skip
    (tmp_path / "list.crl").write_bytes(crl)
    openssl("crl", "-inform", "DER", "-in", tmp_path / "list.crl", "-CAfile", tmp_path / "issuing.pem", "-noout")


def test_a_key_in_a_file_is_encrypted_and_its_owner_s(tmp_path: Path) -> None:
    signer = FileSigner(tmp_path / "ca.key", lambda: PASSPHRASE)
    signer.create()
    assert stat.S_IMODE(signer.path.stat().st_mode) == 0o600
    assert signer.path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    with pytest.raises(SignerError, match="the passphrase is wrong"):
        FileSigner(signer.path, lambda: b"guess").open()


def test_no_key_is_written_that_openssl_cannot_open_for_the_length_of_its_passphrase(tmp_path: Path) -> None:
    signer = FileSigner(tmp_path / "ca.key", lambda: b"x" * 1024)
    with pytest.raises(SignerError, match="the passphrase is longer than 1023 bytes: give a shorter one"):
        signer.create()
    assert not signer.path.exists()
    FileSigner(signer.path, lambda: b"x" * 1023).create()


def test_a_key_in_a_token_cannot_be_taken_out(token: SoftToken) -> None:
    key = in_token(token, "stays").create()
    assert isinstance(key, TokenKey)
    for encryption in (NoEncryption(), BestAvailableEncryption(b"x")):
        with pytest.raises(TypeError, match="never leaves"):
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    with pytest.raises(TypeError, match="never leaves"):
        key.private_numbers()
    secret = key_identifier(key.public_key())
    assert any(secret in path.read_bytes() for path in token.objects)  # Where the key is known by its usual name.


def test_a_key_that_can_be_taken_out_of_its_token_is_refused(token: SoftToken, monkeypatch: pytest.MonkeyPatch) -> None:
    careless = {attribute: not value for attribute, value in _PROTECTION.items()} | {Attribute.PRIVATE: True}
    with monkeypatch.context() as patched:
        patched.setattr("provisioning.signers.pkcs11._PROTECTION", {**careless})
        in_token(token, "careless").create()
    with pytest.raises(SignerError, match="can be taken out of the token: make a key that is not extractable"):
        in_token(token, "careless").open()


@pytest.mark.parametrize("size", [32, 48])
def test_the_token_signs_what_the_library_verifies(token: SoftToken, size: int) -> None:
    key = in_token(token, f"verified-{size}").create()
    algorithm = hashes.SHA256() if size == 32 else hashes.SHA384()
    key.public_key().verify(key.sign(b"words", ec.ECDSA(algorithm)), b"words", ec.ECDSA(algorithm))
    digest = hashes.Hash(algorithm)
    digest.update(b"words")
    prehashed = ec.ECDSA(utils.Prehashed(algorithm))
    key.public_key().verify(key.sign(digest.finalize(), prehashed), b"words", ec.ECDSA(algorithm))


def test_a_lost_session_costs_nothing(token: SoftToken) -> None:
    key = in_token(token, "lost").create()
    assert key._connected is not None
    key._connected.session.close()
    key.public_key().verify(key.sign(b"words", ec.ECDSA(hashes.SHA256())), b"words", ec.ECDSA(hashes.SHA256()))


def test_a_token_that_has_lost_the_key_makes_the_service_unavailable(token: SoftToken) -> None:
    signer = in_token(token, "gone")
    key: PrivateKey = signer.create()
    signer.discard()
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    with pytest.raises(Refused, match="try again") as caught:
        key.sign(b"words", ec.ECDSA(hashes.SHA256()))
    assert caught.value.code is Code.UNAVAILABLE
    signer.create()  # Another key of the same label is not taken for it.
    with pytest.raises(Refused, match="try again"):
        key.sign(b"words", ec.ECDSA(hashes.SHA256()))


def test_a_token_that_is_away_and_back_signs_again(token: SoftToken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pkcs11_module, "_PAUSE_SECONDS", 0.0)
    both = [in_token(token, label).create() for label in ("away", "beside")]
    folder = token.configuration.parent / "tokens"
    folder.rename(folder.with_name("elsewhere"))
    for key in both:
        with pytest.raises(Refused, match="try again"):
            key.sign(b"words", ec.ECDSA(hashes.SHA256()))
    folder.with_name("elsewhere").rename(folder)
    for key in both + both[::-1]:  # The numbers of one's old session are those of the other's new one: not mistaken.
        key.public_key().verify(key.sign(b"words", ec.ECDSA(hashes.SHA256())), b"words", ec.ECDSA(hashes.SHA256()))


def test_without_a_pin_to_be_had_the_service_is_unavailable_until_there_is_one(token: SoftToken) -> None:
    file = token.configuration.with_name("pin")
    signer = in_token(token, "no-pin", Settings(pkcs11_pin_file=file).read_pkcs11_pin)
    file.write_text(PIN)
    key: PrivateKey = signer.create()
    assert isinstance(key, TokenKey)
    begin_anew(token)
    for spoil in (file.unlink, file.touch):  # It is asked for in the middle of a request, and by a trial.
        spoil()
        with pytest.raises(Refused, match="try again"):
            key.sign(b"words", ec.ECDSA(hashes.SHA256()))
    file.write_text(PIN)
    key.public_key().verify(key.sign(b"words", ec.ECDSA(hashes.SHA256())), b"words", ec.ECDSA(hashes.SHA256()))


def test_a_key_that_was_put_back_into_its_token_signs_again(token: SoftToken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pkcs11_module, "_PAUSE_SECONDS", 0.0)
    before = set(token.objects)
    key = in_token(token, "restored").create()
    made = {path: path.read_bytes() for path in set(token.objects) - before}
    for path in made:
        path.unlink()
    with pytest.raises(Refused, match="try again"):
        key.sign(b"words", ec.ECDSA(hashes.SHA256()))
    for path, content in made.items():
        path.write_bytes(content)
    key.public_key().verify(key.sign(b"words", ec.ECDSA(hashes.SHA256())), b"words", ec.ECDSA(hashes.SHA256()))


def test_sessions_of_before_the_module_was_begun_again_are_not_used(token: SoftToken) -> None:
    keys = [in_token(token, label).create() for label in ("one", "two")]
    module = begin_anew(token)
    assert not module.begin_again(), "not again so soon"
    for key in reversed(keys):
        key.public_key().verify(key.sign(b"words", ec.ECDSA(hashes.SHA256())), b"words", ec.ECDSA(hashes.SHA256()))


def test_a_module_is_begun_again_only_when_nobody_is_at_work_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pkcs11_module, "_PATIENCE_SECONDS", 0.0)
    module = pkcs11_module.TokenModule(Path("/none.so"))
    with module.at_work() as generation:
        assert not module.begin_again()
        with module.at_work(generation):
            pass
    with pytest.raises(pkcs11_module.SessionsEnded), module.at_work(generation + 1):
        pass


def test_a_pin_that_was_refused_is_not_tried_again(token: SoftToken, faulty: FaultyModule) -> None:
    key = in_token(token, "pin").create()
    pin = "9999"
    signer = in_token(token, "pin", lambda: pin)
    begin_anew(token)
    with pytest.raises(SignerError, match="the PIN of token 'fleet' is wrong"):
        signer.open()
    faulty.tell("C_Login", "0x5")  # What whoever asks again is told.
    with pytest.raises(SignerError, match="the PIN of token 'fleet' is wrong"):
        signer.open()
    faulty.mend("C_Login")
    pin = PIN
    assert signer.open().public_key() == key.public_key(), "another one is"


def test_what_cannot_be_told_apart_is_named(token: SoftToken) -> None:
    in_token(token, "twin").create()
    twin = in_token(token, "other twin").create()
    assert isinstance(twin, TokenKey)
    assert isinstance(twin._signer, Pkcs11Signer)
    with twin._signer._session() as (session, _):
        session.get_key(object_class=ObjectClass.PRIVATE_KEY, label="other twin")[Attribute.LABEL] = "twin"
    with pytest.raises(SignerError, match="there is more than one key 'twin' in token 'fleet': remove those that"):
        in_token(token, "twin").open()
    for label in ("twin", "other twin"):
        in_token(token, label).discard()
    for _ in range(2):
        token.run("--init-token", "--free", "--label", "pair", "--pin", PIN, "--so-pin", "87654321")
    begin_anew(token)
    with pytest.raises(SignerError, match=r"more than one token in .* is called 'pair': unplug the others, or give"):
        Pkcs11Signer(Pkcs11Uri(token.module, "pair", "x"), lambda: PIN).open()


def test_what_cannot_be_opened_is_named(token: SoftToken, tmp_path: Path) -> None:
    nowhere = Pkcs11Signer(Pkcs11Uri(tmp_path / "none.so", "fleet", "x"), lambda: PIN)
    with pytest.raises(
        SignerError,
        match=r"there is no module .*/none\.so: install the token's PKCS #11 module, or correct module-path",
    ):
        nowhere.open()
    with pytest.raises(SignerError, match=r"there is no token 'other' in .*: check that it is plugged in"):
        Pkcs11Signer(Pkcs11Uri(token.module, "other", "x"), lambda: PIN).open()
    with pytest.raises(SignerError, match="there is no key 'nothing' in token 'fleet'"):
        in_token(token, "nothing").open()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file:x", "does not begin with pkcs11:"),
        ("pkcs11:", "has no token"),
        ("pkcs11:token=a", "has no module-path"),
        ("pkcs11:?module-path=/x", "has no token"),
        ("pkcs11:token=a;token=b?module-path=/x", "has token twice"),
        ("pkcs11:token=a;serial=5?module-path=/x", "'serial' is not understood"),
        ("pkcs11:token=a?module-path=/x&pin-value=1234", "put the PIN in pkcs11_pin_file"),
    ],
)
def test_a_uri_that_names_no_token_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidPkcs11Uri, match=words) as caught:
        parse_pkcs11_uri(text)
    assert "1234" not in str(caught.value)


def test_a_uri_is_read_as_it_is_written() -> None:
    uri = Pkcs11Uri(Path("/usr/lib/a b.so"), "my token; 1", "issuing-ca.fleet=internal")
    assert parse_pkcs11_uri(str(uri)) == uri
    assert parse_pkcs11_uri("pkcs11:token=a?module-path=/x\n") == Pkcs11Uri(Path("/x"), "a")
