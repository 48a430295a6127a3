"""An address that cannot be listened on: which setting asks for it, and what to do."""

from __future__ import annotations

import errno

_REMEDIES = {
    errno.EADDRINUSE: "another program listens there; stop it, or set another port",
    errno.EACCES: "this user may not; set a port above 1023",
    errno.EADDRNOTAVAIL: "set an address of this machine",
}
_NO_ADDRESS = "set an address of this machine"  # A name that nobody knows has an error number of another list.


class ListenError(Exception):
    """The address cannot be listened on; the text names the setting, and says what to do."""

    @classmethod
    def of(cls, setting: str, host: str, port: int, error: OSError) -> ListenError:
        """Return what *error* means where *setting* asked for *host* and *port*."""
        remedy = _REMEDIES.get(error.errno or 0, _NO_ADDRESS)
        return cls(f"{setting}: {host} port {port} cannot be listened on: {error.strerror}; {remedy}")
