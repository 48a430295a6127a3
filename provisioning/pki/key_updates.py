"""Limits how often the peer of a TLS session may change its keys.

Theory
------
OpenSSL processes KeyUpdate messages (RFC 8446 §4.6.3) within one read, for as long as more of them arrive: a peer that
sends nothing else would stop the whole process, or, if received bytes are passed to OpenSSL in pieces, for 200 to
400 ms per quarter of a megabyte. OpenSSL reports each such step, with the address of the session alone; so steps are
counted here, for all sessions, per second; a session with too many of them is told that its peer has closed.
"""

from __future__ import annotations

import time
from typing import Final

from provisioning.pki.openssl_library import StepCallback, callback, frequent

_MOST_STEPS: Final = 200
"""Most steps other than data that a session may take in a second: some tens of KeyUpdate messages."""
_PEER_SAID_GOODBYE: Final = 2


class _Second:
    """The second in which steps are counted: no global variable, which compiled code would look up by its name."""

    __slots__ = ("began",)

    def __init__(self) -> None:
        self.began = 0.0


def bound_key_updates(address: int) -> None:
    """Bound the key updates of the session at *address*, whose handshake is complete. 0: nothing is done.

    A session that exceeds the bound appears closed to its reader: see `changed_keys_too_often`.
    """
    if address and _STEP_CALLBACK:
        _steps.pop(address, None)  # Of an earlier session at the same address.
        _too_often.discard(address)
        frequent.SSL_set_info_callback(address, _STEP_CALLBACK)


def changed_keys_too_often(address: int) -> bool:
    """Whether that is why the session at *address* has ended; to be asked once."""
    too_often = address in _too_often
    _too_often.discard(address)
    return too_often


def _count_step(session: int, _where: int, _value: int) -> None:
    """Count a session's steps other than data within a second; end one that exceeds the limit."""
    now = _monotonic()
    if now - _second.began > 1.0:
        _steps.clear()
        _second.began = now
    steps = _steps[session] = _steps.get(session, 0) + 1
    if steps > _MOST_STEPS:
        _too_often.add(session)
        frequent.SSL_set_shutdown(session, _PEER_SAID_GOODBYE)


_monotonic: Final = time.monotonic
_STEP_CALLBACK: Final = callback(StepCallback, _count_step, refusal=None)
CAN_COUNT: Final = bool(_STEP_CALLBACK)
"""Whether steps are counted here; otherwise no server starts (`provisioning.pki.guards`)."""
_steps: Final[dict[int, int]] = {}
"""Steps of each session in this second."""
_second: Final = _Second()
_too_often: Final[set[int]] = set()
