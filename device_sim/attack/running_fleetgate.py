"""A running Fleetgate as a target: an operator's credential enrols good devices there, and revokes them.

Theory
------
The service and its fleet belong to someone. Every device that the cases enrol has a name that begins with a word drawn
for this run, devices are in a group of that name, and on any kind of exit all of them are revoked.

Rules
-----
1. Nothing is enrolled before it is known that the operator may revoke, and that the broker is there.
2. What only the CA's key could sign is skipped if that key is not given: a service certifies no bad device.
3. The broker is held to what a Fleetgate does as shipped: it trusts the CA's signature, unless OCSP is configured.

Handles: enrolling, renewing, suspending, revoking, cleaning up. Does not handle: restarting the broker, or cutting it
off from the service.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from device_sim.attack.capabilities import Capabilities, Feature
from device_sim.attack.desk import Ended, EnrollingRegistrar, EnrolmentDesk
from device_sim.attack.fleetgate_target import CAPABILITIES
from device_sim.attack.issuer import Issuer
from device_sim.attack.target import Impossible, Target
from device_sim.credentials.operator_files import expect_operator
from device_sim.link.tls_dial import Endpoint, NotAdmitted, dial
from device_sim.remedies import with_remedy
from device_sim.view import View
from provisioning.client.enrolment import EnrolmentOperatorClient
from provisioning.client.est import EstClient
from provisioning.pki.extension import UNREADABLE
from provisioning.pki.identity import Identity, identity_of
from provisioning.pki.keys import KeyFileError
from provisioning.pki.tls import CredentialFiles, client_context
from provisioning.program.given_file import PEM_BYTES, contents_of
from provisioning.program.host_and_port import with_port

AS_SHIPPED: Final = CAPABILITIES.model_copy(update={"supports": CAPABILITIES.supports - {Feature.REGISTRY}})
_ADMIN = "admin"
_DIAL = 10.0


@dataclass(frozen=True, slots=True)
class Service:
    """Where the provisioning service is, and an operator's credential for it."""

    url: str
    anchors: Path
    operator: CredentialFiles


@asynccontextmanager
async def running_fleetgate(
    service: Service, endpoint: Endpoint, issuer: Issuer | None, claimed: Capabilities = AS_SHIPPED
) -> AsyncIterator[Target]:
    """Yield the broker at *endpoint* with its *service*; on leaving, revoke all that was enrolled, and report it.

    Raises `Impossible` if the operator may not revoke, or the broker is not there, and what `OperatorClient` raises.
    """
    expect_operator(service.operator, "name it with --cert and --key")
    trust_domain = _identity_in(service.operator.certificate).trust_domain
    word = f"attack-{secrets.token_hex(4)}"
    async with EnrolmentOperatorClient(service.url, service.anchors, service.operator) as operator:
        me = await operator.me()
        if me.role != _ADMIN:
            raise Impossible(
                f"{me.name} is {me.role} and may not revoke what the cases enrol: give the credential of an admin, or "
                f"`fleet-provisioning operator grant {me.name} --role admin`"
            )
        await _reached(endpoint, service.anchors)
        desk = EnrolmentDesk(service.url, service.anchors, operator)
        registrar = EnrollingRegistrar(desk)
        target = Target(
            claimed, endpoint, service.anchors, issuer, registrar,
            trust_domain=trust_domain, group=word, prefix=f"{word}-", desk=desk,
        )  # fmt: skip
        try:
            if issuer is None:
                scout = await registrar.certify(target.device(f"{target.prefix}scout"))
                target.ca = await _issuer_of(scout.certificate, service)
            yield target
        finally:
            try:
                target.ended = await clear_away(desk)
            finally:
                await desk.close()


async def clear_away(desk: EnrolmentDesk) -> Ended:
    """Revoke all enrolled names, report and return it; a second interruption ends that too, and names what is left."""
    view = View()
    try:
        ended = await desk.end()
    except asyncio.CancelledError:
        view.said(f"interrupted again: perhaps not revoked at {desk.url}: {', '.join(desk.left)}")
        raise
    view.said(f"{ended.text}, at {desk.url}")
    return ended


async def _reached(broker: Endpoint, anchors: Path) -> None:
    """Handshake with *broker* without a certificate: in TLS 1.3 a server judges that only later (RFC 8446 §4.4.2)."""
    try:
        (await dial(broker, client_context(anchors, None), deadline=_DIAL)).socket.close()
    except NotAdmitted as error:
        why = f"the broker is not reached at {with_port(broker.host, broker.port)}: {error}"
        raise Impossible(f"{with_remedy(why, error.closure)}; nothing was enrolled, and nothing tried") from error


def _identity_in(certificate: Path) -> Identity:
    try:
        return identity_of(x509.load_pem_x509_certificate(contents_of(certificate, PEM_BYTES)))
    except UNREADABLE as error:
        raise KeyFileError(f"{certificate} holds no PEM certificate: name the operator's") from error


async def _issuer_of(certificate: x509.Certificate, service: Service) -> x509.Certificate:
    """Return the issuing CA; raise `Impossible` if the service does not hand it out (RFC 7030 §4.1)."""
    async with EstClient(service.url, service.anchors) as est:
        for authority in await est.ca_certificates():
            try:
                certificate.verify_directly_issued_by(authority)
            except (ValueError, InvalidSignature):
                continue
            return authority
    raise Impossible(f"the service at {service.url} hands out no CA certificate that has certified its own device")
