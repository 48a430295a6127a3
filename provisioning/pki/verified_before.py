"""Certification paths that a server has verified before, of clients that come back with the same certificates.

Theory
------
Whether a certificate has a path to an anchor (RFC 5280 §6) follows from what the client sends, from the server's
context, which never changes (`provisioning.pki.tls`, rule 2), and from the time. So when a client comes back with the
same certificates, only the time can make a difference. To find the path again is a seventh of a full handshake, most
of it the CA's signature in the client's certificate (docs/decisions/0289). That the client has its private key is
proven in each handshake, by its signature in CertificateVerify, of which nothing is remembered.

OpenSSL calls back where it would verify. Everything that a client sends is identified by SHA-256; the answer is the CAs
of the path, as OpenSSL's own objects, which become the path of this handshake too. Whoever asks for the path afterwards
gets the same as after the first one, and judges it as always: identity, role and revocation are not part of the answer.

Rules
-----
1. Only what OpenSSL has verified is remembered, for one context, and forgotten with it. Refusals are not remembered.
2. An answer counts while all certificates of the path are valid. Otherwise OpenSSL is asked; it may find another one.
3. Bounded: *most* clients, of whom the least recent is forgotten first, 1,024 paths, 8 certificates a client. Strangers
   displace nobody.
4. An error on the way refuses the client. Where OpenSSL cannot call back (`CAN_REMEMBER_PATHS`) it verifies each time.
5. What OpenSSL takes for the answer is not believed alone. If memory is short, the call back may end before its first
   line, and `ctypes` then returns whatever is on the stack. So whoever completes handshakes calls `confirm`, and a
   ticket made before that cannot be used (`provisioning.pki.key_shown`).

Handles: handshakes in several threads, one at a time. Does not handle: contexts whose caller checks the dates, or in
which OpenSSL checks CRLs (none does here).
"""

from __future__ import annotations

import contextlib
import ctypes
import ssl
import time
import weakref
from collections.abc import Sequence
from threading import Lock
from typing import Final, NamedTuple

from provisioning.pki.openssl import AVAILABLE, address_of_context, callback, declare, library

MOST_PATHS: Final = 1024
_MOST_SENT: Final = 8
_DIGEST: Final = 32
_VALID, _UNSPECIFIED = 0, 1
"""`X509_V_OK` and `X509_V_ERR_UNSPECIFIED`."""

VerifyCallback: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _Path(NamedTuple):
    """The CAs of a path, upwards, and when all of them are valid, in seconds since 1970."""

    stack: int
    begins: int
    ends: int


class _Dated(NamedTuple):
    """The path above a client's certificate, and when all of it is valid."""

    path: _Path
    begins: int
    ends: int


class _Answers:
    """What has been verified in one context."""

    __slots__ = ("_by_address", "_by_digest", "_clients", "_most", "_one_at_a_time")

    def __init__(self, most: int) -> None:
        self._most = most
        self._one_at_a_time = Lock()
        """Another thread may free the path that this one is about to use."""
        self._clients: dict[bytes, _Path | _Dated] = {}
        """By digests. A client's own dates are read when it comes back: many never do."""
        self._by_digest: dict[bytes, _Path] = {}
        self._by_address: dict[tuple[int, ...], _Path] = {}
        """Paths by their own objects: an anchor is the same one each time."""

    def __len__(self) -> int:
        return len(self._clients)

    def verify(self, asked: int) -> int:
        """Verify the path that OpenSSL has *asked* for (`X509_STORE_CTX`), as `X509_verify_cert` does."""
        with self._one_at_a_time:
            return self._verify(asked)

    def _verify(self, asked: int) -> int:
        client = library.X509_STORE_CTX_get0_cert(asked)
        shown = _shown(asked, client)
        known = self._clients.pop(shown, None)
        if known is not None:
            dated = _dated(known, client) if isinstance(known, _Path) else known
            self._clients[shown] = dated  # The most recent one.
            if dated.begins <= time.time() < dated.ends:
                return _say_again(asked, client, dated.path)
        verified: int = library.X509_verify_cert(asked)
        if verified == 1 and shown:
            self._note(asked, shown)
        return max(verified, 0)  # As OpenSSL does where it is not called back.

    def forget(self) -> None:
        """Forget everything, while handshakes go on."""
        with self._one_at_a_time:
            self.free()

    def free(self) -> None:
        """Forget everything, within a verification or after the last one."""
        self._clients.clear()
        self._by_address.clear()
        while self._by_digest:
            _, path = self._by_digest.popitem()
            _free(path.stack)

    def _note(self, asked: int, shown: bytes) -> None:
        path = self._path(library.X509_STORE_CTX_get0_chain(asked))
        self._clients.pop(shown, None)
        if len(self._clients) >= self._most:
            del self._clients[next(iter(self._clients))]
        self._clients[shown] = path

    def _path(self, chain: int) -> _Path:
        """Return the path of *chain*, which begins with the client's certificate."""
        count = library.OPENSSL_sk_num(chain)
        above = tuple(library.OPENSSL_sk_value(chain, each) for each in range(1, count))
        if (path := self._by_address.get(above)) is not None:
            return path
        digests = _digests(above)
        if (path := self._by_digest.get(digests)) is not None:
            return path
        if len(self._by_digest) >= MOST_PATHS:
            self.free()
        stack = library.X509_chain_up_ref(chain)
        if not stack:
            raise MemoryError
        library.X509_free(library.OPENSSL_sk_delete(stack, 0))
        validities = [_validity(each) for each in above]
        begins = max((begin for begin, _ in validities), default=_EARLIEST)
        ends = min((end for _, end in validities), default=_LATEST)
        self._by_digest[digests] = self._by_address[above] = path = _Path(stack, begins, ends)
        return path


def remember_paths(context: ssl.SSLContext, most: int) -> None:
    """Have a server's *context* remember the verified paths of up to *most* clients, if OpenSSL can call back."""
    if _VERIFY is None:
        return
    address = address_of_context(context)
    answers = _answers[address] = _Answers(most)
    library.SSL_CTX_set_cert_verify_callback(address, _VERIFY, address)
    weakref.finalize(context, _forget, address, answers).atexit = False


def remembered(context: ssl.SSLContext) -> int:
    """Return of how many clients *context* remembers the path."""
    return len(_answers.get(address_of_context(context), ()))


def forget_paths(context: ssl.SSLContext) -> None:
    """Forget what *context*, for which no new connection comes, remembers: connections may use it for months."""
    if (answers := _answers.get(address_of_context(context))) is not None:
        answers.forget()


def confirm(address: int) -> None:
    """Raise `ssl.SSLError` if OpenSSL lets in the client of the session at *address*, and has not verified it (rule 5).

    Its handshake is complete. No effect if its context remembers nothing.
    """
    if is_doubtful(address):
        library.SSL_CTX_remove_session(library.SSL_get_SSL_CTX(address), library.SSL_get_session(address))
        raise _not_verified()


def is_doubtful(address: int) -> bool:
    """Whether the session at *address*, of a context that remembers paths, has a client's certificate and no path."""
    return bool(
        address
        and _answers
        and library.SSL_get_SSL_CTX(address) in _answers
        and not (library.SSL_get0_verified_chain(address) and library.SSL_get_verify_result(address) == _VALID)
        and not library.SSL_session_reused(address)
        and library.SSL_get0_peer_certificate(address)
    )


def _not_verified() -> ssl.SSLError:
    """Return the error that OpenSSL's refusal is, if the call back refuses because of an error."""
    failed = ssl.SSLCertVerificationError(ssl.SSL_ERROR_SSL, "certificate verify failed")
    failed.reason = "CERTIFICATE_VERIFY_FAILED"
    failed.verify_code = _UNSPECIFIED
    failed.verify_message = library.X509_verify_cert_error_string(_UNSPECIFIED).decode()
    return failed


def _forget(address: int, answers: _Answers) -> None:
    del _answers[address]
    answers.free()


def _verify(asked: int, context: int) -> int:
    try:
        return _answers[context].verify(asked)
    except BaseException:  # noqa: BLE001 - nothing can be raised through OpenSSL
        with contextlib.suppress(BaseException):  # Memory is needed even for this.
            library.X509_STORE_CTX_set_error(asked, _UNSPECIFIED)
        return 0


def _shown(asked: int, client: int | None) -> bytes:
    """Return the digests of all that the *client* has sent, its own certificate first; empty: not to be remembered."""
    sent = library.X509_STORE_CTX_get0_untrusted(asked)
    count = library.OPENSSL_sk_num(sent)
    if client is None or not 1 <= count <= _MOST_SENT:
        return b""
    return _digests((client, *(library.OPENSSL_sk_value(sent, each) for each in range(1, count))))


def _dated(path: _Path, client: int) -> _Dated:
    begins, ends = _validity(client)
    return _Dated(path, max(begins, path.begins), min(ends, path.ends))


def _say_again(asked: int, client: int, path: _Path) -> int:
    """Give what OpenSSL has *asked* for the CAs of *path*, above the *client*'s certificate of this handshake."""
    chain = library.X509_chain_up_ref(path.stack)
    library.X509_up_ref(client)
    if not library.OPENSSL_sk_insert(chain, client, 0):  # A NULL chain included.
        raise MemoryError
    library.X509_STORE_CTX_set0_verified_chain(asked, chain)
    library.X509_STORE_CTX_set_error(asked, _VALID)
    return 1


def _digests(certificates: Sequence[int]) -> bytes:
    """Return the SHA-256 of each of *certificates*."""
    place = ctypes.create_string_buffer(len(certificates) * _DIGEST)  # One for each call: threads must not share it.
    at = ctypes.addressof(place)
    for each in certificates:
        if not library.X509_digest(each, _SHA256, at, None):
            raise MemoryError
        at += _DIGEST
    return place.raw


def _validity(certificate: int) -> tuple[int, int]:
    """Return when *certificate* begins and ends to be valid, in seconds since 1970."""
    return (
        _seconds(library.X509_get0_notBefore(certificate)),
        _seconds(library.X509_get0_notAfter(certificate)),
    )


def _seconds(moment: int) -> int:
    days, seconds = ctypes.c_int(), ctypes.c_int()
    if not library.ASN1_TIME_diff(ctypes.byref(days), ctypes.byref(seconds), _EPOCH, moment):
        raise ValueError("a verified certificate has a date that cannot be read")
    return days.value * 86400 + seconds.value


def _free(stack: int) -> None:
    while certificate := library.OPENSSL_sk_pop(stack):
        library.X509_free(certificate)
    library.OPENSSL_sk_free(stack)


def _open() -> bool:
    """Declare the OpenSSL functions used here; return whether all of them exist (from 3.0 on)."""
    if not AVAILABLE:
        return False
    address, number = ctypes.c_void_p, ctypes.c_int
    try:
        for name, result, arguments in (
            ("SSL_CTX_set_cert_verify_callback", None, [address, VerifyCallback, address]),
            ("SSL_get0_verified_chain", address, [address]),
            ("SSL_get0_peer_certificate", address, [address]),
            ("X509_verify_cert", number, [address]),
            ("X509_STORE_CTX_get0_cert", address, [address]),
            ("X509_STORE_CTX_get0_untrusted", address, [address]),
            ("X509_STORE_CTX_get0_chain", address, [address]),
            ("X509_STORE_CTX_set0_verified_chain", None, [address, address]),
            ("X509_STORE_CTX_set_error", None, [address, number]),
            ("X509_chain_up_ref", address, [address]),
            ("X509_up_ref", number, [address]),
            ("X509_digest", number, [address, address, address, address]),
            ("X509_get0_notBefore", address, [address]),
            ("X509_get0_notAfter", address, [address]),
            ("ASN1_TIME_set", address, [address, ctypes.c_int64]),
            ("ASN1_TIME_diff", number, [address, address, address, address]),
            ("EVP_MD_fetch", address, [address, ctypes.c_char_p, ctypes.c_char_p]),
            ("OPENSSL_sk_num", number, [address]),
            ("OPENSSL_sk_value", address, [address, number]),
            ("OPENSSL_sk_insert", number, [address, address, number]),
            ("OPENSSL_sk_delete", address, [address, number]),
            ("OPENSSL_sk_free", None, [address]),
        ):
            declare(library, name, result, arguments)
    except AttributeError:
        return False
    return True


_OPENED: Final = _open()
_SHA256: Final[int] = library.EVP_MD_fetch(None, b"SHA256", None) if _OPENED else 0
_EPOCH: Final[int] = library.ASN1_TIME_set(None, 0) if _OPENED else 0
_EARLIEST, _LATEST = -(1 << 62), 1 << 62
_VERIFY: Final = callback(VerifyCallback, _verify) if _OPENED else None
"""One for all contexts, and never freed: OpenSSL knows only its address."""
CAN_REMEMBER_PATHS: Final = _VERIFY is not None
"""Whether verified paths can be remembered here."""
_answers: Final[dict[int, _Answers]] = {}
"""What was verified, by the address of OpenSSL's context; an entry is removed before its context is freed."""
