"""Which signer holds the key of each CA of a directory: by the files, and for new keys by the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from provisioning.config import Settings
from provisioning.directory.files import AuthorityFiles
from provisioning.errors import ConfigurationError
from provisioning.pki.keys import KeyFileError, PrivateKey, write_private
from provisioning.pki.serial_number import serial_text
from provisioning.program.given_file import SECRET_BYTES, text_of
from provisioning.signers.file import FileSigner
from provisioning.signers.pkcs11_uri import SCHEME, InvalidPkcs11Uri, Pkcs11Uri, parse_pkcs11_uri
from provisioning.signers.signer import Signer, SignerError

IN_FILES = "file"
"""The setting that keeps new keys in encrypted files."""


@dataclass(frozen=True, slots=True)
class SignerPlaces:
    """The signers of one directory's CAs."""

    files: AuthorityFiles
    settings: Settings

    def open(self, ca: str) -> PrivateKey:
        """Return the key of the CA *ca*, ready to sign; raise `ConfigurationError`."""
        try:
            return self._held(ca).open()
        except SignerError as error:
            raise ConfigurationError(f"the key of {ca}: {error}") from error

    def open_for(self, ca: str, certificate: x509.Certificate) -> PrivateKey:
        """Do the same; raise `ConfigurationError` also if it is not the key of *certificate*."""
        key = self.open(ca)
        if key.public_key() != certificate.public_key():
            raise ConfigurationError(
                f"the key of {ca} ({self.place(ca)}) does not belong to its certificate "
                f"({certificate.subject.rfc4514_string()}, serial {serial_text(certificate.serial_number)}): restore "
                "both from the same backup, and check that database_url is this fleet's"
            )
        return key

    def holds(self, ca: str) -> bool:
        """Whether the directory has the key of *ca*, or a file that names its token."""
        return self.path(ca).exists()

    def path(self, ca: str) -> Path:
        """Return the file in which the key of *ca* is, or would be, or the one that names its token."""
        reference = self.files.token_key(ca)
        return reference if reference.exists() else self.files.key(ca)

    def in_file(self, ca: str) -> bool:
        """Whether the key of *ca* is here in a file, and not in a token."""
        path = self.files.key(ca)
        return path.exists() and self.path(ca) == path

    def check_passphrase(self, cas: Sequence[str], or_else: str = "") -> None:
        """Raise `ConfigurationError` if a new key's file would have a passphrase that opens no file of *cas* here.

        One that opens is enough: another may be damaged. Keys in tokens have no part in it. *or_else* ends the error.
        """
        held = [ca for ca in cas if self.in_file(ca)]
        if self.settings.signer != IN_FILES or not held:
            return
        refused = None
        for ca in held:
            try:
                self.open(ca)
            except ConfigurationError as error:
                refused = refused or error
            else:
                return
        lost = " and ".join(self.path(ca).name for ca in held)
        raise ConfigurationError(f"{refused}; if that key is lost, move {lost} away{or_else}") from refused

    def open_waiting(self, ca: str) -> PrivateKey:
        """Return the key of *ca*, which was made before and waits for a certificate; raise `ConfigurationError`."""
        try:
            return self.open(ca)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{error}; it waits for a certificate that is not here yet: if that key is lost, move "
                f"{self.path(ca).name} away, and another is made"
            ) from error

    def create(self, ca: str) -> tuple[PrivateKey, Signer]:
        """Create the key of a new CA in the configured place; raise `ConfigurationError` and leave nothing behind.

        If a later step fails, call `discard` with the returned signer.
        """
        self._check_none_held(ca)
        try:
            signer, uri = self._new(ca)
            key = signer.create()
            if uri is not None:
                try:
                    write_private(self.files.token_key(ca), f"{uri}\n".encode())
                except KeyFileError as error:
                    signer.discard()
                    raise SignerError(str(error)) from error
        except SignerError as error:
            self._check_none_held(ca)  # Another command may have made it meanwhile, and used it.
            raise ConfigurationError(f"a key for {ca} cannot be made: {error}") from error
        return key, signer

    def _check_none_held(self, ca: str) -> None:
        held = next((path for path in (self.files.key(ca), self.files.token_key(ca)) if path.exists()), None)
        if held is not None:
            raise ConfigurationError(
                f"{self.files.directory} has a key of {ca} already: it is not overwritten. If `ca list` shows no "
                f"{ca}, a step was interrupted before the key was used: move {held.name} away"
            )

    def discard_if_own(self, ca: str, signer: Signer, key: PrivateKey) -> bool:
        """Delete the *key* that `create` has made; return False if the file has another by now, or one that is closed.

        That of the CA of this name may have been copied there meanwhile, which is another host's.
        """
        if self.in_file(ca):
            try:
                if signer.open().public_key() != key.public_key():
                    return False
            except SignerError:
                return False
        self.discard(ca, signer)
        return True

    def discard(self, ca: str, signer: Signer) -> None:
        """Delete the key that `create` has made."""
        try:
            signer.discard()
        except SignerError as error:
            raise ConfigurationError(f"the unused key of {ca} cannot be deleted: {error}") from error
        finally:
            self.files.token_key(ca).unlink(missing_ok=True)

    def place(self, ca: str) -> str:
        """Return where the key of *ca* is, for people."""
        try:
            return self._held(ca).place if self.holds(ca) else "elsewhere"
        except SignerError as error:
            raise ConfigurationError(f"the key of {ca}: {error}") from error

    def _held(self, ca: str) -> Signer:
        path = self.files.token_key(ca)
        if not path.exists():
            return FileSigner(self.files.key(ca), self.settings.read_passphrase)
        try:
            return self._in_token(parse_pkcs11_uri(text_of(path, SECRET_BYTES)))
        except OSError as error:
            raise SignerError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise SignerError(f"{path}: {error}") from error

    def _new(self, ca: str) -> tuple[Signer, Pkcs11Uri | None]:
        setting = self.settings.signer
        if setting == IN_FILES:
            return FileSigner(self.files.key(ca), self.settings.read_passphrase), None
        if not setting.startswith(SCHEME):
            raise SignerError(f"signer is {setting[:80]!r}: use {IN_FILES}, or {SCHEME}token=LABEL?module-path=FILE")
        try:
            uri = parse_pkcs11_uri(setting)
        except InvalidPkcs11Uri as error:
            raise SignerError(f"signer: {error}") from error
        if uri.label is not None:
            raise SignerError("signer names an object: leave it out, each CA's key has its own")
        uri = Pkcs11Uri(uri.module, uri.token, f"{ca}.{self.settings.trust_domain}")
        return self._in_token(uri), uri

    def _in_token(self, uri: Pkcs11Uri) -> Signer:
        # Only token keys need this module, and python-pkcs11.
        from provisioning.signers.pkcs11 import Pkcs11Signer

        return Pkcs11Signer(uri, self.settings.read_pkcs11_pin)
