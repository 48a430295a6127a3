"""What keeps strangers from holding up a server, and whether this Python's OpenSSL lets us do it.

Theory
------
Before a client is known, a server bounds what it may cost: what its ClientHello lists
(`provisioning.pki.hello_bounds`), how much of a handshake is done at once (`provisioning.pki.handshake_bounds`), which
keys are read (`provisioning.pki.named_curves`), and then how often it changes the keys of its session
(`provisioning.pki.key_updates`). Each of these calls OpenSSL, or is called by it. None has a twin without: what a
client of TLS 1.3 sends can only be seen inside OpenSSL. Some Pythons do not allow that, those of uv for one, into which
OpenSSL is linked such that nobody else finds its functions (docs/decisions/0332).

Rules
-----
1. Without one of them no server starts.
2. What admits or refuses a device is no business of this module: admission asks its questions on any Python.
"""

from __future__ import annotations

import ssl

from provisioning.pki import hello_bounds, key_updates, named_curves, openssl

_ANOTHER = (
    "run it with a CPython 3.11 to 3.15 whose ssl module uses a shared libssl, 3.0 or newer, as Linux distributions "
    "have it (make PYTHON=/usr/bin/python3 setup)"
)
_MAY_CALL = "allow it to have executable memory (MemoryDenyWriteExecute of a unit, execmem of SELinux)"


def missing() -> str | None:
    """Return why no server is to be started here, and the remedy, behind the last semicolon; None: one may be."""
    if openssl.WHY_NOT:
        what = f"strangers could hold up TLS connections with this Python ({ssl.OPENSSL_VERSION})"
        return f"{what}: {openssl.WHY_NOT}; {_ANOTHER}"
    if not (hello_bounds.CAN_BOUND and named_curves.CAN_LOOK and key_updates.CAN_COUNT):
        return (
            f"strangers could hold up TLS connections: {ssl.OPENSSL_VERSION} cannot call back this process; {_MAY_CALL}"
        )
    return None
