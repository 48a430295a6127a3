"""Brokers report which of the issuing CAs that the feed tells of they would believe.

`fleet-provisioning status` shows which ones they would not, and no CA is activated that would have devices refused
(`provisioning.store.known_authorities`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Final

import structlog
from cryptography import x509
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection

from provisioning.api.asked_for import check_json
from provisioning.api.body import read_whole
from provisioning.api.peer import peer_certificate
from provisioning.enrolment.authentication import authenticate, check_role
from provisioning.pki.role import Role
from provisioning.store import known_authorities
from provisioning.store.certificates import StoredCertificate
from provisioning.store.database import Database

log = structlog.get_logger(__name__)

_MOST_AUTHORITIES: Final = 1000


class KnownAuthorities(BaseModel):
    """Which of the issuing CAs that the feed has announced the calling broker trusts, by name."""

    model_config = ConfigDict(extra="forbid")

    known: Annotated[dict[Annotated[str, Field(max_length=64)], bool], Field(max_length=_MOST_AUTHORITIES)]


def known_authority_routes(database: Database, clock: Callable[[], datetime]) -> APIRouter:
    """Return the route for the brokers' reports."""
    router = APIRouter(prefix="/v1")

    def broker_of(connection: Connection, certificate: x509.Certificate | None) -> StoredCertificate:
        follower = authenticate(connection, certificate, clock())
        check_role(follower, {Role.BROKER})
        return follower

    class BrokersRoute(APIRoute):
        """A route for brokers: nobody else's body is read."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            """Wrap the route's own handler, which would read the body first."""
            handle = super().get_route_handler()

            async def of_broker(request: Request) -> Response:
                certificate = peer_certificate(request.scope)
                await database.read(lambda connection: broker_of(connection, certificate))
                check_json(await read_whole(request))
                return await handle(request)

            return of_broker

    async def tell_known(body: KnownAuthorities, request: Request) -> None:
        """Report which issuing CAs the calling broker trusts. It replaces the broker's previous report.

        No client is admitted or refused because of it. Operators see it, and a CA that a broker does not trust is not
        activated unless an operator insists.
        """
        certificate = peer_certificate(request.scope)

        def transaction(connection: Connection) -> str:
            follower = broker_of(connection, certificate)
            known_authorities.record(connection, follower.device.id, body.known, clock())
            return follower.device.name

        name = await database.write(transaction)
        unknown = sorted(authority for authority, known in body.known.items() if not known)
        log.info("broker has compared CAs", broker=name, unknown=unknown)

    router.add_api_route(
        "/revocations/feed/authorities",
        tell_known,
        methods=["PUT"],
        status_code=HTTPStatus.NO_CONTENT,
        route_class_override=BrokersRoute,
    )
    return router
