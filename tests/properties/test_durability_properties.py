"""After a crash at any batch boundary the broker knows exactly what the last written batch knew."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker.engine.engine import Engine
from broker.mqtt.packets import Puback, Pubcomp, Publish, Pubrec, Pubrel, Subscribe
from provisioning.pki.role import Role
from tests.support.examples import examples
from tests.support.pki import DOMAIN
from tests.support.stored import StoredBroker
from tests.support.wire import V5, WireClient, connect_packet, publication, request, will

NAMES = ["a", "b"]
REFERENCES = [("messages", "id", "message FROM deliveries"), ("deliveries", "message", "id FROM messages")]
"""No row of either table is there without one of the other."""
BEGINNING = [("connect", "a", 0), ("subscribe", "a", 1)]
"""Drawn alone, these are rare, and what is behind them rarer: hardly a delivery would be written, or taken back."""

steps = st.one_of(
    st.tuples(
        st.sampled_from(["connect", "clean", "brief", "vanish", "acknowledge"]), st.sampled_from(NAMES), st.just(0)
    ),
    st.tuples(
        st.sampled_from(["subscribe", "share", "unsubscribe", "publish", "retain", "clear"]),
        st.sampled_from(NAMES),
        st.integers(0, 2),
    ),
    st.tuples(st.just("write"), st.just(""), st.just(0)),
)


def known(engine: Engine) -> Any:
    """Return what the broker must know after a restart, in the order in which clients see it."""
    sessions = {}
    for name in NAMES:
        session = engine.registry.find(DOMAIN, Role.SERVICE, name)
        if session is not None and session.expiry_interval > 0:
            messages = sorted(
                (each.sequence, each.exactly_once, each.message.payload, getattr(each, "share", ""))  # type: ignore[attr-defined]
                for each in session.deliveries()
            )
            sessions[name] = (
                session.expiry_interval,
                dict(session.subscriptions),
                messages,
                set(session.incoming or ()),
            )
    retained = sorted(
        (each.message.topic, each.message.payload, each.message.qos, each.publisher, each.number)
        for each in engine.retained.walk("fleet/#")
        if each is not None
    )
    return sessions, retained


@examples(60, of=200)
@given(st.lists(steps, min_size=10, max_size=50))
def test_what_is_recovered_is_what_was_written(sequence: list[tuple[str, str, int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        broker = StoredBroker(Path(directory))
        broker.held = True
        clients: dict[str, WireClient] = {}
        expected = known(broker.engine)
        for count, (kind, name, qos) in enumerate(BEGINNING + sequence):
            client = clients.get(name)
            if client is not None and client.closed:
                del clients[name]
                client = None
            topic = f"fleet/g/{name}/cmd/{qos}"
            if kind in ("connect", "clean", "brief") and client is None:
                expiry = None if kind == "brief" else 600
                last = will(f"fleet/g/{name}/cmd/will", b"%d" % count, qos)
                asked = {"clean_start": kind != "connect", "session_expiry_interval": expiry}
                clients[name] = client = broker.open_service(name)
                client.send(connect_packet(V5, client_id=name, will=last, receive_maximum=2, **asked))
                while not client.transport.packets:  # Its earlier session is not gone from the store yet.
                    while broker.write():
                        pass
                    expected = known(broker.engine)
            elif kind == "write":
                while broker.write():
                    pass
                expected = known(broker.engine)
            elif client is not None:
                act(client, kind, topic, qos, count)
        after = broker.killed()
        assert known(after.engine) == expected
        for table, reference, other in REFERENCES:
            orphans = f"SELECT * FROM {table} WHERE {reference} NOT IN (SELECT {other})"
            assert after.store.rows(orphans) == [], f"{table} that nothing belongs to"
        after.close()


def act(client: WireClient, kind: str, topic: str, qos: int, count: int) -> None:
    match kind:
        case "vanish":
            client.vanish()
        case "subscribe":
            client.send(Subscribe(1000, (request("fleet/#" if qos else topic, qos),)))
        case "share":
            client.send(Subscribe(1001, (request("$share/g/fleet/#", qos),)))
        case "unsubscribe":
            client.broker.engine.unsubscribe(client.session, "$share/g/fleet/#")
            client.broker.engine.unsubscribe(client.session, "fleet/#" if qos else topic)
        case "acknowledge":
            for packet in client.received():
                if isinstance(packet, Publish) and packet.packet_id is not None:
                    client.send((Pubrec if packet.qos == 2 else Puback)(packet.packet_id))
                elif isinstance(packet, Pubrel):
                    client.send(Pubcomp(packet.packet_id))
        case "publish" | "retain" | "clear":
            payload = b"" if kind == "clear" else b"%d" % count
            client.send(
                publication(topic, payload, qos, packet_id=count + 1 if qos else None, retain=kind != "publish")
            )
