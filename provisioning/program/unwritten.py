"""What keeps a file from being written, in words, and what to do: the kernel says the former only."""

from __future__ import annotations

import errno
import ssl
from typing import Final

FREE_SOME: Final = "free some, or name a place on another disk"
_ELSEWHERE: Final = "name another place"
_REMEDIES: Final = {
    errno.EACCES: f"let this user write there, or {_ELSEWHERE}",
    errno.EPERM: f"let this user write there, or {_ELSEWHERE}",
    errno.EROFS: f"make it writable, or {_ELSEWHERE}",
    errno.ENOSPC: FREE_SOME,
    errno.EDQUOT: FREE_SOME,
    errno.EFBIG: f"raise the limit for files (ulimit -f), or {_ELSEWHERE}",
    errno.EEXIST: "move it away, or name another",
    errno.ENOENT: "make its directory, or name another",
    errno.ENOTDIR: "name another: a file is no directory",
    errno.EISDIR: "name a file",
    errno.ENAMETOOLONG: "name a shorter one",
}
_WHATEVER_WAS_DONE: Final = {
    errno.EACCES: "let this user do it, or name another",
    errno.EPERM: "let this user do it, or name another",
    errno.EMFILE: "raise the limit for open files (ulimit -n)",
} | {number: _REMEDIES[number] for number in (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG)}


def unwritten(name: object, error: OSError) -> str:
    """Return that *name* cannot be written, why, and what to do about it."""
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{name} cannot be written: {error.strerror or error}" + (f"; {remedy}" if remedy else "")


def remedy_of(error: OSError) -> str:
    """Return what to do about *error*, whatever was being done; empty: no advice."""
    if isinstance(error, ssl.SSLError):  # Its numbers are OpenSSL's.
        return ""
    return _WHATEVER_WAS_DONE.get(error.errno or 0, "")
