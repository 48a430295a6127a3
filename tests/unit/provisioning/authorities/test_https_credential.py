"""The HTTPS server's certificate is replaced while it serves: old connections go on, new ones see the new one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from structlog.testing import capture_logs

from provisioning.api.application import new_application
from provisioning.api.health import health_routes
from provisioning.api.metrics import Metrics
from provisioning.authorities import https_credential
from provisioning.authorities.https_credential import HttpsCredential
from provisioning.authorities.own_credentials import OwnCredentials
from provisioning.ca.issuer import Issuer
from provisioning.ca.ocsp import Failure, OcspRefused
from provisioning.ca.profile import Profile, ProfileConfig, ProfileName, profile_of
from provisioning.config import Settings
from provisioning.connections.http_listener import http_listener
from provisioning.connections.peer_certificate_protocol import PeerCertificateProtocol
from provisioning.connections.places import Places
from provisioning.directory.files import SERVER, AuthorityFiles
from provisioning.errors import ConfigurationError
from provisioning.pki import openssl
from provisioning.pki.stapling import ask_for_staple, staple_in
from provisioning.pki.tls import Credential, client_context
from provisioning.revocation.ocsp import OcspAnswer
from tests.support.fleet import Fleet
from tests.support.key_updates import change_keys
from tests.support.pki import Pki, pem_of, shared_pki

LIFE = timedelta(days=90)


async def nothing_known(_question: bytes) -> OcspAnswer:
    raise OcspRefused(Failure.TRY_LATER, "no signer here")


@pytest.fixture
async def credential(fleet: Fleet, tmp_path: Path) -> HttpsCredential:
    files = AuthorityFiles(tmp_path)
    profiles: dict[str, Profile] = {name: profile_of(ProfileConfig(name, LIFE)) for name in ProfileName}

    def own(issuer: Issuer) -> OwnCredentials:
        return OwnCredentials(
            files, issuer, fleet.database, fleet.serial_numbers, profiles, "fleet.internal", fleet.clock
        )

    await own(fleet.issuer).issue_first(["localhost", "127.0.0.1"])
    made = HttpsCredential(files, own, nothing_known)
    made.trust([fleet.authority.root_ca.certificate, fleet.authority.issuing_ca.certificate])
    await made.issue_with(fleet.issuer)
    return made


@contextlib.asynccontextmanager
async def serving(credential: HttpsCredential) -> AsyncIterator[int]:
    """Serve over TLS as the service does; return the port."""
    app = new_application(Settings(), Metrics(), port="https", routes=health_routes({}))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listener = http_listener(app, PeerCertificateProtocol, credential.context, Places(100))
        task = asyncio.create_task(listener.serve(sockets=[listening]))
        await listener.accepting.wait()
        try:
            yield listening.getsockname()[1]
        finally:
            listener.stop()
            await task


def trusting(fleet: Fleet, credential: Credential | None = None) -> ssl.SSLContext:
    """Return a client's context. OpenSSL asks the machine's clock, which is not the test's, so it verifies nothing."""
    context = client_context(pem_of(fleet.authority.root_ca.certificate).decode(), credential)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Client:
    """One connection that is kept."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, port: int, context: ssl.SSLContext) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost"))

    @property
    def shown(self) -> x509.Certificate:
        tls: ssl.SSLObject = self._writer.get_extra_info("ssl_object")
        der = tls.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der)

    @property
    def staple(self) -> bytes:
        return staple_in(self._writer.get_extra_info("ssl_object"))

    async def status(self) -> bytes:
        self._writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = await self._reader.readuntil(b"\r\n\r\n")
        await self._reader.readuntil(b"}")
        return head.split()[1]

    def change_keys(self, times: int) -> None:
        """Send so many KeyUpdate messages, with what is sent next."""
        change_keys(self._writer.get_extra_info("ssl_object"), times)

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            await self._writer.wait_closed()


async def test_a_renewed_certificate_is_shown_to_new_connections_and_disturbs_no_old_one(
    fleet: Fleet, credential: HttpsCredential
) -> None:
    async with serving(credential) as port:
        context = trusting(fleet)
        old = await Client.connect(port, context)
        assert await old.status() == b"200"
        assert not await credential.check()
        fleet.clock.advance(LIFE * 2 / 3)
        assert await credential.check()
        new = await Client.connect(port, context)
        assert (await old.status(), await new.status()) == (b"200", b"200")
        assert old.shown.public_key() != new.shown.public_key()
        assert new.shown.not_valid_after_utc == fleet.clock() + LIFE
        await old.close()
        await new.close()


async def test_what_ocsp_says_of_it_goes_with_it_through_each_change(fleet: Fleet, credential: HttpsCredential) -> None:
    """The test's answer names the serial number that was asked about; whether one is there, is the test's to say.

    From 3.6 on OpenSSL sends what is a response and names its certificate's, whoever has signed it.
    """
    answering, signer = True, shared_pki().issuing

    async def answer(question: bytes) -> OcspAnswer:
        if not answering:
            raise OcspRefused(Failure.TRY_LATER, "the CA's key is away")
        now = datetime.now(UTC)  # Which the handshake asks for, too.
        asked = ocsp.load_der_ocsp_request(question)
        response = (
            ocsp.OCSPResponseBuilder()
            .add_response_by_hash(
                asked.issuer_name_hash, asked.issuer_key_hash, asked.serial_number, asked.hash_algorithm,
                ocsp.OCSPCertStatus.GOOD, now, now + timedelta(hours=1), None, None,
            )
            .responder_id(ocsp.OCSPResponderEncoding.NAME, signer.certificate)
            .sign(signer.key, hashes.SHA256())
        )  # fmt: skip
        return OcspAnswer(response.public_bytes(Encoding.DER), now, now + timedelta(hours=1), None, b"")

    made = HttpsCredential(credential._files, credential._credentials_for, answer)
    made.trust(credential._anchors)
    await made.issue_with(fleet.issuer)
    asking = trusting(fleet)
    assert ask_for_staple(asking)

    async def shown(port: int) -> tuple[int | None, int]:
        client = await Client.connect(port, asking)
        await client.close()
        named = ocsp.load_der_ocsp_response(client.staple).serial_number if client.staple else None
        return named, client.shown.serial_number

    async with serving(made) as port:
        first, serial = await shown(port)
        assert first == serial
        made.let_through([])
        assert await shown(port) == (first, serial), "a context with other anchors has it at once"
        answering = False
        with capture_logs() as logs:
            for _ in range(2):
                await made.staple()
        assert [each["code"] for each in logs] == ["STAPLE_FAILED"], "said once"
        assert await shown(port) == (first, serial), "what was said before is good until it ends"
        fleet.clock.advance(LIFE * 2 / 3)
        assert await made.check()
        renewed, serial = await shown(port)
        assert renewed is None, "what was said of another certificate is not said of this one"
        answering = True
        with capture_logs() as logs:
            for _ in range(2):
                await made.staple()
        assert [each["code"] for each in logs] == ["STAPLED"], "and when it is over"
        assert await shown(port) == (serial, serial)
        plain = await Client.connect(port, trusting(fleet))
        assert plain.staple == b"", "nobody gets one who has not asked"
        await plain.close()


async def test_what_another_process_has_renewed_is_shown_too(fleet: Fleet, credential: HttpsCredential) -> None:
    other = HttpsCredential(credential._files, credential._credentials_for, nothing_known)
    other.trust(credential._anchors)
    await other.issue_with(fleet.issuer)
    async with serving(credential) as port:
        fleet.clock.advance(LIFE * 2 / 3)
        assert await other.check()
        assert not await credential.check()
        client = await Client.connect(port, trusting(fleet))
        assert client.shown.not_valid_after_utc == fleet.clock() + LIFE
        await client.close()


async def test_files_that_cannot_be_read_for_a_while_end_no_service(
    credential: HttpsCredential, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_LONGEST_WAIT_SECONDS", "_SHORTEST_WAIT_SECONDS", "_RETRY_SECONDS"):
        monkeypatch.setattr(https_credential, name, 0.01)
    path = AuthorityFiles(tmp_path).certificate(SERVER)
    content = path.read_bytes()
    with capture_logs() as logs:
        running = asyncio.create_task(credential.run())
        path.unlink()
        path.symlink_to(path.name)
        async with asyncio.timeout(60):
            while len(logs) < 4:
                await asyncio.sleep(0.01)
        path.unlink()
        path.write_bytes(content)
        said = len(logs)
        await credential.check()
        await asyncio.sleep(0.05)
        assert not running.done()
        assert len(logs) <= said + 1, "it had begun one more"
        running.cancel()
    assert {each["code"] for each in logs} == {"RENEWAL_FAILED"}
    assert f"{path} cannot be read" in logs[0]["detail"]
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_bundle_that_cannot_be_read_is_written_again(
    fleet: Fleet, credential: HttpsCredential, tmp_path: Path
) -> None:
    bundle = AuthorityFiles(tmp_path).bundle
    before = bundle.read_bytes()
    bundle.unlink()
    bundle.symlink_to(bundle.name)
    credential.trust([fleet.authority.root_ca.certificate, fleet.authority.issuing_ca.certificate])
    assert bundle.read_bytes() == before


async def test_a_certificate_that_cannot_be_read_is_named(credential: HttpsCredential, tmp_path: Path) -> None:
    """As a service says it that starts: the kernel's error alone has no name in it."""
    path = AuthorityFiles(tmp_path).certificate(SERVER)
    path.unlink()
    path.symlink_to(path.name)
    for read in (credential.check(), asyncio.to_thread(credential.signer)):
        with pytest.raises(ConfigurationError, match=str(path)):
            await read


async def test_of_several_workers_one_keeps_the_files_and_the_others_show_what_they_find(
    fleet: Fleet, credential: HttpsCredential
) -> None:
    files = credential._files
    other = HttpsCredential(files, credential._credentials_for, nothing_known, keeps=False)
    other.trust(credential._anchors[:1])
    await other.issue_with(fleet.issuer)
    assert len(x509.load_pem_x509_certificates(files.bundle.read_bytes())) == 2
    async with serving(other) as port:
        fleet.clock.advance(LIFE * 2 / 3)
        before = files.certificate(SERVER).read_bytes()
        assert not await other.check()
        assert files.certificate(SERVER).read_bytes() == before
        assert await credential.check()
        assert not await other.check()
        client = await Client.connect(port, trusting(fleet))
        assert client.shown.not_valid_after_utc == fleet.clock() + LIFE
        await client.close()


async def test_whoever_reads_key_and_certificate_while_they_are_renewed_gets_two_that_fit(
    fleet: Fleet, credential: HttpsCredential
) -> None:
    """The reader has a thread, as other workers have processes: each read locks the directory by itself."""
    stop = threading.Event()

    def read() -> int:
        found = set()
        while not stop.is_set():
            signer = credential.signer()
            assert signer.key.public_key() == signer.certificates[0].public_key()
            found.add(signer.certificates[0].serial_number)
        return len(found)

    reading = asyncio.create_task(asyncio.to_thread(read))
    for _ in range(25):  # The CA lives on: what ends with it is not renewed.
        fleet.clock.advance(LIFE * 2 / 3)
        assert await credential.check()
    stop.set()
    assert await reading > 1


async def test_trust_that_changes_counts_for_new_connections(fleet: Fleet, credential: HttpsCredential) -> None:
    pki = Pki()
    held = pki.device("meter-1")

    async def attempt(port: int) -> bool:
        client = await Client.connect(port, trusting(fleet, held.credential))
        try:
            await client.status()
        except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
            return False
        finally:
            await client.close()
        return True

    async with serving(credential) as port:
        assert not await attempt(port)
        credential.trust([fleet.authority.root_ca.certificate, pki.issuing.certificate])
        assert await attempt(port)
        credential.trust([fleet.authority.root_ca.certificate])
        assert not await attempt(port)


async def test_trust_that_changes_counts_though_the_bundle_cannot_be_written_which_is_done_later(
    fleet: Fleet, credential: HttpsCredential, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may be full when a CA was revoked, and its successor has to issue."""
    another, bundle = Pki().issuing.certificate, credential._files.bundle
    before = bundle.read_bytes()

    def fail(path: Path, _content: bytes) -> None:
        raise ConfigurationError(f"{path} cannot be written: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(https_credential, "replace_file", fail)
        with capture_logs() as logs:
            credential.trust([fleet.authority.root_ca.certificate, another])
    assert [each["code"] for each in logs] == ["BUNDLE_NOT_WRITTEN"]
    trusted = credential.context.current.get_ca_certs(binary_form=True)
    assert another.public_bytes(Encoding.DER) in trusted
    assert bundle.read_bytes() == before
    monkeypatch.setattr(https_credential, "_LONGEST_WAIT_SECONDS", 0.01)
    running = asyncio.create_task(credential.run())
    async with asyncio.timeout(60):
        while bundle.read_bytes() == before:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert bundle.read_bytes() == pem_of(fleet.authority.root_ca.certificate, another)


async def test_a_bundle_that_a_command_has_written_meanwhile_is_not_undone(
    fleet: Fleet, credential: HttpsCredential, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the CAs as they are; the service learns of them within a heartbeat."""
    bundle, newer = credential._files.bundle, pem_of(fleet.authority.root_ca.certificate)
    credential.trust([fleet.authority.root_ca.certificate, Pki().issuing.certificate])
    bundle.write_bytes(newer)
    checked = asyncio.Event()

    async def check() -> bool:
        checked.set()
        return False

    monkeypatch.setattr(credential, "check", check)
    monkeypatch.setattr(https_credential, "_LONGEST_WAIT_SECONDS", 0.01)
    running = asyncio.create_task(credential.run())
    async with asyncio.timeout(60):
        await checked.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert bundle.read_bytes() == newer


async def test_another_ca_that_issues_issues_the_server_s_certificate_too(
    fleet: Fleet, credential: HttpsCredential
) -> None:
    pki = Pki(fleet.clock())
    await credential.issue_with(Issuer(pki.issuing.certificate, pki.issuing.key))
    path = credential._files.certificate("server")
    shown = x509.load_pem_x509_certificate(path.read_bytes())
    assert shown.issuer == pki.issuing.certificate.subject
    assert not await credential.check()


async def test_a_client_may_change_its_keys_now_and_then_and_not_for_ever(
    fleet: Fleet, credential: HttpsCredential
) -> None:
    """Whatever comes in one read is acted on before anybody else is served: 10,000 such messages in 256 KB."""
    if not openssl.AVAILABLE:
        pytest.skip("of such messages only OpenSSL itself could tell")
    async with serving(credential) as port:
        for times in (10, 1000, 10):
            client = await Client.connect(port, trusting(fleet))
            assert await client.status() == b"200"
            client.change_keys(times)
            if times == 10:
                assert await client.status() == b"200"
            else:
                with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                    await client.status()
            await client.close()
