"""The transcript of a key ceremony: what was done, when, by whom, with which witnesses and fingerprints.

Theory
------
The transcript is the evidence of a ceremony: a text file for people. Its SHA-256 is the ceremony's last entry in the
audit log, whose chain then vouches for it: a transcript that was changed or invented has no matching
entry. On a machine without a store (an offline root) it is a text with fingerprints, to be signed by hand.

Rules
-----
1. The file has exactly what is shown on the screen; init, which shows nothing before all is done, names the file.
   Whoever stops looking, as head does, does not stop the ceremony: a CA would be revoked, and the operator who is cut
   off by that not certified again.
2. Its head is shown with the first of its lines, so that a refusal is one line; where a key is made or used, before
   that (`Transcript.begin`).
3. It holds no passphrase, PIN or private key.
"""

from __future__ import annotations

import getpass
import hashlib
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from sqlalchemy.engine import Connection

from provisioning.errors import ConfigurationError
from provisioning.pki.crl import urls_of
from provisioning.pki.extension import extension
from provisioning.pki.serial_number import serial_text
from provisioning.program.durable_names import create, make_folder
from provisioning.program.moments import shown_time
from provisioning.program.printable import printable
from provisioning.program.version import version_and_build
from provisioning.store import audit
from provisioning.store.audit import Action

FOLDER: Final = "ceremonies"
_BEGUN: Final = "%Y-%m-%dT%H%M%S.%fZ"
"""How a transcript's name begins."""


@dataclass
class Transcript:
    """One ceremony, as it goes on."""

    title: str
    clock: Callable[[], datetime]
    show: Callable[[str], None]
    witnesses: Sequence[str] = ()
    _lines: list[str] = field(default_factory=list)
    begun: datetime = field(init=False)
    has_begun: bool = field(default=False, init=False)
    """Its head was written."""
    _goes_on: bool = field(default=False, init=False)
    """The first step was begun: that may have done something, which the next one completes."""
    _unshown: OSError | None = field(default=None, init=False)
    """Why no more lines are shown."""

    def __post_init__(self) -> None:
        """Take note of the time."""
        self.begun = self.clock().astimezone(UTC)

    def begin(self) -> None:
        """Write the head, once; raise `OSError` if not even that can be shown, before anything is done.

        A later step of the same ceremony is only taken: a key that was made would be left without its certificate.
        """
        self._write_head()
        if not self._goes_on:
            self.check_shown()
        self._goes_on = True

    def _write_head(self) -> None:
        if self.has_begun:
            return
        self.has_begun = True
        self.say(f"Ceremony: {self.title}")
        self.say(f"Begun {shown_time(self.begun)} on {platform.node()} by {operator_name()}")
        self.say(f"Program: fleet-provisioning {version_and_build()}")
        for witness in self.witnesses:
            self.say(f"Witness: {witness}")
        self.say("")

    def say(self, line: str) -> None:
        """Add a line and show it; it stays one line whatever the name of a witness or a certificate."""
        self._write_head()
        line = printable(line)
        self._lines.append(line)
        if self._unshown is None:
            try:
                self.show(line)
            except OSError as error:
                self._unshown = error

    def check_shown(self) -> None:
        """Raise the `OSError` because of which not all was shown: when the ceremony is over."""
        if self._unshown is not None:
            raise self._unshown

    def certificate(self, what: str, certificate: x509.Certificate) -> None:
        """Add a certificate: names, times, serial number, the fingerprint to compare, and where its CRL is."""
        self.say(f"{what}:")
        for name, value in (
            ("subject", certificate.subject.rfc4514_string()),
            ("issuer", certificate.issuer.rfc4514_string()),
            ("serial", serial_text(certificate.serial_number)),
            ("valid", f"{certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}"),
            ("SHA-256", certificate.fingerprint(hashes.SHA256()).hex(":").upper()),
        ):
            self.say(f"  {name:<8} {value}")
        points = extension(certificate, x509.CRLDistributionPoints)
        if points is not None:
            self.say(f"  CRL      {' '.join(urls_of(points))}")
        elif certificate.issuer != certificate.subject:  # Nobody asks for a CRL of a root.
            self.say("  CRL      none is named: clients that check the whole path refuse what is below it")

    @property
    def text(self) -> bytes:
        """The transcript as it is written."""
        return ("\n".join(self._lines) + "\n").encode(errors="backslashreplace")  # A path need not be UTF-8.

    @property
    def digest(self) -> str:
        """The SHA-256 that the audit log holds, in hexadecimal."""
        return digest_of(self.text)

    def write(self, path: Path) -> None:
        """Write the file; raise `ConfigurationError` if it exists or cannot be written."""
        try:
            make_folder(path.parent)
            create(path, self.text)
        except OSError as error:
            raise ConfigurationError(f"the transcript {path} cannot be written: {error.strerror}") from error

    def path_in(self, directory: Path) -> Path:
        """Return its path in a service's directory."""
        words = "-".join(self.title.split())
        return directory / FOLDER / f"{self.begun.strftime(_BEGUN)}-{words}.txt"


def vouch_for(connection: Connection, transcript: Transcript, path: Path, now: datetime) -> dict[str, object]:
    """Record the *transcript* that was written to *path* in the audit log; return the facts that it has of it."""
    facts: dict[str, object] = {"transcript": path.name, "transcript_sha256": transcript.digest}
    audit.append(connection, now, operator_name(), Action.CEREMONY, transcript.title, facts)
    return facts


def facts_of(certificate: x509.Certificate) -> dict[str, object]:
    """Return the audit log's facts about a CA's certificate."""
    return {
        "subject": certificate.subject.rfc4514_string(),
        "serial": serial_text(certificate.serial_number),
        "not_after": certificate.not_valid_after_utc,
    }


def begun_of(path: Path) -> datetime | None:
    """Return when the ceremony began whose transcript *path* is, as its name says; None: it says nothing."""
    begun, ends, _ = path.name.partition("Z-")
    try:
        return datetime.strptime(f"{begun}{ends[:1]}", _BEGUN).replace(tzinfo=UTC)
    except ValueError:
        return None


def digest_of(text: bytes) -> str:
    """Return the digest of a transcript for the audit log."""
    return hashlib.sha256(text).hexdigest()


def operator_name() -> str:
    """Return the name of the user who is logged in."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # An account without a name, as in some containers.
        return "an account without a name"
