"""The revocation feed, followed by curl -N: order, resumption, push, and its ends."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509

from provisioning.client.csr import build_csr
from provisioning.client.est import EstClient
from provisioning.client.feed_reader import Current, RevocationEvent
from provisioning.pki.keys import generate_key
from provisioning.revocation.subscribers import MOST_OF_ONE
from tests.support.curl import Curl
from tests.support.feed_events import follow
from tests.support.openssl import OpensslDevice
from tests.support.provisioning import ProvisioningService

ON_BOTH_STORES = True

FEED = "/v1/revocations/feed"
A_MINUTE = timedelta(minutes=1)


class Follower:
    """curl -N on the feed, read event by event."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._buffer = b""
        self.authorities: list[dict[str, Any]] = []
        self.elapsed: list[float] = []

    def next_event(self, seconds: float = 60) -> tuple[str, dict[str, Any]]:
        """Return the next event's name and data, without its times; those about CAs are kept in `authorities`."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n\n" not in self._buffer:
            readable, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, "no event"
            chunk = os.read(self.process.stdout.fileno(), 65536)
            if not chunk:
                raise EOFError
            self._buffer += chunk
        block, _, self._buffer = self._buffer.partition(b"\n\n")
        fields = dict(line.split(": ", 1) for line in block.decode().split("\n"))
        data = json.loads(fields["data"])
        if fields["event"] == "authorities":
            self.authorities.append(data)
            return self.next_event(seconds)
        if fields["event"] == "current":
            self.elapsed.append(data.pop("elapsed"))
            assert abs(datetime.fromisoformat(data.pop("now")) - datetime.now(UTC)) < A_MINUTE
        assert fields["event"] == "current" or fields["id"] == str(data["sequence"])
        return fields["event"], data

    def read_to_end(self) -> None:
        """Read whatever still comes, until the service ends the stream."""
        with contextlib.suppress(EOFError):
            while True:
                self.next_event()

    def revoked(self, number: int) -> list[dict[str, Any]]:
        """Return the next *number* revocations, skipping heartbeats."""
        found: list[dict[str, Any]] = []
        while len(found) < number:
            event, data = self.next_event()
            if event == "revoked":
                found.append(data)
        return found


@contextlib.contextmanager
def following(curl: Curl, query: str = "", *options: str) -> Iterator[Follower]:
    line = curl.arguments(FEED + query, "--no-buffer", *options)
    with subprocess.Popen(line, stdout=subprocess.PIPE) as process:
        try:
            yield Follower(process)
        finally:
            process.kill()


async def enrol(service: ProvisioningService, names: list[str]) -> None:
    tokens = await asyncio.to_thread(service.tokens, devices=names)
    key = [generate_key() for _ in names]
    async with EstClient(service.https, service.bundle) as client:
        await asyncio.gather(
            *(
                client.enrol(build_csr(key[index], name), user=name, token=tokens[index])
                for index, name in enumerate(names)
            )
        )


def newest(operator: Curl) -> int:
    return int(json.loads(operator.run("/v1/status").body)["feed"]["sequence"])


def names_for(tmp_path: Path, number: int) -> list[str]:
    return [
        f"feed-{tmp_path.parent.name[-4:]}-{tmp_path.name[-12:]}-{index}".replace("_", "-") for index in range(number)
    ]


async def test_events_come_in_commit_order_without_a_gap_and_resume_after_any_of_them(
    own_service: ProvisioningService, tmp_path: Path
) -> None:
    service, operator = own_service, Curl(own_service.https, own_service.bundle, own_service.operator)
    names = names_for(tmp_path, 12)
    await enrol(service, names)
    with following(operator, "?after=0") as live:
        assert live.next_event() == ("current", {"sequence": 0})
        with service.api() as api:
            for name in names[:6]:
                api.post("/v1/revocations", json={"device": name, "reason": "superseded"})
        await asyncio.gather(*(asyncio.to_thread(service.revoke, device=name) for name in names[6:]))
        events = live.revoked(12)
    assert [event["sequence"] for event in events] == list(range(1, 13))
    assert [event["device"] for event in events[:6]] == names[:6]
    assert {event["device"] for event in events} == set(names)
    assert events[0]["reason"] == "superseded"
    certificates = {
        each["serial"]: each for each in json.loads(operator.run("/v1/certificates?limit=50").body)["items"]
    }
    for event in events:
        stored = certificates[event["serial"]]
        assert (stored["device"], stored["sequence"]) == (event["device"], event["sequence"])
        assert (stored["issuer_key_id"], stored["revoked_at"]) == (event["issuer_key_id"], event["revoked_at"])
    for query, options in (("?after=7", ()), ("", ("--header", "Last-Event-ID: 7"))):
        with following(operator, query, *options) as resumed:
            assert [event["sequence"] for event in resumed.revoked(5)] == [8, 9, 10, 11, 12]
            assert resumed.next_event() == ("current", {"sequence": 12})
    service.stop()
    service.start()
    with following(Curl(service.https, service.bundle, service.operator), "?after=11") as after_restart:
        assert after_restart.revoked(1) == events[11:]


async def test_a_revocation_is_pushed_at_once_and_a_heartbeat_tells_the_newest_number(
    service: ProvisioningService, operator: Curl, tmp_path: Path
) -> None:
    names = names_for(tmp_path, 8)
    await enrol(service, names)
    start = newest(operator)
    head = operator.run(FEED, "--head")
    assert (head.status, head.headers.get_content_type(), head.body) == (200, "text/event-stream", b"")
    with following(operator, f"?after={start}") as live:
        assert live.next_event()[0] == "current"
        assert live.next_event()[0] == "current"  # A heartbeat: nothing has happened.
        took = []
        for name in names:  # What is told by heartbeats begins, from the second on, just after one.
            begun = time.monotonic()
            await asyncio.to_thread(service.revoke, device=name)
            (event,) = live.revoked(1)
            took.append(time.monotonic() - begun)
            assert event["device"] == name
        assert min(took[1:]) < 0.5, "later than half a heartbeat, each of them: they are not pushed"


async def test_our_own_client_follows_a_burst(service: ProvisioningService, operator: Curl, tmp_path: Path) -> None:
    names = names_for(tmp_path, 20)
    await enrol(service, names)
    start = newest(operator)
    seen: list[str] = []
    async with contextlib.aclosing(follow(service.https, service.bundle, service.operator, start, heartbeat=1)) as feed:
        assert await anext(feed) == Current(start)
        revocations = asyncio.gather(*(asyncio.to_thread(service.revoke, device=name) for name in names))
        async for event in feed:
            if isinstance(event, RevocationEvent):
                seen.append(event.device)
            if set(names) <= set(seen):
                break
        await revocations


def test_the_issuing_cas_are_told_and_only_a_broker_says_which_it_knows(
    service: ProvisioningService, stranger: Curl, device: OpensslDevice
) -> None:
    path = f"{FEED}/authorities"
    broker = enrolled_broker(service, stranger, device)
    with following(broker) as follower:
        while not follower.authorities:
            follower.next_event()
    (issuing,) = follower.authorities[0]["issuing"]
    assert (issuing["name"], issuing["line"], issuing["state"]) == ("issuing-ca", "default", "active")
    der = base64.b64decode(issuing["certificate"])
    assert "CN=Fleetgate issuing CA" in x509.load_der_x509_certificate(der).subject.rfc4514_string()

    json_body = ("--request", "PUT", "--header", "Content-Type: application/json", "--data")
    said = json.dumps({"known": {"issuing-ca": False, "of-nobody": True}})
    assert broker.run(path, *json_body, said).status == 204
    with service.api() as api:
        told = api.get("/v1/status").json()["unknown_authorities"]
        refused = api.put(path, json={"known": {}})
        assert (refused.status_code, refused.json()["code"]) == (403, "ROLE")
    assert [(each["broker"], each["authority"], each["state"]) for each in told] == [
        (device.name, "issuing-ca", "active")
    ]
    assert stranger.run(path, *json_body, said).status == 403
    for wrong in ("{", "{}", '{"known": ["issuing-ca"]}', '{"known": {"a": "maybe"}}', '{"known": {}, "more": 1}'):
        assert broker.run(path, *json_body, wrong).status == 400, wrong
    assert broker.run(path, *json_body, json.dumps({"known": {"issuing-ca": True}})).status == 204
    with service.api() as api:
        assert api.get("/v1/status").json()["unknown_authorities"] == []


def enrolled_broker(service: ProvisioningService, stranger: Curl, device: OpensslDevice) -> Curl:
    token = service.token(device=device.name, role="broker")
    answer = stranger.est("simpleenroll", device.request(), "--user", f"{device.name}:{token}")
    device.take(answer.body)
    return Curl(service.https, service.bundle, device.credential)


def test_the_feed_ends_with_the_follower_s_own_revocation(
    service: ProvisioningService, stranger: Curl, device: OpensslDevice
) -> None:
    broker = enrolled_broker(service, stranger, device)
    with following(broker) as live:
        while live.next_event()[0] != "current":
            pass
        service.revoke(device=device.name)
        (event,) = live.revoked(1)
        assert event["device"] == device.name
        live.read_to_end()
        assert live.process.wait(timeout=20) == 0
    refused = broker.run(FEED)
    assert refused.status == 403
    assert '"code":"CERTIFICATE_REVOKED"' in refused.text


def test_a_follower_who_was_suspended_and_resumed_reads_its_history_in_one_go(
    service: ProvisioningService, stranger: Curl, device: OpensslDevice
) -> None:
    broker = enrolled_broker(service, stranger, device)
    with service.api() as api:
        for path in ("/v1/suspensions", "/v1/resumptions"):
            assert api.post(path, json={"device": device.name}).status_code == 201
    with following(broker) as live:
        own: list[str] = []
        is_current = False
        while not is_current or len(own) < 2:  # A busy service may announce the second when the history has been read.
            event, facts = live.next_event()
            is_current |= event == "current"
            if facts.get("device") == device.name:
                own.append(event)
        assert own == ["revoked", "released"], "what is over ends nothing"
        service.revoke(device=device.name)
        (told,) = live.revoked(1)
        assert told["device"] == device.name
        live.read_to_end()
        assert live.process.wait(timeout=20) == 0, "what is new ends it"


async def test_of_too_many_brokers_under_one_name_the_last_is_told_and_the_others_go_on(
    service: ProvisioningService, stranger: Curl, tmp_path: Path
) -> None:
    (victim,) = names = names_for(tmp_path, 1)
    await enrol(service, names)
    broker = enrolled_broker(
        service, stranger, OpensslDevice(tmp_path, f"many-{tmp_path.name[-12:]}".replace("_", "-"))
    )
    start = newest(Curl(service.https, service.bundle, service.operator))
    with contextlib.ExitStack() as stack:
        followers = [
            stack.enter_context(following(broker, f"?after={start}", "--interface", f"127.0.0.{2 + number}"))
            for number in range(MOST_OF_ONE)
        ]
        for each in followers:
            each.next_event()
        answer = await asyncio.to_thread(broker.run, f"{FEED}?after={start}", "--interface", "127.0.0.99")
        problem = json.loads(answer.body)
        assert (answer.status, problem["code"]) == (429, "FEED_CROWDED")
        assert "give each broker a name of its own" in problem["detail"]
        await asyncio.to_thread(service.revoke, device=victim)
        for each in followers:
            assert each.revoked(1)[0]["device"] == victim
