"""A socket like the one that systemd names to a service of ``Type=notify``, and what arrives there."""

from __future__ import annotations

import secrets
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

_PATIENCE = 60


class Notified:
    """A service manager that only listens; its address is short enough for a socket wherever pytest's folders are."""

    def __init__(self, *, abstract: bool = False) -> None:
        self._folder = None if abstract else Path(tempfile.mkdtemp())
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(_PATIENCE)
        self._name = f"@fleetgate-{secrets.token_hex(8)}" if self._folder is None else str(self._folder / "notify")
        self._socket.bind(f"\0{self._name[1:]}" if abstract else self._name)

    @property
    def environment(self) -> Mapping[str, str]:
        """The variable that names it."""
        return {"NOTIFY_SOCKET": self._name}

    def next(self) -> str:
        """Return the next message; waits for it."""
        return self._socket.recv(4096).decode()

    def say(self, message: str) -> None:
        """Put *message* behind all that has arrived."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
            speaker.sendto(message.encode(), self._socket.getsockname())

    def until(self, message: str) -> list[str]:
        """Return what arrives until *message* does, which is not among them."""
        before = []
        while (said := self.next()) != message:
            before.append(said)
        return before

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._socket.close()
        if self._folder is not None:
            shutil.rmtree(self._folder)
