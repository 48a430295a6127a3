"""Operators of a fleet."""

from __future__ import annotations

from cryptography import x509

from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.tokens import TokenOrder
from provisioning.operator_role import OperatorRole
from provisioning.pki.role import Role
from tests.support.fleet import Fleet
from tests.support.requests import csr_der


async def operator(fleet: Fleet, name: str, role: OperatorRole = OperatorRole.ADMIN) -> x509.Certificate:
    """Return the certificate of a new operator."""
    (token,) = await fleet.token_service.create(TokenOrder([name], None, Role.OPERATOR, operator_role=role), by="admin")
    return await fleet.enrolment.enrol(csr_der(names=[name]), TokenCredential(name, token.token))
