"""Enrol a whole fleet into its directory, in parallel, and resume an interrupted enrolment; or end a fleet.

Rules
-----
1. What is in the directory is not enrolled again; what was in progress when the user interrupted is.
2. Tokens are requested, and keys put on lists, one batch at a time: an interruption wastes at most a batch, and
   tokens expire by themselves.
3. Ending a fleet first revokes and then removes: no key remains valid without its owner.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from device_sim.credentials.certification import CertificateAuthority
from device_sim.credentials.credential import enrol
from device_sim.credentials.evidence import Evidence
from device_sim.credentials.fleet_directory import FleetDirectory
from device_sim.parallel import in_parallel
from provisioning.client.est import EstClient
from provisioning.client.operator import OperatorClient, RequestRefused
from provisioning.pki.identity import Identity
from provisioning.pki.keys import PrivateKey, generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role

_BATCH = 200
_NOT_FOUND = 404

Enrolled = Callable[[], None]
"""Called after each device that is completely on disk, or revoked."""


def names_of(prefix: str, count: int) -> list[str]:
    """Return the names of a fleet of *count* devices: the first ten are also the first of a fleet of ten thousand."""
    return [f"{prefix}-{number:05d}" for number in range(1, count + 1)]


async def enrol_fleet(
    fleet: FleetDirectory,
    names: Sequence[str],
    operator: OperatorClient,
    est: EstClient,
    evidence: Evidence,
    parallel: int,
    enrolled: Enrolled,
) -> None:
    """Enrol the fleet's service by one-time token, and by *evidence* those of *names* that are not in *fleet* yet."""
    with fleet.changing():
        if fleet.service not in fleet.entries:
            (token,) = await operator.create_tokens(device=fleet.service, role=Role.SERVICE)
            randomness = random.Random()  # noqa: S311 - pauses only
            fleet.keep(await enrol(est, fleet.service, token.token, randomness))
        missing = iter([name for name in names if name not in fleet.entries])
        while batch := list(islice(missing, _BATCH)):
            keys = {name: fleet.begun_key(name) if evidence.keeps_keys else generate_key() for name in batch}
            await evidence.prepare(keys)

            async def one(name: str, keys: dict[str, PrivateKey] = keys) -> None:
                fleet.keep(await evidence.certify(name, keys[name]))
                enrolled()

            await in_parallel(parallel, batch, one)


async def certify_fleet(
    fleet: FleetDirectory,
    names: Sequence[str],
    group: str,
    trust_domain: str,
    authority: CertificateAuthority,
    enrolled: Enrolled,
) -> None:
    """Have *authority* certify the fleet's service and those of *names* that are not in *fleet* yet."""

    def identities() -> Iterator[Identity]:
        yield Identity(trust_domain, Role.SERVICE, fleet.service)
        for name in names:
            yield Identity(trust_domain, Role.DEVICE, name, group)

    with fleet.changing():
        for identity in identities():
            if identity.name not in fleet.entries:
                fleet.keep(authority.issue(identity))
                if identity.role is Role.DEVICE:
                    enrolled()
                await asyncio.sleep(0)  # Let Ctrl-C through.


async def end_fleet(fleet: FleetDirectory, operator: OperatorClient | None, parallel: int, revoked: Enrolled) -> None:
    """Revoke all of *fleet* (with an *operator*) and remove it."""
    with fleet.changing(incomplete=True):
        if operator is not None:

            async def one(name: str) -> None:
                try:
                    await operator.revoke(device=name, reason=RevocationReason.CESSATION_OF_OPERATION)
                except RequestRefused as error:
                    if error.status != _NOT_FOUND:  # Unknown to the service: nothing to revoke.
                        raise
                fleet.revoked(name)
                revoked()

            await in_parallel(parallel, [name for name, entry in fleet.entries.items() if not entry.revoked], one)
        fleet.remove()
