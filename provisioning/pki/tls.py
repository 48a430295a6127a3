"""TLS contexts: the only two constructors of those under which somebody is authenticated.

Other contexts in the repository shake hands with nobody: they probe OpenSSL, or are put where a library wants one. The
exception is for anchors at a public URL (`broker.sources.anchor_urls`): the server has a certificate of a public CA.

Rules
-----
1. TLS 1.3 unless 1.2 is asked for; nothing older ever.
2. A context is immutable after it is built: changed trust means a new context, so that session tickets issued under
   the old trust end with it.
3. OpenSSL's chain check is the first gate, never the only one. A *resumed* session skips it and every CRL, so the
   caller asks the revocation index after each handshake.
4. System trust anchors are never loaded, only the anchors that are named. A server's name is in subjectAltName: a
   client does not look for it in the Common Name (RFC 9525 §6.3), where any holder of a certificate has one.
5. Where OpenSSL does not let a server bound what strangers do, there is no context for one (`provisioning.pki.guards`).
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Self

from cryptography import x509

from provisioning.pki import guards
from provisioning.pki.exchange_groups import leave_out_finite_fields
from provisioning.pki.handshake_bounds import bound_chain
from provisioning.pki.hello_bounds import bound_hello
from provisioning.pki.key_shown import bound_tickets
from provisioning.pki.named_curves import refuse_own_curves
from provisioning.pki.openssl import prefer
from provisioning.pki.resumption import remember_sessions, resume_nothing
from provisioning.program.given_file import PEM_BYTES, contents_of, unread

_BEGINS = b"-----BEGIN CERTIFICATE-----"

# SSL_OP_NO_TX_CERTIFICATE_COMPRESSION and …_RX_… of OpenSSL 3.2: a certificate of a few hundred bytes is not worth a
# decompressor with untrusted input. Older versions ignore the bits.
_NO_CERTIFICATE_COMPRESSION = 1 << 32 | 1 << 33

# X509_V_FLAG_NO_CHECK_TIME; both ends of the validity, so the caller must look at notBefore as well.
_NO_CHECK_TIME = 0x200000


SPEAKS_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"})
"""OpenSSL's errors for the first bytes of a peer that does not speak TLS (`ssl.SSLError.reason`)."""

_SERVER_SUITES = ("TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_256_GCM_SHA384")
"""In the order in which a server chooses. The first is mandatory for every client (RFC 8446 §9.1); its hash, SHA-256,
is in the hardware of small devices and large processors, and makes a handshake a little cheaper than OpenSSL's
own first choice with SHA-384 (docs/decisions/0080)."""
_TLS12_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AESCCM"
"""A server's TLS 1.2 ciphers, if TLS 1.2 is allowed: authenticated encryption (no CBC), and forward secrecy. Small
devices have CCM in hardware."""

_TOO_WEAK = {"EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"}
"""OpenSSL's errors for a certificate or chain that its security level forbids."""


class TlsConfigurationError(Exception):
    """A certificate, key or trust anchor file cannot be used; the text names the file and says what to do."""


class _EncryptedKey(Exception):
    """OpenSSL wants a passphrase."""


class ClientCertificate(Enum):
    """Whether a server requests the client's certificate."""

    REQUIRED = ssl.CERT_REQUIRED
    OPTIONAL = ssl.CERT_OPTIONAL


@dataclass(frozen=True, slots=True)
class CredentialFiles:
    """A certificate with its chain, and its private key, as PEM files (may be the same file)."""

    certificate: Path
    key: Path

    def load_into(self, context: ssl.SSLContext) -> None:
        """Make *context* present this credential; raise `TlsConfigurationError` if the files do not match."""
        for path in (self.certificate, self.key):
            _check_readable(path)
        try:
            context.load_cert_chain(self.certificate, self.key, password=_never_asked)
        except _EncryptedKey as error:
            raise _encrypted(str(self.key)) from error
        except ssl.SSLError as error:
            raise _refused(str(self.certificate), self.unfit, error) from error

    @property
    def unfit(self) -> str:
        """The error text for files that OpenSSL cannot use."""
        return f"{self.certificate} and {self.key} do not belong together, or are not a PEM pair"


@dataclass(frozen=True, slots=True)
class CredentialPem:
    """A certificate with its chain, and its unencrypted private key, in memory."""

    pem: bytes
    key: bytes | None = None
    """The private key, if it is not in *pem*."""
    unfit: str = "the credential is not a PEM certificate with its key"
    """The error text if OpenSSL cannot use it."""
    certificate: str = "the certificate"
    """What error texts call the certificate."""
    key_name: str = "the private key"
    """What they call the key."""

    @classmethod
    def of(cls, files: CredentialFiles) -> Self:
        """Return the current content of *files*. Raises `TlsConfigurationError` if one cannot be read."""
        try:
            pem = contents_of(files.certificate, PEM_BYTES)
            key = None if files.key == files.certificate else contents_of(files.key, PEM_BYTES)
            return cls(pem, key, files.unfit, str(files.certificate), str(files.key))
        except OSError as error:
            raise TlsConfigurationError(unread(Path(error.filename), error)) from error

    def load_into(self, context: ssl.SSLContext) -> None:
        """Make *context* present this credential; raise `TlsConfigurationError` if it cannot."""
        with _as_file(self.pem) as certificate, _as_file(self.key or self.pem) as key:
            try:
                context.load_cert_chain(certificate, key, password=_never_asked)
            except _EncryptedKey as error:
                raise _encrypted(self.key_name) from error
            except ssl.SSLError as error:
                raise _refused(self.certificate, self.unfit, error) from error


Credential = CredentialFiles | CredentialPem


def _refused(certificate: str, unfit: str, error: ssl.SSLError) -> TlsConfigurationError:
    """Return the error for a pair that OpenSSL refuses: it matches but is too weak for TLS, or it does not match."""
    if error.reason in _TOO_WEAK:
        return TlsConfigurationError(
            f"{certificate} is too weak for TLS ({error.reason}): give one with a P-256 key, or RSA of 2048 bits or "
            "more, signed with SHA-256"
        )
    return TlsConfigurationError(f"{unfit} ({error.reason or error})")


def read_once(credential: Credential) -> Credential:
    """Return *credential* such that it can be read repeatedly: pipes, as of a shell's ``<(…)``, are read into memory.

    Raises `TlsConfigurationError`.
    """
    if isinstance(credential, CredentialPem):
        return credential
    paths = dict.fromkeys((credential.certificate, credential.key))
    try:
        if not any(path.is_fifo() for path in paths):
            return credential
        return CredentialPem(b"\n".join(contents_of(path, PEM_BYTES) for path in paths))
    except OSError as error:
        raise TlsConfigurationError(unread(Path(error.filename), error)) from error


def refuse_unguarded() -> None:
    """Raise `TlsConfigurationError` if no server may be started with this Python's OpenSSL; the text says why."""
    if (why := guards.missing()) is not None:
        raise TlsConfigurationError(why)


def server_context(
    credential: Credential,
    anchors: Path | str,
    *,
    client_certificate: ClientCertificate,
    allow_tls12: bool = False,
    caller_checks_dates: bool = False,
    resumes: bool = True,
    remembered_sessions: int = 0,
    hybrid_resumption: bool = False,
) -> ssl.SSLContext:
    """Return a server's context.

    *resumes* False: every handshake is a full one, so the key of a client's certificate was proven on the connection
    that it came on (docs/decisions/0314). True: a client can resume its session for a day after it has used its key
    (`provisioning.pki.key_shown`), and the caller checks the certificate after every handshake (rule 3). Where that
    day cannot be kept to, nothing is resumed.

    *remembered_sessions* is how many TLS sessions it keeps in memory, for long-lived clients that come back: resuming
    costs half of what it costs with a ticket that contains the session (docs/decisions/0097). 0: such tickets.
    *hybrid_resumption* has resumptions exchange keys with ML-KEM again (`provisioning.pki.resumed_exchange`).

    *caller_checks_dates* accepts certificates that have expired or are not valid yet: for a caller that checks the
    dates of each itself and answers with a readable error instead of a TLS alert.

    *anchors* is a PEM file of trust anchors, or PEM text, for clients' certificates.
    Raises `TlsConfigurationError`.
    """
    refuse_unguarded()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _restrict(context, allow_tls12=allow_tls12)
    if allow_tls12:
        context.set_ciphers(_TLS12_CIPHERS)
    context.verify_mode = client_certificate.value
    prefer(context, _SERVER_SUITES)
    leave_out_finite_fields(context)
    # In TLS 1.3 no certificate comes in the step that the hello came in; whoever takes steps has the next one look.
    bound_hello(context, looks=allow_tls12 or not remembered_sessions)
    bound_chain(context)
    if not resumes:
        resume_nothing(context)
    else:
        context.num_tickets = 1  # OpenSSL sends two by default; a device has one connection and uses one.
        remembers = remembered_sessions and remember_sessions(context, remembered_sessions, hybrid=hybrid_resumption)
        if not remembers and not bound_tickets(context):
            resume_nothing(context)
    # Every certificate in *anchors* is an anchor, also an issuing CA: its own signature need not be verified each time.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if caller_checks_dates:
        context.verify_flags |= _NO_CHECK_TIME
    _load_anchors(context, anchors)
    credential.load_into(context)
    return context


def client_context(
    anchors: Path | str,
    credential: Credential | None = None,
    *,
    allow_tls12: bool = False,
    classic_key_exchange: bool = False,
    caller_checks_dates: bool = False,
) -> ssl.SSLContext:
    """Return a client's context that verifies the server's certificate and name against *anchors* alone.

    *classic_key_exchange* offers X25519 alone, as a small device does: the hybrid key share that OpenSSL offers by
    default (X25519MLKEM768) costs a client 0.2 ms, and 8 KB while the connection is open.

    *caller_checks_dates* accepts certificates that have expired or are not valid yet: for a caller that does not know
    the time yet, and checks the path when it does (`provisioning.client.service_time`).
    Raises `TlsConfigurationError`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _restrict(context, allow_tls12=allow_tls12)
    context.hostname_checks_common_name = False
    refuse_own_curves(context)
    if classic_key_exchange:
        context.set_ecdh_curve("X25519")
    if caller_checks_dates:
        context.verify_flags |= _NO_CHECK_TIME
    _load_anchors(context, anchors)
    if credential is not None:
        credential.load_into(context)
    return context


def certificates_in(content: bytes) -> list[x509.Certificate]:
    """Return the certificates in *content*, PEM (any number) or DER (one).

    Raises ValueError if there is none, or one is truncated: half of a file would be a change of trust.
    """
    if content[:1] == b"\x30":
        return [x509.load_der_x509_certificate(content)]
    found = x509.load_pem_x509_certificates(content)
    if len(found) < content.count(_BEGINS):
        raise ValueError("a certificate in it has no end: the file is not whole")
    return found


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Yield the name of a file with *content*: `ssl` reads only files; a memfd keeps keys off disks."""
    descriptor = os.memfd_create("credential", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _restrict(context: ssl.SSLContext, *, allow_tls12: bool) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if allow_tls12 else ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | _NO_CERTIFICATE_COMPRESSION


def _load_anchors(context: ssl.SSLContext, anchors: Path | str) -> None:
    try:
        if isinstance(anchors, Path):
            _check_readable(anchors)
            context.load_verify_locations(cafile=anchors)
        else:
            context.load_verify_locations(cadata=anchors)
    except (ssl.SSLError, ValueError) as error:
        where = anchors if isinstance(anchors, Path) else "the trust anchor text"
        raise TlsConfigurationError(f"{where} holds no PEM certificate ({_in_words(error)})") from error


def _in_words(error: Exception) -> str:
    """Return what OpenSSL says, without its names for it."""
    reason = getattr(error, "reason", None)
    return reason.lower().replace("_", " ") if reason else str(error)


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise TlsConfigurationError(unread(path, error)) from error


def _never_asked() -> str:
    """Refuse to be asked for a passphrase: OpenSSL would ask at the terminal, and a program may have none."""
    raise _EncryptedKey


def _encrypted(key: str) -> TlsConfigurationError:
    return TlsConfigurationError(
        f"{key} is encrypted, and its passphrase cannot be given: decrypt it into a file that only this program's user "
        "can read (openssl pkey -in … -out …)"
    )
