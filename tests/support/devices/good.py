"""A good device: paho-mqtt and the parts of this product that a device may use. For `fleet-sim qualify`.

Arguments: host port cafile crl cert key client_id topic est_url
"""

from __future__ import annotations

import asyncio
import random
import ssl
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from device_sim.backoff import Backoff
from provisioning.client.csr import build_csr
from provisioning.client.est import EnrolmentRefused, EnrolmentUnavailable, EstClient
from provisioning.pki.keys import generate_key, key_to_pem
from provisioning.pki.tls import CredentialFiles, client_context

BACKOFF = Backoff(base=0.6, cap=30.0)
PATIENCE = 1.5
STABLE = 10.0
RENEW_AT = 0.8


class Device:
    """One device: connects, publishes, reconnects; renews its certificate in time."""

    def __init__(
        self, host: str, port: str, cafile: str, crl: str, cert: str, key: str, name: str, topic: str, est: str
    ) -> None:
        self.host, self.port, self.topic, self.est = host, int(port), topic, est
        self.cafile, self.crl, self.name = Path(cafile), crl, name
        self.files = CredentialFiles(Path(cert), Path(key))
        self.connected = False
        self.attempt = 0
        self.random = random.SystemRandom()
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTProtocolVersion.MQTTv311, clean_session=False
        )
        self.client.on_connect = lambda _c, _u, _f, reason, _p: self._answered(reason.is_failure)
        self.client.connect_timeout = PATIENCE
        self.context = client_context(self.cafile, self.files)
        self.context.load_verify_locations(crl)
        self.context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
        self.client.tls_set_context(self.context)

    def _answered(self, refused: bool) -> None:
        self.connected = not refused

    def live(self) -> None:
        while True:
            if self.est and self._old():
                asyncio.run(self._renewed())
            began = time.monotonic()
            try:
                self.client.connect(self.host, self.port, keepalive=1)
                self._talk()
            except OSError as error:
                sys.stderr.write(f"not connected: {error}\n")
            self.connected = False
            if time.monotonic() - began > STABLE:
                self.attempt = 0
            time.sleep(BACKOFF.pause(self.attempt, self.random))
            self.attempt += 1

    def _talk(self) -> None:
        began, sent = time.monotonic(), 0.0
        while self.client.loop(0.05) == mqtt.MQTT_ERR_SUCCESS:
            now = time.monotonic()
            if not self.connected and now - began > PATIENCE + 1.0:
                raise TimeoutError("no CONNACK")
            if self.connected and now - sent > 0.5:
                self.client.publish(self.topic, f"reading {now}", qos=1)
                sent = now

    def _old(self) -> bool:
        certificate = x509.load_pem_x509_certificate(self.files.certificate.read_bytes())
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        return datetime.now(UTC) > certificate.not_valid_before_utc + RENEW_AT * life

    async def _renewed(self) -> None:
        certificate = x509.load_pem_x509_certificate(self.files.certificate.read_bytes())
        key = generate_key()
        for attempt in range(3):  # Then with the certificate that it has, and later again.
            try:
                async with EstClient(self.est, self.cafile, self.files) as est:
                    issued = await est.reenrol(build_csr(key, self.name, certificate))
            except (EnrolmentUnavailable, EnrolmentRefused) as error:
                sys.stderr.write(f"not renewed: {error}\n")
                await asyncio.sleep(max(getattr(error, "retry_after", None) or 0, BACKOFF.pause(attempt, self.random)))
            else:
                self.files.certificate.write_bytes(issued.public_bytes(Encoding.PEM))
                self.files.key.write_bytes(key_to_pem(key))
                self.context.load_cert_chain(self.files.certificate, self.files.key)
                return


if __name__ == "__main__":
    Device(*sys.argv[1:]).live()
