"""Somebody who acts in a thread of its own while a block lasts, again and again, whatever its connections do."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from typing import ClassVar, Self

from tests.support.tls_client import Ended

_PAUSE = 0.02


class ActingThread(ABC):
    """What it meets, but the end of a connection, is raised at the end of the block."""

    longest: ClassVar[float] = 30
    """Seconds in which it comes to its end."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopping.set()
        self._thread.join(self.longest)
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                with contextlib.suppress(OSError, Ended):
                    self._act()
                self._stopping.wait(_PAUSE)
        except BaseException as failure:  # noqa: BLE001 - it is raised by the thread that judges
            self._failure = failure

    @abstractmethod
    def _act(self) -> None:
        """Act once."""
