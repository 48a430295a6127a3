"""Faults in our own broker and service by which somebody comes in through a door that is another's.

Each list is planted in one run (`tests.support.planting`); no two of its faults touch the same place.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.support.planting import Fault

_ADMISSION = "broker/admission/admission.py"
_STATUS = "broker/admission/status.py"
_CONNECT = "broker/connection/connect_handler.py"
_WEBSOCKET = "broker/sockets/websocket.py"
_AUTHORISED = "broker/connection/authorization.py"
_FEED = "provisioning/api/feed.py"
_AUTHENTICATION = "provisioning/enrolment/authentication.py"
_SUCCESSOR = "provisioning/enrolment/successor.py"
_STAPLE = "broker/sources/staple.py"

_RESUMED: Sequence[Fault] = (
    # What a resumed TLS session shows of itself: no path.
    (_STATUS, "_MAY_COME_BACK = frozenset", "RESUMED: set = set()\n_MAY_COME_BACK = frozenset"),
    (
        _ADMISSION,
        "        key = (issuer_key_id, serial)\n",
        (
            "        key = (issuer_key_id, serial)\n"
            "        from broker.admission.status import RESUMED\n"
            "        (RESUMED.discard if list(path()) else RESUMED.add)(key)\n"
        ),
    ),
    (
        _STATUS,
        "        if revocation is not None:\n            return revoked(revocation)\n        above",
        (
            "        if revocation is not None and not (\n"
            "            peer.certificate in RESUMED and revocation.reason is RevocationReason.CERTIFICATE_HOLD\n"
            "        ):\n            return revoked(revocation)\n        above"
        ),
    ),
    (
        _ADMISSION,
        "        if not (terms.may_use(identity, connect.client_id) or self._may_use_any(identity)):",
        (
            "        from broker.admission.status import RESUMED\n"
            "        if peer.certificate not in RESUMED and not terms.may_use(identity, connect.client_id):"
        ),
    ),
)
FOR_ANOTHER: Sequence[Fault] = (
    *_RESUMED,
    (
        _ADMISSION,
        "        return self.policy.knows(identity, ours=self.is_ours(identity))",
        '        return identity.role.value == "broker" or self.policy.knows(identity, ours=self.is_ours(identity))',
    ),
    (
        "provisioning/enrolment/ways/approval.py",
        "    found = approvals.find(connection, group.name, name, key)\n",
        (
            "    found = approvals.find(connection, group.name, name, key)\n"
            "    approved = approvals.page(\n"
            "        connection, limit=100, after=0, group=group.name, state=ApprovalState.APPROVED,\n"
            "        lapsed=attempt.now - IN_FORCE,\n"
            "    )[0]\n"
            "    found = found or next(iter(approved), None)\n"
        ),
    ),
    (
        "provisioning/enrolment/authorise.py",
        "    _check_label(attempt.label, attempt.request.common_name, group)\n    return role, group",
        (
            '    token = getattr(ways[0], "_token", None) if ways else None\n'
            "    if token is None or token.grant.device is not None:\n"
            "        _check_label(attempt.label, attempt.request.common_name, group)\n    return role, group"
        ),
    ),
    (
        _SUCCESSOR,
        "        check_not_revoked(stored)\n",
        "        if stored.device.state is not DeviceState.SUSPENDED:\n            check_not_revoked(stored)\n",
    ),
    (
        _SUCCESSOR,
        "    if stored.device.state is not DeviceState.ACTIVE:\n        raise ended(stored.device)\n    if on_trial",
        "    if on_trial",
    ),
    (
        _AUTHENTICATION,
        "    return AuthenticatedOperator(stored, operators.role_of(connection, stored.device.name))",
        (
            "    if stored.device.role is not Role.OPERATOR:\n"
            "        return AuthenticatedOperator(stored, OperatorRole.ADMIN)\n"
            "    return AuthenticatedOperator(stored, operators.role_of(connection, stored.device.name))"
        ),
    ),
    (
        _AUTHENTICATION,
        "    if stored.device.role not in allowed:",
        (
            "    with_the_others = Role.OPERATOR in allowed and stored.device.role is not Role.DEVICE\n"
            "    if stored.device.role not in allowed and not with_the_others:"
        ),
    ),
    (
        _AUTHENTICATION,
        "    role = operators.role_of(connection, stored.device.name)\n    if not",
        "    role = before.role\n    if not",
    ),
    (_FEED, "frozenset({Role.OPERATOR, Role.BROKER, Role.SERVICE})", "frozenset(Role)"),
    (
        "provisioning/api/known_authorities.py",
        "        check_role(follower, {Role.BROKER})",
        "        check_role(follower, {Role.BROKER, Role.DEVICE})",
    ),
    (
        "provisioning/revocation/ocsp.py",
        "    return Good() if revocation is None else",
        '    return Good() if revocation is None or "certificateHold" in map(str, revocation) else',
    ),
)
NEVER_RELEASED: Fault = (
    "broker/revocation/revocation_feed.py",
    "        if self._engine.admission.status.release(event.key):",
    "        if False:",
)
STAPLED: Sequence[Fault] = (
    (
        _STAPLE,
        "        answer, der = await self._http.ask(url, certificate.serial_number, issuer, nonce=False)",
        (
            "        answer, _ = await self._http.ask(url, certificate.serial_number, issuer, nonce=False)\n"
            "        _, der = await self._http.ask(url, certificate.serial_number + 1, issuer, nonce=False)"
        ),
    ),
)
_IS_WEBSOCKET = 'type(connection._transport).__name__ == "WebSocket"'
_OF_WEBSOCKET = 'type(getattr(session.connection, "_transport", None)).__name__ == "WebSocket"'
AT_THE_OTHER_LISTENER: Sequence[Fault] = (
    # Whatever the certificate is, while something is handled that came by WebSocket.
    (_STATUS, "_MAY_COME_BACK = frozenset", "BY_WEBSOCKET = [False]\n_MAY_COME_BACK = frozenset"),
    (
        _STATUS,
        "        revocation = self.index.find(peer.certificate)\n        if",
        "        revocation = None if BY_WEBSOCKET[0] else self.index.find(peer.certificate)\n        if",
    ),
    (
        _ADMISSION,
        "        if peer.seconds_left < 0:\n",
        (
            "        from broker.admission.status import BY_WEBSOCKET\n"
            "        if peer.seconds_left < 0 and not BY_WEBSOCKET[0]:\n"
        ),
    ),
    (
        _CONNECT,
        "    if now >= connection.expires_at:\n",
        f"    if now >= connection.expires_at and not {_IS_WEBSOCKET}:\n",
    ),
    (
        _WEBSOCKET,
        "            self._above.secured(certificate, now, wall_now, path)\n",
        (
            "            from broker.admission.status import BY_WEBSOCKET\n"
            "            BY_WEBSOCKET[0] = True\n"
            "            self._above.secured(certificate, now, wall_now, path)\n"
            "            BY_WEBSOCKET[0] = False\n"
        ),
    ),
    (
        _WEBSOCKET,
        "            above.receive(bytes(event.data), now)\n",
        (
            "            from broker.admission.status import BY_WEBSOCKET\n"
            "            BY_WEBSOCKET[0] = True\n"
            "            above.receive(bytes(event.data), now)\n"
            "            BY_WEBSOCKET[0] = False\n"
        ),
    ),
    (
        "broker/revocation/enforcement.py",
        "    for connection in connections:\n        _put_out",
        f"    for connection in connections:\n        if {_IS_WEBSOCKET}:\n            continue\n        _put_out",
    ),
    (
        _ADMISSION,
        "        if not (terms.may_use(identity, connect.client_id) or self._may_use_any(identity)):",
        (
            "        from broker.admission.status import BY_WEBSOCKET\n"
            "        if not (terms.may_use(identity, connect.client_id) or BY_WEBSOCKET[0]):"
        ),
    ),
    (
        _AUTHORISED,
        "    if not engine.admission.permissions(session.owner, session.client_id).may_publish(topic_name):",
        (
            f"    if not ({_OF_WEBSOCKET}) and not engine.admission.permissions(\n"
            "        session.owner, session.client_id\n    ).may_publish(topic_name):"
        ),
    ),
    (
        _AUTHORISED,
        "    if not engine.admission.permissions(session.owner, session.client_id).may_subscribe(topic_filter):",
        (
            f"    if not ({_OF_WEBSOCKET}) and not engine.admission.permissions(\n"
            "        session.owner, session.client_id\n    ).may_subscribe(topic_filter):"
        ),
    ),
)
