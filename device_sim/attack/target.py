"""The target of an attack: a broker, the CA that it trusts, and the ways to enrol and revoke there.

The cases know only this. What stands behind it, our own broker and service, Debian's mosquitto, or a foreign broker
with a CRL file, is decided by `fleetgate_target`, `mosquitto_target`, `running_fleetgate` and `choosing`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography import x509

from device_sim.attack.capabilities import Capabilities, CapabilityError, CrlFile
from device_sim.attack.crl_in_use import CrlInUse
from device_sim.attack.desk import Ended, EnrolmentDesk
from device_sim.attack.issuer import Issuer, Paper
from device_sim.attack.own_command import CommandFailed, carried_out
from device_sim.link.tls_dial import Endpoint
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role

_RELOAD_DEADLINE = 10.0


Crls = Sequence[tuple[Issuer, Sequence[int]]]
"""CAs, and the serial numbers on the CRL of each."""
Publish = Callable[[Crls], Awaitable[None]]


class Impossible(Exception):
    """This cannot be tried against this target, or by this tester; the text says why."""


class Starved(Exception):
    """An innocent device was not served, and no reason was given; the text says what it waited for."""


class TurnedAway(Exception):
    """An innocent device was refused, or disconnected, with a reason; the text gives it."""


class BrokenPromise(Exception):
    """A broker has not done what it owes a good party; the text says what.

    *never*: what was due has not come. *advised*: the standard says should, not must.
    """

    def __init__(self, what: str, *, never: bool = False, advised: bool = False) -> None:
        super().__init__(what)
        self.never = never
        self.advised = advised


class Registrar(Protocol):
    """Certifies good parties and revokes them."""

    async def certify(self, identity: Identity) -> Paper:
        """Return a good certificate."""

    async def revoke(self, paper: Paper) -> None:
        """Revoke it, and return when the target's operator would consider it done."""


class SigningRegistrar:
    """Signs with the CA's own key, and revokes through a CRL file and a command.

    *before* is what that file held, where it is not the tester's own.
    """

    def __init__(
        self, issuer: Issuer, crl_file: CrlFile | None, *, other_crls: bytes = b"", before: CrlInUse | None = None
    ) -> None:
        self._issuer = issuer
        self._crl_file = crl_file
        self._revoked: list[int] = []
        self._before = before
        self._other_crls = other_crls

    @property
    def told_by(self) -> str | None:
        """The command by which the broker is told to read its list, empty if there is none; None: it has no list."""
        return None if self._crl_file is None else " ".join(self._crl_file.reload)

    async def certify(self, identity: Identity) -> Paper:
        """Return a certificate for *identity*."""
        return self._issuer.issue(identity)

    async def revoke(self, paper: Paper) -> None:
        """Rewrite the CRL and have it reread; raise `Impossible` if the target has none."""
        if self._crl_file is None:
            raise Impossible("no way to revoke: say one in [revocation] of the --capabilities file")
        self._revoked.append(paper.certificate.serial_number)
        await self._publish(self._crl_file)

    async def publish_others(self, lists: Crls) -> None:
        """Rewrite the CRLs of other CAs, and have them reread; raise `Impossible` if the target has no file."""
        if self._crl_file is None:
            raise Impossible("no way to revoke: say one in [revocation] of the --capabilities file")
        self._other_crls = b"".join(issuer.crl(serials) for issuer, serials in lists)
        await self._publish(self._crl_file)

    async def put_back(self) -> str:
        """Have the file of a broker that ran before as it was; return what failed."""
        return "" if self._before is None else await self._before.put_back(_RELOAD_DEADLINE)

    async def _publish(self, file: CrlFile) -> None:
        try:
            if self._before is None:
                file.crl_file.write_bytes(self._issuer.crl(self._revoked) + self._other_crls)
            else:
                self._before.publish(self._revoked)
        except OSError as error:
            raise Impossible(f"nobody can be revoked: {error.filename}: {error.strerror}") from error
        except CapabilityError as error:
            raise Impossible(f"nobody can be revoked: {error}") from error
        if not file.reload:
            return
        try:
            await carried_out(file.reload, _RELOAD_DEADLINE)
        except CommandFailed as error:
            raise Impossible(f"the broker was not told to read its revocation list: {error}") from error


@dataclass(frozen=True, slots=True)
class Feed:
    """The path of revocations to the broker, controlled by the tester."""

    cut: Callable[[], None]
    join: Callable[[], None]


@dataclass(slots=True)
class Target:
    """A broker to attack. What is None cannot be done there."""

    capabilities: Capabilities
    endpoint: Endpoint
    anchors: Path
    ca: Issuer | x509.Certificate | None
    """The CA of its devices: with its key, its certificate alone, or not known yet."""
    registrar: Registrar
    trust_domain: str = "fleet.internal"
    group: str = "meters"
    version: str = ""
    """The broker's version, as it reports it."""
    build: str = ""
    """Which build of it, if that is known: `provisioning.program.build`."""
    prefix: str = ""
    """Prefix of all parties' names, where foreign names exist too."""
    desk: EnrolmentDesk | None = None
    broker_pid: int | None = None
    feed: Feed | None = None
    stop_broker: Callable[[], Awaitable[None]] | None = None
    start_broker: Callable[[], Awaitable[None]] | None = None
    kill_broker: Callable[[], Awaitable[None]] | None = None
    """Ends it at once (SIGKILL), as a power failure does."""
    other_issuer: Issuer | None = None
    """A second CA that the broker trusts, and that may certify CAs."""
    registry: Callable[[], AbstractAsyncContextManager[Endpoint]] | None = None
    """Starts another broker of the fleet, which checks for each certificate whether it was ever issued."""
    crls: Callable[[Crls], AbstractAsyncContextManager[tuple[Endpoint, Publish]]] | None = None
    """Has a broker of the fleet read CRLs of the second CA, and of those below it; yields how to publish newer ones."""
    ended: Ended | None = None
    """What became of the enrolled devices, once they have been cleaned up."""
    waited: float = 0.0
    """How many seconds at most were waited for it to go by a revocation list that it had been told to read."""
    not_put_back: str = ""
    """What failed when the broker's CRL file was put back, once it should have been."""

    @property
    def issuer(self) -> Issuer:
        """The CA with its key; raise `Impossible` if that is not given."""
        if not isinstance(self.ca, Issuer):
            raise Impossible("only the CA's key can sign it, and no service would: give --ca-cert and --ca-key")
        return self.ca

    @property
    def ca_certificate(self) -> x509.Certificate:
        """The CA's certificate, which every device may know; raise `Impossible` before it is known."""
        if self.ca is None:
            raise Impossible("the CA's certificate is not known yet")
        return self.ca.certificate if isinstance(self.ca, Issuer) else self.ca

    def device(self, name: str) -> Identity:
        """Return the identity of a device."""
        return Identity(self.trust_domain, Role.DEVICE, name, self.group)

    def service(self, name: str) -> Identity:
        """Return the identity of a service."""
        return Identity(self.trust_domain, Role.SERVICE, name)

    def broker_memory(self) -> int | None:
        """Return the broker's resident memory in bytes, if it is our process."""
        if self.broker_pid is None:
            return None
        for line in Path(f"/proc/{self.broker_pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return None
