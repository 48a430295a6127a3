"""Revocations that this process knows of and the store has lost: their certificates stay worthless here meanwhile.

Theory
------
A standby takes over that lacks the last commits, and a device that was revoked is good again by the store. Brokers that
have heard of its revocation remember; but a certificate that it renews now they would admit. A process that was running
remembers, too: nobody is authenticated by such a certificate here, and nobody enrols under its device's name, until an
operator has repeated what was lost, or decided otherwise::

    commits are lost ─► doubt: nobody is let in ─► the feed compares ─► hold ─► an event about the certificate ─► over

Nothing is written: reasons, operators and audit entries would be invented
(docs/decisions/0396-what-was-lost-lets-nobody-in-meanwhile.md).

Rules
-----
1. Held is what the store still has a certificate of, and what was final or a suspension. Not what was superseded: its
   successor may be lost as well, and then it is all that its device has.
2. Any later event about the certificate ends that: an operator has decided. So does the end of the process.
3. Changed on the event loop, or under the writer's lock; looked up from any thread.

Does not handle: what was lost before this process was started, and what relying parties are told by CRLs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused

LOST_OPTION: Final = "lost_ends"
"""The execution option of the store's connections that has them, see `provisioning.store.database`."""
_REPEAT: Final = "an operator has to repeat it, or to suspend and resume the device"


@dataclass(frozen=True, slots=True)
class LostEnd:
    """The end of one certificate, as it was before the store went back."""

    issuer_key_id: str
    serial: str
    device: str
    reason: str


class LostEnds:
    """What one process knows of them."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], LostEnd] = {}
        self._of_devices: dict[str, LostEnd] = {}
        self._counting = threading.Lock()
        self.doubts = 0
        """How often the store was found to have lost something."""
        self._settled_doubts = 0
        self.wake: Callable[[], object] | None = None
        """Has the feed compare at once; called in any thread."""

    def doubt(self) -> None:
        """Let nobody in until the feed has compared what it knows with the store."""
        with self._counting:  # Two threads at once: both count, or a look that began between them would settle both.
            self.doubts += 1
        wake = self.wake
        if wake is not None:
            wake()

    def compared(self, doubts: int) -> None:
        """Take note that the feed has, in a look that began after so many *doubts*."""
        self._settled_doubts = max(self._settled_doubts, doubts)

    def hold(self, ends: Iterable[LostEnd]) -> None:
        """Hold these against their certificates and devices."""
        self._keep({**self._held, **{(each.issuer_key_id, each.serial): each for each in ends}})

    def settle(self, certificates: Iterable[tuple[str, str]]) -> None:
        """Let go what is held against these: their issuers' key identifiers and serial numbers."""
        if self._held:
            gone = set(certificates)
            self._keep({each: end for each, end in self._held.items() if each not in gone})

    def check_certificate(self, issuer_key_id: str, serial: str) -> None:
        """Raise `Refused` if something is held against the certificate, or may be."""
        self._check_compared()
        end = self._held.get((issuer_key_id, serial))
        if end is not None:
            raise Refused(
                Code.UNAVAILABLE,
                f"the database has lost that certificate {serial} of {end.device} was ended ({end.reason}): {_REPEAT}",
            )

    def check_device(self, name: str) -> None:
        """Do the same for whoever enrols under *name*."""
        self._check_compared()
        end = self._of_devices.get(name)
        if end is not None:
            raise Refused(
                Code.UNAVAILABLE,
                f"the database has lost that certificate {end.serial} of {name} was ended ({end.reason}): {_REPEAT}",
            )

    def _check_compared(self) -> None:
        if self.doubts != self._settled_doubts:
            raise Refused(
                Code.UNAVAILABLE, "the database has lost changes, and what they were is being found out: try again"
            )

    def _keep(self, held: dict[tuple[str, str], LostEnd]) -> None:
        self._held, self._of_devices = held, {each.device: each for each in held.values()}


def of(connection: Connection) -> LostEnds:
    """Return those that the process of *connection* knows."""
    found: LostEnds = connection.get_execution_options()[LOST_OPTION]
    return found
