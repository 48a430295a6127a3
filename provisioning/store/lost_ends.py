"""Revocations that this process knows of and the store has lost: their certificates stay worthless here meanwhile.

Theory
------
A standby takes over that lacks the last commits, and a device that was revoked is good again by the store. Brokers that
have heard of its revocation remember; but a certificate that it renews now they would admit. A process that was running
remembers, too: nobody is authenticated by such a certificate here, and nobody enrols under its device's name, until an
operator has repeated what was lost, or decided otherwise; and the lists that are made here still have them::

    commits are lost ─► doubt: nobody is let in ─► the feed compares ─► hold ─► an event about the certificate ─► over

Nothing is written: reasons, operators and audit entries would be invented
(docs/decisions/0396-what-was-lost-lets-nobody-in-meanwhile.md).

Rules
-----
1. Held is what was final or a suspension, also of a certificate that the store has lost as well: the token that bought
   it is unspent again. Not what was superseded: its successor may be lost as well, and then it is all that its device
   has. But it is if that successor was ended.
2. Any later event about the certificate ends that: an operator has decided. So does, for whoever enrols under the
   name, that the device is ended or suspended by the store; and the end of the process ends all. A name that the store
   does not know is ended where it is promised: by the very token that would let it in.
3. Of a CA, nothing that it has issued is good, and it issues nothing.
4. There is doubt from the first session that leads to another server than before, whoever opens it. There is another
   while a worker that takes another's place has not heard all its fellows: nothing that the feed finds settles that.
5. What is held changes on the event loop alone, by replacing it: any thread may look it up meanwhile. Of which names
   something was decided, whoever finds that notes, in any thread; but not if more may be lost since that was read.

Does not handle: what was lost before this process was started, or is older than what the feed remembers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.pki.revocation_reason import RevocationReason

LOST_OPTION: Final = "lost_ends"
"""The execution option of the store's connections that has them, see `provisioning.store.database`."""
_REPEAT: Final = (
    "an operator has to repeat it, or to suspend and resume the device; if neither changes the certificate, as it has "
    "expired, was replaced or is lost, to revoke the device, after which a new token lets it in"
)


@dataclass(frozen=True, slots=True)
class LostEnd:
    """The end of one certificate, as it was before the store went back."""

    issuer_key_id: str
    serial: str
    device: str
    reason: RevocationReason
    ended_at: datetime
    invalidity_date: datetime | None = None
    authority_key: str | None = None
    """If it is an issuing CA's: the identifier of that one's own key, in hexadecimal."""
    shard_id: int | None = None
    """The part of the issuer's CRL that the certificate is on; unknown of one that is lost as well."""


class LostEnds:
    """What one process knows of them."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], LostEnd] = {}
        self._of_devices: dict[str, LostEnd] = {}
        self._decided: Final[set[str]] = set()
        self._of_authorities: dict[str, LostEnd] = {}
        self._counting = threading.Lock()
        self.doubts = 0
        """How often the store was found to have lost something."""
        self._settled_doubts = 0
        self.hears_all = True
        """Whether all fellow workers have told what they know, as far as they were to be asked."""
        self.wake: Callable[[], object] | None = None
        """Has the feed compare at once; called in any thread."""
        self.is_known: Callable[[Connection], bool] = lambda _connection: True
        """Whether the store has the newest event that the feed knows; called in any thread."""

    def doubt(self) -> int:
        """Let nobody in until the feed has compared what it knows with the store; return how many doubts there are."""
        with self._counting:  # Two threads at once: both count, or a look that began between them would settle both.
            self.doubts = doubts = self.doubts + 1
        wake = self.wake
        if wake is not None:
            wake()
        return doubts

    def compared(self, doubts: int) -> None:
        """Take note that the feed has, in a look that began after so many *doubts*."""
        self._settled_doubts = max(self._settled_doubts, doubts)

    @property
    def held(self) -> list[LostEnd]:
        """All that is held."""
        return list(self._held.values())

    @property
    def decided(self) -> list[str]:
        """The names against which nothing is held any more, though something is against their certificates."""
        return [each for each in self._of_devices if each in self._decided]

    def hold(self, ends: Iterable[LostEnd]) -> None:
        """Hold these against their certificates and devices, whatever was decided of those before."""
        lost = {(each.issuer_key_id, each.serial): each for each in ends}
        with self._counting:
            self._decided.difference_update(each.device for each in lost.values())
        self._keep({**self._held, **lost})

    def settle(self, certificates: Iterable[tuple[str, str]]) -> None:
        """Let go what is held against these: their issuers' key identifiers and serial numbers."""
        if self._held:
            gone = set(certificates)
            self._keep({each: end for each, end in self._held.items() if each not in gone})

    def listed(self, issuer_key_id: str, shard_id: int | None) -> list[LostEnd]:
        """Return what is held and belongs on a list: of the issuer, or of that part of it."""
        return [
            each
            for each in self._held.values()
            if each.issuer_key_id == issuer_key_id and shard_id in {None, each.shard_id}
        ]

    def check_certificate(self, issuer_key_id: str, serial: str) -> None:
        """Raise `Refused` if something is held against the certificate or its CA, or may be."""
        self.check_authority(issuer_key_id)
        end = self._held.get((issuer_key_id, serial))
        if end is not None:
            raise _held_against(end)

    def check_authority(self, key_id: str) -> None:
        """Do the same for the CA with that key."""
        self._check_compared()
        end = self._of_authorities.get(key_id)
        if end is not None:
            raise _held_against(end)

    def check_device(self, name: str, *, decided: bool = False, doubts: int = 0) -> None:
        """Do the same for whoever enrols under *name*; an operator may have *decided* about the device as a whole.

        Then nothing is held against the name any more: of a certificate that was superseded before there is no event.
        *doubts* is how many there were before that was read: if there are more, the decision may be lost as well.
        """
        self._check_compared()
        end = self._of_devices.get(name)
        if end is None or name in self._decided or (decided and self.let_go(name, doubts)):
            return
        self._check_compared()
        raise _held_against(self._of_devices.get(name, end))

    def let_go(self, name: str, doubts: int) -> bool:
        """Hold nothing against the device's *name* any more: an operator has decided; return whether that is so.

        It is not if there are more than so many *doubts*: another history was read.
        """
        with self._counting:
            if self.doubts != doubts:
                return False
            self._decided.add(name)
            return True

    @property
    def is_compared(self) -> bool:
        """Whether the feed has compared what it knows with the store since the last doubt."""
        return self.doubts == self._settled_doubts

    @property
    def in_doubt(self) -> bool:
        """Whether something may be lost that is not known here yet: to the feed, or from a fellow worker."""
        return not (self.is_compared and self.hears_all)

    def _check_compared(self) -> None:
        if not self.is_compared:
            raise Refused(
                Code.UNAVAILABLE, "the database has lost changes, and what they were is being found out: try again"
            )
        if not self.hears_all:
            raise Refused(
                Code.UNAVAILABLE, "another worker has not told yet whether the database has lost changes: try again"
            )

    def _keep(self, held: dict[tuple[str, str], LostEnd]) -> None:
        self._held, self._of_devices = held, {each.device: each for each in held.values()}
        self._of_authorities = {each.authority_key: each for each in held.values() if each.authority_key is not None}


def _held_against(end: LostEnd) -> Refused:
    what = f"certificate {end.serial} of {end.device} was ended ({end.reason})"
    return Refused(Code.UNAVAILABLE, f"the database has lost that {what}: {_REPEAT}")


def of(connection: Connection) -> LostEnds:
    """Return those that the process of *connection* knows."""
    found: LostEnds = connection.get_execution_options()[LOST_OPTION]
    return found
