"""Who is an operator at the admin port, for how long, and who of them may do more than read."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress

import httpx
import pytest
from cryptography import x509

from broker.admin import operator_door
from broker.admin.http_messages import Request, Response
from broker.admin.http_server import HttpServer
from broker.admin.operator_door import OperatorDoor, Operators
from broker.admission.bundle import TrustBundle
from broker.admission.inquiry import Inquiry
from broker.admission.issuers import Issuer
from broker.admission.refusal import RefusalCode, Refused, unauthorised
from broker.admission.trust import Trust
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from tests.support.pki import DOMAIN, Held, shared_device, shared_pki
from tests.support.wire import MemoryBroker
from tests.support.witness import Witness

PKI = shared_pki()
ANNA = PKI.certify(Identity(DOMAIN, Role.OPERATOR, "anna"))
URI = f"spiffe://{DOMAIN}/operator/anna"


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Elsewhere:
    """Where certificates are asked about: the answer comes when the test gives it, and is not kept."""

    def failing(self, _bundle: str) -> Collection[str]:
        return ()

    def __init__(self) -> None:
        self.asked: asyncio.Queue[Inquiry] = asyncio.Queue()

    def ask(self, _certificate: x509.Certificate, _issuer: Issuer, _refusal: Refused | None) -> Inquiry:
        inquiry = Inquiry()
        self.asked.put_nowait(inquiry)
        return inquiry


class Scene:
    def __init__(self) -> None:
        self.engine = MemoryBroker().engine
        self.admission = self.engine.admission
        self.admission.status.freshness.current(asyncio.get_running_loop().time())
        self.operators = Operators(self.engine)
        self.context = server_context(
            PKI.broker().credential, PKI.anchors, client_certificate=ClientCertificate.REQUIRED
        )
        self.door = OperatorDoor(
            HttpServer(self._answer, self.operators.identify, settle=self.operators.settle),
            self.operators,
            lambda: self.context,
        )

    async def _answer(self, request: Request) -> Response:
        return Response.json({"by": request.caller})

    @asynccontextmanager
    async def client(self, held: Held = ANNA) -> AsyncIterator[httpx.AsyncClient]:
        context = client_context(PKI.anchors, held.credential)
        async with httpx.AsyncClient(base_url=self.door.url, verify=context, trust_env=False, timeout=60) as client:
            yield client

    async def opened(self, held: Held) -> Streams:
        """Return a connection of *held* that is never replaced by another."""
        port = int(self.door.url.rpartition(":")[2])
        context = client_context(PKI.anchors, held.credential)
        return await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")


async def asked(connection: Streams) -> bytes:
    """Return the first line of the answer to a request over *connection*; empty if it has ended."""
    reader, writer = connection
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    line = await reader.readline()
    if line:
        await reader.readuntil(b"}\n")
    return line


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    scene.door.open("127.0.0.1", 0)
    yield scene
    await scene.door.close()


def told(answer: httpx.Response) -> tuple[int, str]:
    """Return the status, and who asked or why there is no answer."""
    content = answer.json()
    return answer.status_code, content.get("by") or content["code"]


@pytest.mark.parametrize(
    ("caller", "may"),
    [
        (f"spiffe://{DOMAIN}/operator/anna", True),
        (f"spiffe://{DOMAIN}/operator/night-shift/anna", True),
        (f"spiffe://{DOMAIN}/operator/bert", False),
        (f"spiffe://{DOMAIN}/operator/Anna", False),
        ("spiffe://plant-7.example/operator/anna", False),
    ],
)
def test_who_is_named_and_ours_may_change_something(caller: str, may: bool) -> None:
    engine = MemoryBroker().engine
    assert Operators(engine, ("anna",)).may_change(caller) is may
    assert not Operators(engine).may_change(caller)


async def test_who_is_refused_is_counted_and_recorded(scene: Scene) -> None:
    witness = scene.engine.history.witness = Witness()
    held = shared_device("meter-1")
    async with scene.client(held) as client:
        assert told(await client.get("/")) == (403, "WRONG_ROLE")
    assert scene.engine.metrics.refused == {"WRONG_ROLE": 1}
    assert b"127.0.0.1" not in scene.door._places.known
    ((event, facts),) = witness.said
    assert str(facts.pop("address")).startswith("127.0.0.1:")
    assert (event, facts) == (
        "operator refused",
        {
            "code": "WRONG_ROLE",
            "detail": "an operator's certificate is needed",
            "identity": f"spiffe://{DOMAIN}/device/meters/meter-1",
            "serial": f"{held.certificate.serial_number:x}",
        },
    )


async def test_an_operator_is_answered_until_revoked_on_the_same_connection(scene: Scene) -> None:
    async with scene.client() as client:
        for _ in range(2):
            assert told(await client.get("/")) == (200, URI)
        assert b"127.0.0.1" in scene.door._places.known, "so that strangers do not keep him out"
        scene.admission.status.index.add(ANNA.revocation)
        assert told(await client.get("/")) == (403, "REVOKED")


async def test_an_operator_begins_anew_when_the_anchors_are_others(scene: Scene) -> None:
    async with scene.client() as client:
        assert told(await client.get("/")) == (200, URI)
        scene.admission.believe(None)
        assert told(await client.get("/")) == (503, "TRUST_CHANGED")
        async with scene.client() as another:
            assert told(await another.get("/")) == (200, URI)


async def test_an_operator_whose_tls_session_is_resumed_all_the_same_is_not_answered(scene: Scene) -> None:
    """As where OpenSSL cannot be called directly: the context of this scene has other TLS objects."""
    operator = client_context(PKI.anchors, ANNA.credential)
    port = int(scene.door.url.rpartition(":")[2])

    def come(session: ssl.SSLSession | None) -> tuple[bytes, bool | None, ssl.SSLSession | None]:
        """Ask with *session*; return what is answered, whether it was resumed, and the next one."""
        answer = b""
        with (
            socket.create_connection(("127.0.0.1", port), 60) as plain,
            operator.wrap_socket(plain, server_hostname="localhost", session=session) as tls,
        ):
            with suppress(OSError):
                tls.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answer = b"".join(iter(functools.partial(tls.recv, 4096), b""))
            return answer, tls.session_reused, tls.session

    first, _, session = await asyncio.to_thread(come, None)
    assert first.startswith(b"HTTP/1.1 200 ")
    assert (await asyncio.to_thread(come, session))[:2] == (b"", True)
    again, _, _ = await asyncio.to_thread(come, None)
    assert again.startswith(b"HTTP/1.1 200 ")


async def test_while_revocations_may_be_missing_no_operator_is_answered(scene: Scene) -> None:
    scene.admission.status.freshness.slept(301.0)
    async with scene.client() as client:
        assert told(await client.get("/")) == (503, "REVOCATION_STATUS_UNKNOWN")


@pytest.mark.parametrize(
    ("refusal", "answer"),
    [(None, (200, URI)), (unauthorised(RefusalCode.REVOKED, "says its responder"), (403, "REVOKED"))],
    ids=["good", "revoked"],
)
async def test_what_is_asked_elsewhere_about_an_operator_is_waited_for(
    scene: Scene, refusal: Refused | None, answer: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator_door, "_STATUS_SECONDS", 600.0)  # Nothing but the answer ends the wait.
    asker = scene.admission.asker = Elsewhere()
    scene.admission.believe(Trust([TrustBundle("ours", [PKI.root.certificate])]))
    async with scene.client() as client:
        request = asyncio.create_task(client.get("/"))
        for _ in range(2):  # When the connection begins, and when the request is there.
            inquiry = await asker.asked.get()
            assert not request.done()
            inquiry.answer(refusal, 0.0)
        assert told(await request) == answer
        assert not (await asker.asked.get()).done, "the one of the verdict itself, which is not waited for"


async def test_an_operator_keeps_the_place_and_whoever_only_connects_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_door, "_PLACES", 8)
    scene = Scene()
    scene.door.open("127.0.0.1", 0)
    operator = await scene.opened(ANNA)
    assert (await asked(operator)).startswith(b"HTTP/1.1 200 ")
    devices = [await scene.opened(shared_device("meter-1")) for _ in range(8)]
    assert await devices[0][0].read() == b"", "its place was needed"
    assert (await asked(operator)).startswith(b"HTTP/1.1 200 ")
    for _, writer in (operator, *devices):
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()
    await scene.door.close()


async def test_an_operator_keeps_few_places_and_no_other_operator_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One address has half of the places: those of a machine through which both come, for example."""
    monkeypatch.setattr(operator_door, "_PLACES", 16)
    scene = Scene()
    scene.door.open("127.0.0.1", 0)
    hers = [await scene.opened(ANNA) for _ in range(8)]
    for _ in range(2):
        for each in hers:
            assert (await asked(each)).startswith(b"HTTP/1.1 200 "), "there is room"
    his = await scene.opened(shared_pki().certify(Identity(DOMAIN, Role.OPERATOR, "bert")))
    assert (await asked(his)).startswith(b"HTTP/1.1 200 ")
    assert await hers[4][0].read() == b"", "the first of those beyond four"
    hers[0][1].transport.abort()
    async with asyncio.timeout(30):
        while len(scene.door._operators._kept) == 5:
            await asyncio.sleep(0.01)
    assert (await asked(hers[5])).startswith(b"HTTP/1.1 200 "), "it keeps the place that the other one had"
    other = await scene.opened(ANNA)
    assert (await asked(other)).startswith(b"HTTP/1.1 200 ")
    another = await scene.opened(ANNA)
    assert await hers[6][0].read() == b"", "not the fifth: that is one of four now"
    for _, writer in (*hers, his, other, another):
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()
    await scene.door.close()


async def test_a_place_comes_back_whatever_becomes_of_the_connection(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, port = scene.door._places, int(scene.door.url.rpartition(":")[2])
    monkeypatch.setattr(operator_door, "_HANDSHAKE_SECONDS", 0.1)
    for said in (b"this is no TLS\r\n\r\n", b""):  # The latter is waited for until the time is up.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        async with asyncio.timeout(30):
            with suppress(OSError):
                await reader.read()
        writer.close()
    monkeypatch.undo()
    async with scene.client() as client:
        assert told(await client.get("/")) == (200, URI)
        assert len(places) == 1
    async with asyncio.timeout(30):
        while len(places):
            await asyncio.sleep(0.01)
    assert (places.lost, places.turned_away) == (0, 0)
