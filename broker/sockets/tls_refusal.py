"""Why TLS failed, as a stable code and in words: maps OpenSSL's fifty reasons to those of admission.

Rules
-----
1. The code states the cause: an expired certificate is `EXPIRED` whether OpenSSL finds it in the handshake or admission
   finds it after a resumed one.
2. A reason that is not in the table is `TLS_HANDSHAKE_FAILED`, with OpenSSL's own words.
"""

from __future__ import annotations

import socket
import ssl

from broker.admission.refusal import RefusalCode
from provisioning.pki import hello_bounds
from provisioning.pki.key_updates import changed_keys_too_often
from provisioning.pki.tcp_state import was_reset

# X509_V_ERR_… of OpenSSL's x509_vfy.h.
_VERIFY = {
    9: RefusalCode.NOT_YET_VALID,
    10: RefusalCode.EXPIRED,
    23: RefusalCode.REVOKED,
    26: RefusalCode.WRONG_PURPOSE,
    **dict.fromkeys((2, 7, 18, 19, 20, 21, 22, 24, 25, 27, 29, 30, 31, 32, 33, 79), RefusalCode.UNTRUSTED_ISSUER),
    **dict.fromkeys((66, 67, 68), RefusalCode.WEAK_CERTIFICATE),
}

_RESET = "the connection was reset"
_BAD_CERTIFICATE = (
    "BAD_CERTIFICATE",
    "CERTIFICATE_UNKNOWN",
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_REVOKED",
    "UNSUPPORTED_CERTIFICATE",
)
"""The alerts about a certificate."""
_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": RefusalCode.NO_CERTIFICATE,
    "UNSUPPORTED_PROTOCOL": RefusalCode.UNSUPPORTED_TLS_VERSION,
    "NO_PROTOCOLS_AVAILABLE": RefusalCode.UNSUPPORTED_TLS_VERSION,
    "VERSION_TOO_LOW": RefusalCode.UNSUPPORTED_TLS_VERSION,
    "WRONG_VERSION_NUMBER": RefusalCode.NOT_TLS,
    "HTTP_REQUEST": RefusalCode.NOT_TLS,
    "HTTPS_PROXY_REQUEST": RefusalCode.NOT_TLS,
    "UNKNOWN_PROTOCOL": RefusalCode.NOT_TLS,
    "BAD_RECORD_TYPE": RefusalCode.NOT_TLS,
    # Alerts from the client: it does not trust the broker's certificate.
    "TLSV1_ALERT_UNKNOWN_CA": RefusalCode.BROKER_NOT_TRUSTED,
    **{f"SSLV3_ALERT_{each}": RefusalCode.BROKER_NOT_TRUSTED for each in _BAD_CERTIFICATE},
    **{f"TLS_ALERT_{each}": RefusalCode.BROKER_NOT_TRUSTED for each in _BAD_CERTIFICATE},  # Since OpenSSL 4.0.
}


def code_of(error: OSError) -> RefusalCode:
    """Return the stable code for a handshake that failed with *error*."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFY.get(error.verify_code, RefusalCode.TLS_HANDSHAKE_FAILED)
    if isinstance(error, ssl.SSLError) and error.reason is not None:
        return _REASONS.get(error.reason, RefusalCode.TLS_HANDSHAKE_FAILED)
    return RefusalCode.TLS_HANDSHAKE_FAILED


def words_of(error: OSError) -> str:
    """Return OpenSSL's reason, or the system's, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, (ssl.SSLZeroReturnError, ssl.SSLEOFError)):
        return "the peer has closed the connection"
    if isinstance(error, ssl.SSLWantReadError):  # Of a write.
        return "half of a TLS message is missing"
    if isinstance(error, ssl.SSLError):
        if not error.reason and getattr(error, "library", "") == "SYS":
            return _RESET  # On a write, `ssl` before Python 3.12.3 does not pass on the system's error.
        if error.reason == hello_bounds.REFUSED:
            return "the client's hello lists more than any client needs"
        return (error.reason or str(error)).lower().replace("_", " ")
    if isinstance(error, (ConnectionResetError, BrokenPipeError)):
        return _RESET
    return error.strerror or type(error).__name__


def cut_off_by(inside: int, connected: socket.socket) -> str:
    """Return what has ended the stream of *connected*, whose TLS is at *inside*, in words; empty: the peer's own wish.

    `ssl` before Python 3.12.3 takes a reset for an end.
    """
    if changed_keys_too_often(inside):
        return "the client updated its TLS keys too often"
    return _RESET if _was_reset(connected) else ""


def _was_reset(connected: socket.socket) -> bool:
    """Whether a reset is what the last read has met; one that came after the peer's end is no read's, and an error yet.

    A socket that is no TCP socket is never reset.
    """
    try:
        return was_reset(connected) and not connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    except OSError:
        return False
