"""A device on a raw socket that speaks MQTT 5, with one flaw or with none. For `fleet-sim qualify`.

Arguments: flaw host port cafile crl cert key client_id topic commands est_url

Each flaw is one that devices in the field have. Without it (``none``) the device passes every line.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import select
import socket
import ssl
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID

from broker.mqtt.codes import ProtocolVersion, QoS
from broker.mqtt.framing import split_frames
from broker.mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    SubscriptionRequest,
    decode_packet,
)
from broker.mqtt.properties import Properties
from device_sim.backoff import Backoff
from provisioning.client.csr import build_csr
from provisioning.client.est import EnrolmentRefused, EnrolmentUnavailable, EstClient
from provisioning.pki.keys import PrivateKey, generate_key, key_to_pem, load_key
from provisioning.pki.stapling import ask_for_staple
from provisioning.pki.tls import CredentialFiles, client_context
from tests.support.devices.hand_enrolment import reenrol_by_hand
from tests.support.devices.staple_check import check_staple

V5 = ProtocolVersion.V5
BACKOFF = Backoff(base=0.3, cap=10.0)
PATIENCE = 1.5
KEEP_ALIVE = 2
EVERY = 0.15
AWAKE = 1.0
RENEW_AT = 0.8
NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME."""
LARGEST = 1 << 20
AT_SERVICE = "at-service-"
"""Flaws with the staple of the enrolment service begin so."""


class Device:
    """One device: connects, subscribes, publishes at QoS 1 and 2, reconnects; renews its certificate in time."""

    def __init__(self, flaw: str, host: str, port: str, cafile: str, crl: str, cert: str, key: str, name: str,
                 topic: str, commands: str, est: str) -> None:  # fmt: skip
        self.flaw, self.host, self.port, self.est = flaw, host, int(port), est
        self.cafile, self.crl, self.name, self.topic, self.commands = Path(cafile), crl, name, topic, commands
        self.files = CredentialFiles(Path(cert), Path(key))
        self.random = random.SystemRandom()
        self.attempt = 0
        self.unanswered: dict[int, Publish | Pubrel] = {}
        """What is under way, by packet identifier."""
        self.incoming: set[int] = set()
        self.number = 0
        self.count = 0
        self.client_id = "" if flaw in {"forgets-assigned-name", "none-named-by-broker"} else name
        self.aliases: dict[str, int] = {}
        self.subscribed = False
        self.tried = self.renewals = 0
        self.renewed_by: PrivateKey | None = None
        if flaw == "prints-key":
            sys.stderr.write(Path(key).read_text())
        if flaw == "prints-key-in-hexadecimal":
            private = load_key(Path(key))
            assert isinstance(private, ec.EllipticCurvePrivateKey)
            sys.stderr.write(f"debug: d={private.private_numbers().private_value:064x}\n")

    # TLS

    def context(self) -> ssl.SSLContext:
        flaw = self.flaw
        context = client_context(self.cafile, self.files)
        if flaw != "no-crl":
            context.load_verify_locations(self.crl)
            context.verify_flags |= (
                ssl.VERIFY_CRL_CHECK_LEAF if flaw == "crl-of-leaf-only" else ssl.VERIFY_CRL_CHECK_CHAIN
            )
        if flaw in {"any-server", "own-check-any-purpose", "own-check-any-key", "own-check-not-before"}:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if flaw == "any-name":
            context.check_hostname = False
        if flaw == "any-time":
            context.verify_flags = ssl.VerifyFlags(context.verify_flags | NO_CHECK_TIME)
        if flaw == "old-tls":
            context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            context.set_ciphers("ALL:@SECLEVEL=0")
        if flaw == "anonymous":
            context.minimum_version, context.check_hostname = ssl.TLSVersion.TLSv1_2, False
            context.set_ciphers("ALL:@SECLEVEL=0")
        if self.asks_for_staple:
            assert ask_for_staple(context)
        if flaw == "falls-back":
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.tried:
                context.maximum_version = ssl.TLSVersion.TLSv1_2
        if flaw == "shows-nothing":
            context = ssl.create_default_context(cafile=str(self.cafile))
        return context

    @property
    def asks_for_staple(self) -> bool:
        return self.flaw != "none-without-staple" and not (self.flaw == "asks-no-more" and self.tried)

    def checked(self, tls: ssl.SSLSocket) -> None:
        """Check the server's staple, and its certificate by hand, all but what the flaw leaves out; raise `OSError`."""
        asked = self.asks_for_staple and self.flaw not in {"ignores-staple", "shows-nothing", "anonymous", "any-server"}
        if asked and tls.version() != "TLSv1.1":
            check_staple(tls, x509.load_pem_x509_certificate(self.cafile.read_bytes()), self.flaw)
        if not self.flaw.startswith("own-check"):
            return
        certificate = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
        now = datetime.now(UTC)
        ca = x509.load_pem_x509_certificate(self.cafile.read_bytes())
        signed = True
        try:
            certificate.verify_directly_issued_by(ca)
        except (ValueError, TypeError, InvalidSignature):
            signed = False
        if self.flaw == "own-check-any-key" and certificate.issuer == certificate.subject:
            signed = True
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        for_servers = ExtendedKeyUsageOID.SERVER_AUTH in usage or self.flaw == "own-check-any-purpose"
        begun = certificate.not_valid_before_utc <= now or self.flaw == "own-check-not-before"
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        named = "localhost" in names.get_values_for_type(x509.DNSName)
        if not (signed and for_servers and begun and now <= certificate.not_valid_after_utc and named):
            raise ConnectionError("the server's certificate is wrong")

    # Its life

    def live(self) -> None:
        while True:
            if self.est and self._old() and self.flaw != "never-renews":
                asyncio.run(self._renewed())
            try:
                self._connect()
            except OSError as error:
                sys.stderr.write(f"not connected: {error}\n")
                if self.flaw == "does-without-tls":
                    self._without_tls()
            self.tried += 1
            if self.flaw == "gives-up":
                sys.exit(0)
            pause = BACKOFF.pause(self.attempt, self.random)
            time.sleep(0 if self.flaw == "no-pause" else 0.2 if self.flaw == "same-pause" else pause)
            self.attempt += 1

    def _connect(self) -> None:
        patience = 0.05 if self.flaw == "impatient" else 60.0 if self.flaw == "waits-for-ever" else PATIENCE
        with socket.create_connection((self.host, self.port), timeout=patience) as raw:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.context().wrap_socket(raw, server_hostname="localhost") as tls:
                self.checked(tls)
                Talk(self, tls, patience).run()

    def _without_tls(self) -> None:
        """Try again in the clear, as a device does that is "compatible" with everything."""
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), PATIENCE) as raw:
            raw.sendall(Connect(self.name, username=self.name, clean_start=False).encode(V5))
            raw.recv(1)

    # Renewal

    def _old(self) -> bool:
        certificate = x509.load_pem_x509_certificate(self.files.certificate.read_bytes())
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        return datetime.now(UTC) > certificate.not_valid_before_utc + RENEW_AT * life and self.renewed_by is None

    async def _renewed(self) -> None:
        certificate = x509.load_pem_x509_certificate(self.files.certificate.read_bytes())
        key = generate_key()
        csr = build_csr(key, self.name, certificate)
        for attempt in range(8):
            try:
                issued = await self._asked(csr)
            except (EnrolmentUnavailable, EnrolmentRefused) as error:
                sys.stderr.write(f"not renewed: {error}\n")
                asked_to_wait = 0 if self.flaw == "ignores-retry-after" else getattr(error, "retry_after", None) or 0
                if asked_to_wait == 0 and attempt:
                    return  # Later, with the certificate that it has.
                await asyncio.sleep(max(asked_to_wait, BACKOFF.pause(attempt, self.random)))
            else:
                self.renewed_by = key
                if self.flaw == "keeps-old-certificate":
                    return
                self.files.key.write_bytes(key_to_pem(key))
                self.files.certificate.write_bytes(issued.public_bytes(Encoding.PEM))
                if self.flaw == "key-for-everybody":
                    self.files.key.chmod(0o644)
                return

    async def _asked(self, csr: x509.CertificateSigningRequest) -> x509.Certificate:
        if self.flaw.startswith(AT_SERVICE):
            flaw = self.flaw.removeprefix(AT_SERVICE)
            self.renewals += 1
            asks = flaw != "none-without-staple" and not (flaw == "asks-no-more" and self.renewals > 1)
            try:
                return reenrol_by_hand(self.est, self.cafile, self.files, csr, flaw, asks=asks)
            except OSError as error:
                raise EnrolmentUnavailable(str(error), retry_after=0.3) from error
        if self.flaw not in {"any-service", "any-certificate", "renews-without-its-own"}:
            async with EstClient(self.est, self.cafile, self.files) as est:
                return await est.reenrol(csr)
        verify = ssl.create_default_context(cafile=str(self.cafile))
        if self.flaw != "renews-without-its-own":
            verify.load_cert_chain(self.files.certificate, self.files.key)
        if self.flaw == "any-service":
            verify.check_hostname, verify.verify_mode = False, ssl.CERT_NONE
        body = base64.b64encode(csr.public_bytes(Encoding.DER))
        try:
            async with httpx.AsyncClient(verify=verify) as client:
                answer = await client.post(f"{self.est}/.well-known/est/simplereenroll", content=body)
            der = base64.b64decode(answer.raise_for_status().content)
        except httpx.HTTPError as error:
            raise EnrolmentUnavailable(str(error)) from error
        return pkcs7.load_der_pkcs7_certificates(der)[0]


class Talk:
    """One connection."""

    def __init__(self, device: Device, tls: ssl.SSLSocket, patience: float) -> None:
        self.device, self.tls, self.flaw, self.patience = device, tls, device.flaw, patience
        self.buffer = b""
        self.connack: Connack | None = None
        self.asked = 60 if self.flaw == "ignores-keep-alive" else 1 if self.flaw == "never-listens" else KEEP_ALIVE
        self.alive = self.asked
        self.sent_at = self.said_at = self.heard_at = time.monotonic()
        self.aliases: dict[str, int] = device.aliases if self.flaw == "keeps-aliases" else {}
        self.limits = Properties()

    def send(self, packet: Packet) -> None:
        self.sent_at = time.monotonic()
        self.tls.sendall(packet.encode(V5))

    def run(self) -> None:
        device = self.device
        properties = Properties(session_expiry_interval=3600, topic_alias_maximum=4)
        self.tls.setblocking(True)
        self.tls.settimeout(self.patience)
        self.send(Connect(device.client_id, clean_start=False, keep_alive=self.asked, properties=properties))
        if self.flaw == "hurries":
            for _ in range(3):
                self._publish()
        began = time.monotonic()
        while True:
            for packet in self.received():
                if isinstance(packet, Disconnect):
                    return
                self.take(packet)
            now = time.monotonic()
            if self.flaw in {"sleeps", "sleeps-and-crashes-on-binary"} and now - began > AWAKE:
                self.send(Disconnect())
                return
            if self.connack is None:
                if now - began > self.patience:
                    raise TimeoutError("no CONNACK")
                continue
            self._work(now)

    def _work(self, now: float) -> None:
        if now - self.said_at > EVERY:
            self.said_at = now
            self._publish()
        # It pings when it has *heard* nothing: whoever only looks at what it sends never finds a dead broker.
        quiet = self.sent_at if self.flaw == "never-listens" else min(self.sent_at, self.heard_at)
        if self.alive and now - quiet > self.alive * 0.6:
            self.send(Pingreq())
            if self.flaw != "never-listens" and now - self.heard_at > self.alive * 1.2:
                raise TimeoutError("nothing was heard")
        if self.flaw == "sends-again-at-once":
            for packet in list(self.device.unanswered.values()):
                if isinstance(packet, Publish):
                    self.send(replace(packet, dup=True))

    def received(self) -> list[Packet]:
        if not self.tls.pending() and not select.select([self.tls], [], [], 0.03)[0]:
            return []
        data = self.tls.recv(65536)
        if not data:
            raise ConnectionError("closed")
        self.heard_at = time.monotonic()
        self.buffer += data
        frames, used = split_frames(self.buffer, LARGEST)
        packets = [decode_packet(first, self.buffer[start:end], V5) for first, start, end in frames]
        self.buffer = self.buffer[used:]
        return packets

    def take(self, packet: Packet) -> None:
        device = self.device
        match packet:
            case Connack(reason_code=code) if code.is_failure:
                if self.flaw == "crashes-on-rare-reason":
                    _ = {0x87: "not authorised", 0x89: "busy"}[int(code)]
                raise ConnectionRefusedError(f"refused: {code.name}")
            case Connack():
                self.admitted(packet)
            case Publish():
                self.taken(packet)
            case Pubrel(packet_id=number):
                if self.flaw != "no-pubcomp":
                    self.send(Pubcomp(number))
                device.incoming.discard(number)
            case Puback(packet_id=number) | Pubcomp(packet_id=number):
                device.unanswered.pop(number, None)
            case Pubrec(packet_id=number):
                if self.flaw == "publishes-after-pubrec":
                    self.send(Pubrel(number))
                else:
                    device.unanswered[number] = Pubrel(number)
                    self.send(Pubrel(number))
            case _:
                pass

    def taken(self, packet: Publish) -> None:
        if self.flaw in {"crashes-on-binary", "sleeps-and-crashes-on-binary"} and packet.payload:
            packet.payload.decode()
        if self.flaw == "leaves-on-empty" and not packet.payload:
            raise ConnectionError("an empty command")
        if packet.packet_id is None:
            return
        if packet.qos is QoS.AT_LEAST_ONCE or self.flaw == "puback-for-qos2":
            if self.flaw != "no-puback":
                self.send(Puback(packet.packet_id))
        else:
            self.device.incoming.add(packet.packet_id)
            self.send(Pubrec(packet.packet_id))

    def admitted(self, connack: Connack) -> None:
        device, told = self.device, connack.properties
        self.connack, self.limits = connack, told
        if told.server_keep_alive is not None and self.flaw != "ignores-keep-alive":
            self.alive = told.server_keep_alive
        if told.assigned_client_identifier and self.flaw != "forgets-assigned-name":
            device.client_id = told.assigned_client_identifier
        before, device.unanswered = device.unanswered, {}
        if self.flaw == "loses-unacknowledged":
            before = {}
        for number, packet in before.items():
            if isinstance(packet, Pubrel):
                device.unanswered[number] = packet
                self.send(packet)
            elif self.flaw == "new-identifier":
                self._say(replace(packet, packet_id=device.number + 1))
                device.number += 1
            else:
                self._say(replace(packet, dup=self.flaw != "no-dup", properties=Properties()))
        if self.flaw == "malformed":
            self.tls.sendall(b"\x80\x03\x00\x01\x00")
        subscribe = Subscribe(1, (SubscriptionRequest(device.commands, QoS.EXACTLY_ONCE),))
        knows_better = (self.flaw == "subscribes-once" and device.subscribed) or (
            self.flaw == "trusts-session" and connack.session_present
        )
        if self.fits(subscribe) and not knows_better:
            device.subscribed = True
            self.send(subscribe)

    def fits(self, packet: Packet) -> bool:
        most = self.limits.maximum_packet_size
        return most is None or self.flaw == "ignores-packet-size" or len(packet.encode(V5)) <= most

    def _publish(self) -> None:
        device = self.device
        most = self.limits.receive_maximum or 20
        if self.flaw in {"ignores-receive-maximum", "one-identifier"}:
            most = 20
        if len(device.unanswered) >= most:
            return
        device.count += 1
        if self.flaw == "one-identifier":
            device.number = 0
        device.number = device.number % 60000 + 1
        qos = QoS.EXACTLY_ONCE if device.count % 3 == 0 else QoS.AT_LEAST_ONCE
        self._say(Publish(device.topic, f"reading {device.count}".encode(), qos, packet_id=device.number))

    def _say(self, packet: Publish) -> None:
        if not self.fits(packet):
            return
        if packet.packet_id is not None:
            self.device.unanswered[packet.packet_id] = packet
        self.send(self.with_alias(packet))

    def with_alias(self, packet: Publish) -> Publish:
        allowed = self.limits.topic_alias_maximum or 0
        if self.flaw in {"aliases-unasked", "keeps-aliases"}:
            allowed = max(allowed, 1 if self.flaw == "aliases-unasked" or self.aliases else 0)
        alias = self.aliases.get(packet.topic)
        if alias is not None and allowed:
            return replace(packet, topic="", properties=Properties(topic_alias=alias))
        if len(self.aliases) < allowed:
            self.aliases[packet.topic] = alias = len(self.aliases) + 1
            return replace(packet, properties=Properties(topic_alias=alias))
        return packet


if __name__ == "__main__":
    Device(*sys.argv[1:]).live()
