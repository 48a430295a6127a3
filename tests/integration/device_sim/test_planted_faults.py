"""Our own broker and service with faults in their source: each is found by the case that was made for it.

Several faults are planted in one run, in different places, so that one start of both programs tries many. Nearly all
of them passed before these cases were made (docs/decisions/0222-planted-faults-in-devices.md). The programs are forked
with the imports done that are not ours, a service without a fault with all of them; a broker that is killed or measured
is started afresh.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import pytest

from device_sim.attack import fleetgate_target, run, scene
from device_sim.attack.case import Case
from device_sim.attack.catalogue import CATALOGUE, WEBSOCKET, pick
from device_sim.attack.delivery_list import OWED
from device_sim.attack.fleetgate_target import fleetgate
from device_sim.attack.revocation_list import chapter
from device_sim.attack.verdict import Outcome, Verdict
from device_sim.stage import processes
from tests.support import planting
from tests.support.planted_chains import ABOVE_IT_NOTHING, ANY_NAME, BELIEVED
from tests.support.planted_cves import COSTLY, GRANTED, LEFT_BEHIND, LENIENT, OVERRUN, PREFIXES
from tests.support.planted_doors import AT_THE_OTHER_LISTENER, FOR_ANOTHER, NEVER_RELEASED, STAPLED
from tests.support.planting import Fault
from tests.support.programs import REPOSITORY, forking_python

ENFORCEMENT = "broker/revocation/enforcement.py"
ENGINE = "broker/engine/engine.py"
JOURNAL = "broker/store/journal.py"
CONNECT = "broker/connection/connect_handler.py"
ADMISSION = "broker/admission/admission.py"
CONNECTION = "broker/connection/connection.py"

LATE: Fault = (
    ENFORCEMENT,
    "        _put_out(engine, connection, refusal, now)\n    return len(connections)",
    (
        "        import asyncio\n"
        "        asyncio.get_running_loop().call_later(\n"
        "            1.0, lambda c=connection: (_put_out(engine, c, refusal, now), engine.turn.request())\n"
        "        )\n"
        "    return len(connections)"
    ),
)
ONLY_THE_FIRST: Fault = (
    ENFORCEMENT,
    "    connections = engine.live.of(revocation.key)\n",
    "    connections = engine.live.of(revocation.key)[:1]\n",
)
SESSION_STAYS: Fault = (
    ENFORCEMENT,
    "    if engine.admission.status.is_ended(peer.certificate):",
    "    if False:",
)
TAKES_OVER_UNJUDGED: Fault = (
    CONNECT,
    "    refusal = connection.refusal or _unsupported",
    (
        "    for other in engine.connections() if connection.refusal is not None else ():\n"
        "        if other.session is not None and other.session.client_id == packet.client_id:\n"
        '            other.disconnect("SESSION_TAKEN_OVER", ReasonCode.SESSION_TAKEN_OVER, "taken over", now)\n'
        "    refusal = connection.refusal or _unsupported"
    ),
)
ADMITTED_AT_ITS_SESSION: Sequence[Fault] = (
    (
        ADMISSION,
        "        return self.status.refuse_revoked(peer)\n\n    def is_revoked",
        "        return None\n\n    def is_revoked",
    ),
    (
        ADMISSION,
        "        refusal = self.refuse_now(peer, now)\n        if refusal is not None:\n",
        "        refusal = self.refuse_now(peer, now)\n        if refusal is not None and connect.clean_start:\n",
    ),
)
ROLES: Fault = (
    "provisioning/operator_role.py",
    "return order.index(self) >= order.index(needed)",
    "return True",
)
CRL_NUMBERS: Fault = (
    "provisioning/ca/crl.py",
    "x509.CRLNumber(request.number)",
    "x509.CRLNumber(4_000_000_000_000 - request.number)",
)
RSA_KEYS: Fault = (
    "provisioning/ca/key_policy.py",
    "            case rsa.RSAPublicKey():\n                _check_rsa(key)\n",
    "            case rsa.RSAPublicKey():\n                pass\n",
)


@pytest.fixture(autouse=True)
def _short_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else this machine does, it is the broker that is judged."""
    monkeypatch.setattr(run, "MOST_WAITING", 10.0)
    monkeypatch.setattr(scene, "PATIENCE", 10.0)


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the programs forked that the simulator starts."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    python = forking_python("broker", "provisioning", "tests.support.planting", environment=os.environ)
    monkeypatch.setattr(sys, "executable", python)


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Return what plants faults in the programs that the simulator starts from then on."""

    def planted(*faults: Fault, afresh: Container[str] = ()) -> None:
        planting.write(tmp_path / "faults.json", faults)
        monkeypatch.setenv(planting.FAULTS, str(tmp_path / "faults.json"))
        running = planting.planted_in(processes.running, faults, afresh=afresh)
        monkeypatch.setattr(fleetgate_target, "running", running)

    return planted


async def failed(directory: Path, cases: Sequence[Case], *, websocket: bool = False) -> dict[str, str]:
    """Return the reason of each of *cases* that failed."""
    place = directory / "run"
    place.mkdir()
    async with fleetgate(place, websocket=websocket) as target:
        found: list[Outcome] = await run.run(target, cases, lambda _: None)
    return {each.name: each.judgement.why for each in found if each.verdict is Verdict.FAIL}


def assert_found(found: dict[str, str], expected: dict[str, str]) -> None:
    assert found.keys() == expected.keys(), found
    for name, words in expected.items():
        assert words in found[name], found


@pytest.mark.timeout(400)
async def test_late_and_lax_revocations_are_found(tmp_path: Path, plant: object) -> None:
    plant(LATE, ONLY_THE_FIRST, TAKES_OVER_UNJUDGED, ROLES, CRL_NUMBERS, RSA_KEYS)  # type: ignore[operator]
    expected = {
        "5-revoked-takes-over": "the attack succeeded",
        "6-revoked-many": "s, 0.5 s at most",
        "6-revoked-instances": "still open at the deadline",
        "44-auditor-enrols": "the service did what it was asked",
        "44-enroller-revokes": "the service did what it was asked",
        "44-weak-key": "the attack succeeded",
        "45-crl-in-order": "who has that takes the new list for an old one",
    }
    assert_found(await failed(tmp_path, pick(CATALOGUE, [",".join(expected)])), expected)


GOT_IT = "the attack succeeded: it got a certificate"
DONE = "the service did what it was asked"
LET_IN = "the attack succeeded: the broker let it in"


@pytest.mark.timeout(400)
async def test_what_is_granted_to_another_or_too_much_is_found(tmp_path: Path, plant: object) -> None:
    """Either faults alone make none of the others' cases fail."""
    plant(*FOR_ANOTHER, *GRANTED)  # type: ignore[operator]
    expected = {
        "44-asks-for-ca": "it has a certificate of a CA",
        "44-asks-for-names": "it has a certificate for localhost and spiffe://",
        "44-asks-for-usages": "it has a certificate of a server",
        "44-serials": "the next can be guessed",
        "45-never-issued": "the OCSP responder says: good",
        "7-resumed-suspended": LET_IN,
        "19-resumed-other-client-id": LET_IN,
        "24-enrolled-broker": LET_IN,
        "44-pending-other-key": GOT_IT,
        "44-pending-other-name": GOT_IT,
        "44-group-token-elsewhere": GOT_IT,
        "44-renews-suspended-device": GOT_IT,
        "44-service-as-operator": DONE,
        "44-broker-as-operator": DONE,
        "44-device-follows": DONE,
        "44-device-as-broker": DONE,
        "45-suspended": "after suspend the OCSP responder says: good",
    }
    assert_found(await failed(tmp_path, pick(CATALOGUE, [",".join(expected)])), expected)


@pytest.mark.timeout(400)
async def test_a_chain_that_is_believed_whatever_is_wrong_with_it_is_found(tmp_path: Path, plant: object) -> None:
    plant(*BELIEVED, *ABOVE_IT_NOTHING, *ANY_NAME)  # type: ignore[operator]
    expected = {
        "9-cross-signed": LET_IN,
        "24-critical-extension": LET_IN,
        "24-extension-twice": LET_IN,
        "24-name-constraints": LET_IN,
        "24-revoked-ca": LET_IN,
    }
    assert_found(await failed(tmp_path, pick(CATALOGUE, [",".join(expected)])), expected)


@pytest.mark.timeout(400)
async def test_a_device_that_is_never_released_and_a_wrong_staple_are_found(tmp_path: Path, plant: object) -> None:
    plant(NEVER_RELEASED, *STAPLED)  # type: ignore[operator]
    cases = [*pick(chapter.cases, ["16"]), *pick(CATALOGUE, ["21-resumed,45-staple,45-staple-of-revoked"])]
    no_answer = "the broker staples what is no answer about its certificate"
    expected = {
        "16-suspended": "the device is still not let in",
        "21-resumed": "the device is still not let in",
        "45-staple": no_answer,
        "45-staple-of-revoked": no_answer,
    }
    assert_found(await failed(tmp_path, cases), expected)


AT_WEBSOCKET = {
    "3-resumed-expired": LET_IN,
    "5-revoked": LET_IN,
    "6-revoked-live": "still open at the deadline",
    "7-resumed": LET_IN,
    "19-other-client-id": LET_IN,
    "21-suspended": LET_IN,
    "35-other-topic-qos1": "the attack succeeded",
    "36-other-commands": "the attack succeeded",
}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("websocket", [False, True])
async def test_what_only_the_websocket_listener_lets_in_is_found_there(
    tmp_path: Path, plant: object, websocket: bool
) -> None:
    plant(*AT_THE_OTHER_LISTENER)  # type: ignore[operator]
    found = await failed(tmp_path, pick(CATALOGUE, [",".join(AT_WEBSOCKET)]), websocket=websocket)
    assert_found(found, AT_WEBSOCKET if websocket else {})


@pytest.mark.timeout(400)
async def test_our_websocket_listener_keeps_the_rules_of_websocket(tmp_path: Path) -> None:
    """One that keeps none is in `tests/unit/device_sim/attack/test_websocket_cases.py`."""
    assert await failed(tmp_path, WEBSOCKET, websocket=True) == {}


@pytest.mark.timeout(400)
async def test_what_a_revoked_session_leaves_is_found(tmp_path: Path, plant: object) -> None:
    plant(SESSION_STAYS, *ADMITTED_AT_ITS_SESSION)  # type: ignore[operator]
    found = await failed(tmp_path, [*pick(chapter.cases, ["8,9"]), *pick(CATALOGUE, ["6-revoked-session"])])
    assert_found(
        {name: why for name, why in found.items() if not name.startswith("0-")},
        {
            "8-kept-session": "the attack succeeded: the broker let it in",
            "9-queued-messages": "it was delivered",
            "6-revoked-session": "the session of the revoked certificate was there still",
        },
    )


DELIVERED_WRONGLY = {
    "16-payload": "what was sent: not all came",
    "3-delay-returns-cut": "the will of a connection was sent that had been resumed in time",
}
CUT: Fault = (
    "broker/mqtt/message.py",
    "        self.payload = payload\n",
    "        self.payload = payload[:600_000]\n",
)
OLD_WILL: Fault = (
    ENGINE,
    "        session.will = will  # A delayed",
    "        session.will = will or session.will  # A delayed",
)


@pytest.mark.timeout(400)
async def test_cut_payloads_and_a_will_that_was_over_are_found(tmp_path: Path, plant: object) -> None:
    plant(CUT, OLD_WILL)  # type: ignore[operator]
    assert_found(await failed(tmp_path, pick(OWED, [",".join(DELIVERED_WRONGLY)])), DELIVERED_WRONGLY)


_SLOW_DISK: Fault = (
    "broker/store/sqlite.py",
    '            database.execute("COMMIT")\n',
    '            time.sleep(0.2)\n            database.execute("COMMIT")\n',
)
"""On a quick one, what was acknowledged too early is there before the tester can kill the broker, most of the time."""
FORGETFUL: Sequence[tuple[Sequence[Fault], dict[str, str]]] = (
    (
        [
            ("broker/store/dispatch.py", "like.retain, like.identifiers, like.share", 'like.retain, b"", like.share'),
            (
                "broker/engine/exchange.py",
                "if self.journal is not None and (replaces or (kept and message.payload)):",
                "if self.journal is not None and kept and message.payload:",
            ),
        ],
        {"22-killed-queued": "the subscription identifier was forgotten", "22-killed-retained": "came too"},
    ),
    (
        [(JOURNAL, "None if message.expires_at is None else message.expires_at + self.wall_offset", "None")],
        {"22-killed-queued": "an expiry interval of None", "22-killed-retained": "an expiry interval of None"},
    ),
    (
        [
            (CONNECTION, "if journal is not None and journal.dirty:  # The answer", "if False:  # The answer"),
            _SLOW_DISK,
        ],
        {"22-killed-at-puback": "not all came"},
    ),
)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("faults", "expected"), FORGETFUL, ids=["identifier-and-cleared", "expiry", "puback"])
async def test_what_a_killed_broker_should_have_stored_is_missed(
    tmp_path: Path, plant: object, faults: Sequence[Fault], expected: dict[str, str]
) -> None:
    plant(*faults, afresh=["broker"])  # type: ignore[operator]
    assert_found(await failed(tmp_path, pick(OWED, [",".join(expected)])), expected)


OF_OTHERS: Mapping[str, tuple[Sequence[Fault], Mapping[str, str]]] = {
    "costly": (
        COSTLY,
        {
            "28-idle-load": "20 connections that say nothing keep the broker busy",
            "32-long-hello": "20 hellos of a stranger cost the broker",
            "32-names-of-cas": "KB while its client waits",
            "32-own-curve": "8 certificates of a stranger cost the broker",
            "33-many-filters": "s, 5 s at most",
            "33-user-properties": "s, 5 s at most",
            "34-many-levels": "s, 5 s at most",
        },
    ),
    "let": (
        [*OVERRUN, *LEFT_BEHIND, *PREFIXES],
        {
            "19-clean-start-of-refused": "the attack succeeded",
            "24-wildcard-name": "it was delivered",
            "34-properties-too-long": "still open at the deadline",
            "34-string-too-long": "still open at the deadline",
            "35-delayed": "it was delivered",
            "36-exclusive": "it was delivered",
            "36-own-group": "it was delivered",
            "36-queue": "it was delivered",
            "37-will-of-refused": "it was delivered",
        },
    ),
    "read": (
        LENIENT,
        {
            "20-auth-method": LET_IN,
            "24-expired-ca": LET_IN,
            "34-auth": "still open at the deadline",
            "34-null-in-client-id": LET_IN,
            "34-overlong-utf8": "still open at the deadline",
            "34-response-wildcard": "still open at the deadline",
            "34-subscription-identifier": "still open at the deadline",
            "34-surrogate": "still open at the deadline",
            "35-before-connect": "it was delivered",
            "37-will-retained": "it was delivered",
        },
    ),
}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("faults", OF_OTHERS)
async def test_what_others_have_had_is_found(tmp_path: Path, plant: object, faults: str) -> None:
    planted, expected = OF_OTHERS[faults]
    plant(*planted, afresh=["broker"] if planted is COSTLY else [])  # type: ignore[operator]
    assert_found(await failed(tmp_path, pick(CATALOGUE, [",".join(expected)])), dict(expected))
