"""An address that cannot be listened on: which setting asks for it, and what to do."""

from __future__ import annotations

import errno
import socket

_NO_ADDRESS = "set an address of this machine"
_REMEDIES = {
    errno.EADDRINUSE: "another program listens there; stop it, or set another port",
    errno.EACCES: "this user may not; set a port above 1023",
    errno.EADDRNOTAVAIL: _NO_ADDRESS,
}


class ListenError(Exception):
    """The address cannot be listened on; the text names the setting, and says what to do."""

    @classmethod
    def of(cls, setting: str, host: str, port: int, error: OSError) -> ListenError:
        """Return what *error* means where *setting* asked for *host* and *port*."""
        nameless = isinstance(error, socket.gaierror)  # Its numbers are another list's.
        remedy = _NO_ADDRESS if nameless else _REMEDIES.get(error.errno or 0, "")
        said = filter(None, (error.strerror, remedy))
        return cls(f"{setting}: {host} port {port} cannot be listened on: {'; '.join(said)}")
