"""`fleet-sim delivery` on a real broker behind a proxy with one fault: it is found, in the cases about it alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from broker.mqtt.codes import QoS, RetainHandling
from broker.mqtt.properties import NO_PROPERTIES
from device_sim.attack.mosquitto_target import mosquitto
from device_sim.report import ExitCode
from provisioning.pki.keys import key_to_pem
from tests.support.delivery_faults import (
    ChangesLives,
    ChangesRetain,
    ChangesSubscriptions,
    ChangesWills,
    CountsUntilPubrec,
    DeliversWhatComesAgain,
    ForgetsAcknowledgements,
    ForgetsCompletions,
    ForgetsSessions,
    ForgetsTheLimit,
    ForgetsTheRest,
    IgnoresLimits,
    KeepsSessions,
    LosesReleases,
    LosesWhatIsReleased,
    NeverClears,
    Overtakes,
    RefusesReleases,
    ReleasesTwice,
    RetainsEverything,
    SaysThatASessionWasThere,
    SendsAgainUnderAnotherIdentifier,
    SendsAgainWithoutDup,
    SendsAGoodbyesWillLate,
    SendsNoWillThatIsAskedFor,
    SendsTheMessageForTheRelease,
    SendsTheWillOfWhoReturned,
    SendsWillsAnyway,
    SendsWillsTwice,
    SwallowsUsedIdentifiers,
    TellsOneLife,
)
from tests.support.judged_delivery import (
    OF_MOSQUITTO,
    Trial,
    assert_each_found,
    together,
)
from tests.support.last_words import last_words
from tests.support.one_fault import OneFault, with_fault
from tests.support.programs import REPOSITORY, forking_python

NO_SESSION = {"3-delay-no-session": OF_MOSQUITTO["3-delay-no-session"]}
"""Without a session mosquitto sends a will when its delay has passed, and not at once."""


UNKILLED = dict.fromkeys(
    ["22-killed-queued", "22-killed-at-puback", "22-killed-retained", "22-killed-qos2", "22-killed-will"],
    "the tester cannot kill this broker",
)
"""Skipped: who puts a proxy before the broker does not hand over its process."""
NEVER = "its will was never sent"
TWICE = "its will: came more than once"
GOODBYE = "its will was sent, though it had said DISCONNECT 0x00"
SENT_THOUGH_RETURNED = {
    "3-delay-returns": "its will was sent, though it had come back within the will delay",
    "3-delay-returns-cut": "the will of a connection was sent that had been resumed in time",
}
AFTERWARDS = "delivered after all, later than what was sent later"
NOT_RETAINED = "its will was not retained"
GONE = "it came back in time, and its session was gone (CONNACK without session present)"
ORDER = "came in another order"
ONCE_MORE = "what was acknowledged to the end came once more after the next connection"
SENT = ["1-will-cut", "1-will-closed", "1-will-asked-for", "1-will-protocol-error", "1-will-taken-over"]
LATE = ["3-delay-passes", "3-delay-session-ends", "3-delay-no-session"]
RETURNING = ["7-publish-again", "7-publish-unanswered", "7-release-again", "7-identifier-again", "8-qos1-again",
             "8-qos2-again", "8-qos2-release-again", "8-queued", "8-in-order"]  # fmt: skip
WILLS = "1,2,3,4"


async def test_without_a_fault_nothing_is_found_but_what_mosquitto_does_itself(tmp_path: Path) -> None:
    await assert_each_found(tmp_path, [(OneFault, "*", OF_MOSQUITTO | UNKILLED)])


@pytest.mark.parametrize(
    "trials",
    together([
        (
            SendsWillsAnyway, WILLS,
            NO_SESSION | dict.fromkeys(["2-goodbye", "3-delay-goodbye"], GOODBYE)
            | {"2-goodbye-returns": "the will of a connection was sent that had ended with DISCONNECT"},
        ),
        (SendsAGoodbyesWillLate, "2", dict.fromkeys(["2-goodbye", "2-goodbye-returns"], AFTERWARDS)),
        (SendsNoWillThatIsAskedFor, "1", {"1-will-asked-for": NEVER}),
        (
            lambda: ChangesWills(lambda _: None), WILLS,
            dict.fromkeys([*SENT, *LATE, "4-will-as-left", "4-will-retained", "4-will-not-retained"], NEVER),
        ),
        (SendsWillsTwice, WILLS, NO_SESSION | dict.fromkeys([*SENT, *LATE[:2], "4-will-not-retained"], TWICE)),
        (SendsTheWillOfWhoReturned, "3", NO_SESSION | SENT_THOUGH_RETURNED),
        (
            lambda: ChangesWills(lambda will: replace(will, properties=NO_PROPERTIES)), "3,4",
            SENT_THOUGH_RETURNED | {"3-delay-passes": "after 0.", "4-will-as-left": "an expiry interval of None"},
        ),
        (
            lambda: ChangesWills(
                lambda will: replace(will, properties=replace(will.properties, user_properties=()))
            ), "4", {"4-will-as-left": "user_properties () came"},
        ),
        (lambda: ChangesWills(lambda will: replace(will, qos=QoS.AT_MOST_ONCE)), "4", {"4-will-as-left": "qos <QoS."}),
        (lambda: ChangesWills(lambda will: replace(will, retain=False)), "4", {"4-will-retained": NOT_RETAINED}),
        (
            lambda: ChangesWills(lambda will: replace(will, retain=True)), "4",
            {"4-will-not-retained": "its will was retained, though it had not asked for that"},
        ),
        (
            lambda: IgnoresLimits("receive_maximum"), "5,6",
            dict.fromkeys(
                ["5-receive-maximum-qos1", "5-receive-maximum-qos2", "5-receive-maximum-returns"],
                "12 messages were under way at once to a client that had said Receive Maximum 3",
            ),
        ),
        (
            ForgetsTheLimit, "5",
            dict.fromkeys(
                ["5-receive-maximum-qos1", "5-receive-maximum-qos2", "5-receive-maximum-returns"],
                "messages were under way at once to a client that had said Receive Maximum 3",
            ),
        ),
        (CountsUntilPubrec, "5", {"5-receive-maximum-qos2": "12 messages were under way at once"}),
        (
            lambda: IgnoresLimits("maximum_packet_size"), "5,6",
            {
                "6-packet-size": "what fits: b'\\x00\\x00",
                "6-packet-size-queued": "what fits of what was queued: b'\\x00\\x00",
                "6-packet-size-retained": "what fits: b'\\x00\\x00",
            },
        ),
        (
            ForgetsTheRest, "5",
            dict.fromkeys(
                ["5-receive-maximum-qos1", "5-receive-maximum-qos2", "5-receive-maximum-returns"],
                "no more came to a client that had acknowledged",
            ),
        ),
        (
            DeliversWhatComesAgain, "7",
            dict.fromkeys(["7-publish-again", "7-publish-unanswered"], "its message: came more than once"),
        ),
        (
            LosesWhatIsReleased, "7",
            dict.fromkeys(["7-publish-again", "7-publish-unanswered"], "its message: not all came")
            | {"7-identifier-again": "its messages: not all came"},
        ),
        (
            RefusesReleases, "7",
            dict.fromkeys(
                ["7-publish-again", "7-publish-unanswered", "7-identifier-again"],
                "PUBCOMP 0x92 was the answer to PUBREL",
            ),
        ),
        (ReleasesTwice, "7", {"7-release-again": "its message: came more than once"}),
        (ForgetsCompletions, "8", dict.fromkeys(["8-qos2-again", "8-qos2-release-again", "8-queued"], ONCE_MORE)),
        (SwallowsUsedIdentifiers, "7", {"7-identifier-again": "its messages: not all came"}),
        (ForgetsSessions, "7,8", dict.fromkeys(RETURNING, GONE)),
        (KeepsSessions, "8-clean-start", {"8-clean-start": "it asked for a clean start, and got its old session"}),
        (SaysThatASessionWasThere, "8", {"8-clean-start": "it asked for a clean start, and got its old session"}),
        (SendsAgainWithoutDup, "7,8", dict.fromkeys(["8-qos1-again", "8-qos2-again"], "sent again under packet")),
        (
            SendsAgainUnderAnotherIdentifier, "8",
            dict.fromkeys(["8-qos1-again", "8-qos2-again"], "sent again under packet identifier 5001 with DUP 1")
            | {"8-qos2-release-again": "PUBREL came again for [5001], and for 1 it was due"},
        ),
        (
            SendsTheMessageForTheRelease, "8",
            {"8-qos2-release-again": "the message came once more, though PUBREC had been received"},
        ),
        (LosesReleases, "8-qos2-release-again", {"8-qos2-release-again": "no PUBREL came again"}),
        (
            ForgetsAcknowledgements, "8",
            dict.fromkeys(["8-qos1-again", "8-qos2-again", "8-queued"], ONCE_MORE),
        ),
        (
            Overtakes, "8-queued,8-in-order",
            {"8-queued": f"what was queued for it: {ORDER}", "8-in-order": f"what was not acknowledged: {ORDER}"},
        ),
        (
            lambda: ChangesLives(None), "9",
            {
                "9-expired-queued": "what had not expired: b'expires' came too",
                "9-queued-counts-down": "came with an expiry interval of None",
                "9-expired-retained": "a retained message was delivered 2.3 s after",
                "9-retained-counts-down": "came with an expiry interval of None",
                "9-delivered-at-once": "came with an expiry interval of None",
            },
        ),
        (
            lambda: ChangesLives(1), "9",
            {
                "9-expired-queued": "what had not expired: not all came",
                "9-queued-counts-down": "what had not expired: not all came",
                "9-retained-counts-down": "what was retained never came",
                "9-delivered-at-once": "came with an expiry interval of 1",
            },
        ),
        (
            lambda: TellsOneLife(100), "9",
            dict.fromkeys(["9-queued-counts-down", "9-retained-counts-down"], "came with an expiry interval of 100"),
        ),
        (
            lambda: TellsOneLife(10), "9",
            dict.fromkeys(
                ["9-queued-counts-down", "9-retained-counts-down", "9-delivered-at-once"],
                "came with an expiry interval of 10",
            ),
        ),
        (lambda: ChangesRetain(retain=True), "4", {"4-will-as-left": "retain True came, False was told"}),
        (
            lambda: ChangesRetain(retain=True), "10",
            {"10-live": "RETAIN was 1 1, and should have been 0 0", "10-live-as-published": "RETAIN was 1 1"},
        ),
        (
            lambda: ChangesRetain(retain=False), "10,4-will-retained",
            {
                "4-will-retained": "what was retained came without RETAIN",
                "10-live-as-published": "RETAIN was 0 0, and should have been 1 0",
                "10-stored": "RETAIN was 0, and should have been 1",
                "10-many": "RETAIN was 0 0, and should have been 1 1",
            },
        ),
        (lambda: ChangesSubscriptions(retain_as_published=False), "10", {"10-live-as-published": "RETAIN was 0 0"}),
        (lambda: ChangesSubscriptions(retain_as_published=True), "10", {"10-live": "RETAIN was 1 0"}),
        (
            lambda: ChangesSubscriptions(retain_handling=RetainHandling.SEND), "10",
            {
                "10-handling-1": "2 retained messages came",
                "10-handling-2": "1 retained messages came",
                "10-handling-1-returns": "a subscription that was there: b'stored' came too",
            },
        ),
        (
            lambda: ChangesSubscriptions(retain_handling=RetainHandling.SEND_IF_NEW), "10",
            {
                "10-handling-0": "what was retained never came",
                "10-handling-2": "1 retained messages came",
                "10-handling-1-returns": "a subscription that was there: b'stored' came too",
            },
        ),
        (
            RetainsEverything, "10",
            {"10-live-as-published": "RETAIN was 1 1", "10-stored": "what is retained: not all came"},
        ),
        (NeverClears, "10", {"10-cleared": "what was cleared is retained still"}),
    ]),
)  # fmt: skip
async def test_faults_are_found_where_they_are(tmp_path: Path, trials: Sequence[Trial]) -> None:
    await assert_each_found(tmp_path, trials)


OLDER = {f"{name}-311": words for name, words in OF_MOSQUITTO.items() if name == "18-taken-over-will-at-once"}


@pytest.mark.parametrize(
    ("fault", "only", "expected"),
    [
        (OneFault, "*-311", OLDER),
        (
            SendsAgainWithoutDup, "8-*,18-*",
            OLDER
            | dict.fromkeys(["8-qos1-again-311", "8-qos2-again-311"], "sent again under packet")
            | dict.fromkeys(["18-taken-over-qos1-311", "18-taken-over-qos2-311"], "and DUP has to be 1"),
        ),
        (lambda: ChangesWills(lambda _: None), "1-will-cut-311", {"1-will-cut-311": NEVER}),
        (lambda: ChangesRetain(retain=True), "10-live-311", {"10-live-311": "RETAIN was 1 1, and should have been"}),
    ],
)  # fmt: skip
async def test_what_mqtt_3_1_1_promises_is_tried_too(
    tmp_path: Path, fault: Callable[[], OneFault], only: str, expected: dict[str, str]
) -> None:
    await assert_each_found(tmp_path, [(fault, only, expected)], older=True)


async def test_a_broken_promise_is_told_and_is_no_matter_of_security(tmp_path: Path) -> None:
    """Exit code 4 says that somebody got in who must not."""
    document = tmp_path / "delivery.json"
    (tmp_path / "broker").mkdir()
    async with mosquitto(tmp_path / "broker") as target, with_fault(target, SendsAgainWithoutDup()) as faulty:
        (tmp_path / "ca.key").write_bytes(key_to_pem(target.issuer.key))
        process = await asyncio.create_subprocess_exec(
            forking_python(), "-m", "device_sim", "delivery", "--only", "8-qos1-again,10-stored",
            "--json", str(document), "--broker", f"localhost:{faulty.endpoint.port}", "--cafile", str(target.anchors),
            "--ca-cert", str(target.anchors), "--ca-key", str(tmp_path / "ca.key"),
            cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await last_words(process)
    assert process.returncode == ExitCode.THRESHOLD, out.decode()
    told = {
        case["case"]: (case["verdict"], case["observed"]["answer"])
        for case in json.loads(document.read_text())["cases"]
    }
    assert told["8-qos1-again"] == ("fail", "mqtt broken-promise")
    assert told["10-stored"] == ("pass", "mqtt kept")
