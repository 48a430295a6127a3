"""Sessions as plugins see them: amqtt's `Session`, with what this broker knows.

Theory
------
amqtt's Session is state and protocol at once; a plugin reads a few fields of it, and may store things in `attributes`.
One is created for each of our sessions that a plugin gets to see, and lives as long as that; its costly part (the state
machine) is created on demand.

Rules
-----
1. `username` is reliable: it is the name in the certificate, or the certificate's URI for a client of a trust domain
   other than the broker's, whose CA may give it one of our names. `authenticate` sees the user name in CONNECT; after
   that, it stays only with ``plugin_username = "connect"``, by which the operator declares that a plugin checks it.
   Likewise such a client's `client_id` is preceded by its domain, ``plant-7.example/meter-1``, since one of our clients
   may have the same identifier.
2. `password` is available during `authenticate`, and not longer.
3. `attributes` holds what the certificate says, under ``fleetgate.identity``, ``.role``, ``.group``, ``.name`` and
   ``.serial``. `ssl_object` has one method, ``getpeercert(binary_form=True)``.
4. What a plugin writes to it has no effect on the broker.
"""

from __future__ import annotations

from amqtt.session import Session as AmqttSession
from transitions import Machine

from broker.admission.peer import Peer
from broker.engine.client import Client
from broker.mqtt.connect import Connect
from broker.plugins.errors import NotOffered
from broker.session.session import Session
from provisioning.pki.identity import Identity
from provisioning.program.host_and_port import without_port


class PeerCertificate:
    """The part of the TLS connection that a plugin may query: the client's certificate."""

    def __init__(self, certificate: bytes | None) -> None:
        self._certificate = certificate

    def getpeercert(self, binary_form: bool = False) -> bytes | None:
        """Return the certificate in DER. Raises `NotOffered` for the other form, which OpenSSL has not kept."""
        if not binary_form:
            raise NotOffered("getpeercert: only binary_form=True; parse the DER with cryptography.x509")
        return self._certificate


class HostedSession(AmqttSession):
    """One session, for plugins."""

    def __init__(self) -> None:
        self._machine: Machine | None = None
        self._connected = False
        self.of: Session | None = None
        """The broker's own session; None while its client is not admitted yet."""
        self.standing = object()
        """Replaced at each connection: verdicts from an earlier connection no longer count."""
        self._named = ""
        """The certificate's name, as in `username`."""
        super().__init__()

    def _init_states(self) -> None:
        """Create no state machine yet: those of a fleet would take more memory than its connections."""

    @property
    def transitions(self) -> Machine:
        """The state machine as in amqtt; `state` is connected or disconnected."""
        if self._machine is None:
            initial = "connected" if self._connected else "disconnected"
            self._machine = Machine(states=AmqttSession.states, initial=initial)
        return self._machine

    def set_connected(self, connected: bool) -> None:
        """Take note that the client has connected, or disconnected."""
        self._connected = connected
        self._machine = None
        if connected:
            self._on_enter_connected()
        else:
            self._on_enter_disconnected()

    @property
    def inflight_in_count(self) -> int:
        """How many QoS 2 messages from the client are under way."""
        return len(self.of.incoming) if self.of is not None and self.of.incoming is not None else 0

    @property
    def inflight_out_count(self) -> int:
        """How many messages to the client are not acknowledged."""
        return len(self.of.inflight) if self.of is not None and self.of.inflight is not None else 0

    @property
    def retained_messages_count(self) -> int:
        """How many messages wait for the client (amqtt's name for it)."""
        return self.of.queued if self.of is not None else 0

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        return f"Session(client_id={self.client_id!r}, {'connected' if self._connected else 'disconnected'})"

    def present(self, connection: Client, peer: Peer, named: str, client_id: str, packet: Connect) -> None:
        """Take the content of *packet*, and its sender: *peer*, called *named* (`Admission.name_of`, `client_of`)."""
        self.client_id = client_id
        host, port = without_port(connection.address), connection.address.rpartition(":")[2]
        self.remote_address, self.remote_port = host, int(port) if port.isdigit() else None
        self.clean_session = packet.clean_start
        self.keep_alive = packet.keep_alive
        self.ssl_object = PeerCertificate(connection.presented()[0])
        self.is_anonymous = False
        will = packet.will
        self.will_flag = will is not None
        self.will_topic = will.topic if will is not None else None
        self.will_message = will.payload if will is not None else None
        self.will_qos = int(will.qos) if will is not None else None
        self.will_retain = will.retain if will is not None else None
        self.describe(peer.identity, named, peer.serial)

    def describe(self, identity: Identity, named: str, serial: str = "") -> None:
        """Set the certificate's identity: *identity*, called *named*."""
        self.username = self._named = named
        self.attributes |= {
            "fleetgate.identity": identity.uri,
            "fleetgate.role": str(identity.role),
            "fleetgate.group": identity.group,
            "fleetgate.name": identity.name,
        }
        if serial:
            self.attributes["fleetgate.serial"] = serial

    def claim(self, packet: Connect) -> None:
        """Show user name and password of *packet*, for plugins that can check them."""
        if packet.username is not None:
            self.username = packet.username
        self.password = password_of(packet)

    def believe(self, *, claimed: bool) -> None:
        """Drop the password; restore the certificate's user name, unless a *claimed* one was checked."""
        self.password = None
        if not claimed or self.is_anonymous:
            self.username = self._named

    def resemble(self, newcomer: HostedSession) -> None:
        """Take over what plugins have stored in *newcomer* while they were asked about it."""
        self.username, self.is_anonymous = newcomer.username, newcomer.is_anonymous
        self.attributes |= newcomer.attributes


def password_of(packet: Connect) -> str | None:
    """Return the password of *packet* in amqtt's form."""
    return None if packet.password is None else packet.password.decode(errors="replace")


def described(session: Session, named: str, client_id: str) -> HostedSession:
    """Return a *session* that no plugin has seen, from before the broker's start; its owner is called *named*."""
    hosted = HostedSession()
    hosted.of = session
    hosted.client_id = client_id
    hosted.clean_session = not session.persistent
    hosted.describe(session.owner, named)
    return hosted
