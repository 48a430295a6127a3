"""amqtt's broker with mutual TLS and the benchmarks' access rules; started by `scripted_peers`.

    python amqtt_broker.py PORT CAFILE CERT KEY GROUP BACKEND

amqtt requests a client certificate but does not require one; the plugin here does, and identifies the client by it. A
device publishes below its own topic, the backend reads everything. It prints ``amqtt ready`` when it listens.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

from amqtt.broker import Broker
from amqtt.contexts import Action
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session
from cryptography import x509
from cryptography.x509.oid import NameOID

_GROUP, _BACKEND = sys.argv[5:7]


class CertificateAuth(BaseAuthPlugin):  # type: ignore[misc]
    """Admits a client that has a certificate, under the name in it."""

    async def authenticate(self, *, session: Session) -> bool | None:
        """Return whether the client identifier is the certificate's common name, or an instance of the backend."""
        der = session.ssl_object.getpeercert(binary_form=True) if session.ssl_object else None
        if not der:
            return False
        subject = x509.load_der_x509_certificate(der).subject
        name = str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        client_id = session.client_id or ""
        return client_id == name or (name == _BACKEND and client_id.startswith(f"{name}-"))


class OwnTopics(BaseTopicPlugin):  # type: ignore[misc]
    """Which client may publish and read what."""

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool | None:
        """Return whether the client may do so."""
        client_id, topic = (session.client_id if session else None) or "", topic or ""
        if client_id == _BACKEND or client_id.startswith(f"{_BACKEND}-"):
            return action in {Action.SUBSCRIBE, Action.RECEIVE} and topic.startswith("fleet/")
        return action is Action.PUBLISH and topic.startswith(f"fleet/{_GROUP}/{client_id}/")


async def _main() -> None:
    port, cafile, certfile, keyfile = sys.argv[1:5]
    files = {"cafile": cafile, "certfile": certfile, "keyfile": keyfile}
    listener: dict[str, Any] = {"type": "tcp", "bind": f"127.0.0.1:{port}", "ssl": True, **files}
    plugins: dict[str, Any] = {f"{__name__}.{each.__name__}": {} for each in (CertificateAuth, OwnTopics)}
    broker = Broker({"listeners": {"default": listener}, "plugins": plugins})
    await broker.start()
    sys.stdout.write("amqtt ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # It logs every packet; the others log nothing either.
    asyncio.run(_main())
