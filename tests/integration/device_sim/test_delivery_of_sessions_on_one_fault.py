"""`fleet-sim delivery` on a real broker with one fault in aliases, contents, sessions or order: it is found there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.mqtt.codes import ProtocolVersion, QoS
from broker.mqtt.packets import Disconnect, Packet, Puback, Publish, Suback, Unsuback
from broker.mqtt.properties import Properties
from tests.support.delivery_faults import (
    ForgetsSessions,
    KeepsSessions,
    LosesReleases,
    Overtakes,
    SendsAgainUnderAnotherIdentifier,
    SendsAgainWithoutDup,
    SendsTheWillOfWhoReturned,
)
from tests.support.judged_delivery import OF_MOSQUITTO, Trial, assert_each_found, together
from tests.support.one_fault import Passage
from tests.support.session_faults import (
    AssignsOne,
    ChangesConnacks,
    DoublesWhatComesThen,
    ForgetsAliases,
    IgnoresGoodbyes,
    Impatient,
    NeverAnswersPings,
    SaysNothing,
    Swaps,
    TakesAnyAlias,
    TellsProblems,
    UsesAliases,
    carried_forward,
    keeping_as_at_first,
    keeping_for,
    never_remade,
    one_for_all,
    taking_nobody_over,
)
from tests.support.subscription_faults import ChangesMessages, GrantsOtherwise, Loses


def altered(**properties: Any) -> Callable[[Passage, Publish], Publish]:
    return lambda _, packet: replace(packet, properties=replace(packet.properties, **properties))


def sorted_pairs(_: Passage, packet: Publish) -> Publish:
    pairs = tuple(sorted(packet.properties.user_properties))
    return replace(packet, properties=replace(packet.properties, user_properties=pairs))


def each_pair_once(_: Passage, packet: Publish) -> Publish:
    pairs = tuple(dict.fromkeys(packet.properties.user_properties))
    return replace(packet, properties=replace(packet.properties, user_properties=pairs))


def bare_when_queued(passage: Passage, packet: Publish) -> Publish:
    return replace(packet, properties=Properties()) if passage.memory.get("returned") else packet


def bare_when_retained(_: Passage, packet: Publish) -> Publish:
    return replace(packet, properties=Properties()) if packet.retain else packet


def without_what_is_empty(_: Passage, packet: Publish) -> Publish:
    told = packet.properties
    told = replace(told, content_type=told.content_type or None, correlation_data=told.correlation_data or None)
    return replace(packet, properties=told)


def cut_short(_: Passage, packet: Publish) -> Publish:
    return replace(packet, payload=packet.payload[:200])


def second_retained(passage: Passage, packet: Publish) -> bool:
    passage.memory["retained"] = passage.memory.get("retained", 0) + packet.retain
    return packet.retain and bool(passage.memory["retained"] > 1)


class ForgetsWithTheSession(Loses):
    """What a client has retained goes when it does: who comes back finds nothing either."""

    def __init__(self) -> None:
        super().__init__(lambda _, packet: packet.retain and packet.topic in self.gone)
        self.gone: set[str] = set()

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Disconnect):
            self.gone.update(f"fleet/meters/{passage.identity.name}/{suffix}" for suffix in ("state", "telemetry"))
        return [packet]


def to_older(passage: Passage, packet: Publish) -> bool:
    del packet
    return passage.version is not ProtocolVersion.V5


def again(passage: Passage, packet: Publish) -> bool:
    """Whether it is sent again after a return."""
    return bool(passage.memory.get("returned")) and packet.dup


def queued(passage: Passage, packet: Publish) -> bool:
    """Whether it was queued for who has returned, or comes then."""
    return bool(passage.memory.get("returned")) and not packet.dup


def with_response(_: Passage, properties: Properties) -> Properties:
    return replace(properties, response_information="answers/here")


def nameless(_: Passage, properties: Properties) -> Properties:
    return replace(properties, assigned_client_identifier=None)


def misnamed(_: Passage, properties: Properties) -> Properties:
    assigned = properties.assigned_client_identifier
    return replace(properties, assigned_client_identifier=assigned and f"not-{assigned}")


def aliased(passage: Passage) -> bool:
    return bool(passage.memory.get("aliased"))


def returned(passage: Passage) -> bool:
    return bool(passage.memory.get("returned"))


def own(number: str) -> dict[str, str]:
    """Return what mosquitto does not do itself in the cases of *number*."""
    return {name: words for name, words in OF_MOSQUITTO.items() if name.startswith(f"{number}-")}


BY_ALIAS = "what was published by aliases: not all came"
AT_TELEMETRY = "/state by an alias, it came at fleet/meters/"
TAKEN = "was taken: the connection has to be closed"
NO_WORD = "closed without a DISCONNECT that says why"
ONE_TO_NONE = "topic alias 1 came to a client that takes none"
COMMAND = "it came at fleet/meters/"
UNTOLD = "topic alias 1 came without a topic, and none was told on this connection"
GONE = "it came back in time, and its session was gone (CONNACK without session present)"
STILL_THERE = "its session was there still"
UNACKNOWLEDGED = "what was not acknowledged: not all came"
QUEUED = "what was queued for it: not all came"
QUEUED_MORE = "what was queued for it: came more than once"
OTHERWISE = "came in another order, or more than once"
PROPERTIES = ["16-properties", "16-properties-queued", "16-properties-retained"]
UNACKED = ["18-taken-over-qos1", "18-taken-over-qos2"]
PROLONGED = ["21-session-prolonged-at-goodbye", "21-session-prolonged"]
OWN = own("18")
RETURNS_OTHERWISE = {
    "20-order-returns": f"messages of QoS 2 {OTHERWISE}",
    "20-many-queued": f"messages of QoS 1 {OTHERWISE}",
}


@pytest.mark.parametrize(
    "trials",
    together([
        (lambda: Loses(second_retained), "10-many,10-stored*,10-outlives", {"10-many": "at two topics: not all came"}),
        (ForgetsWithTheSession, "10", {"10-outlives": "what is retained: not all came"}),
        (
            lambda: GrantsOtherwise(QoS.AT_MOST_ONCE), "10-stored-qos,10-many",
            {"10-stored-qos": "it came at QoS 0 to a client that had subscribed at 2"},
        ),
        (ForgetsAliases, "11", dict.fromkeys(["11-alias", "11-alias-each", "11-alias-remade"], BY_ALIAS)),
        (never_remade, "11-alias,11-alias-each,11-alias-remade", {"11-alias-remade": AT_TELEMETRY}),
        (
            one_for_all, "11-alias,11-alias-each,11-alias-remade",
            dict.fromkeys(["11-alias-each", "11-alias-remade"], AT_TELEMETRY),
        ),
        (carried_forward, "11-alias-forgotten", {"11-alias-forgotten": f"an alias of the last connection {TAKEN}"}),
        (
            lambda: TakesAnyAlias(goes_on=True), "11",
            {
                "11-alias-forgotten": f"an alias of the last connection {TAKEN}",
                "11-alias-0": f"alias 0 {TAKEN}",
                "11-alias-over": f"an alias over the maximum {TAKEN}",
                "11-alias-unknown": f"an alias without a topic {TAKEN}",
            },
        ),
        (
            lambda: TakesAnyAlias(goes_on=False), "11",
            {
                "11-alias-forgotten": "an alias of the last connection was delivered to fleet/meters/",
                "11-alias-over": "an alias over the maximum was delivered to fleet/meters/",
                "11-alias-unknown": "an alias without a topic was delivered to fleet/meters/",
            },
        ),
        (
            SaysNothing, "11,18-taken-over",
            dict.fromkeys(["11-alias-forgotten", "11-alias-0", "11-alias-over", "11-alias-unknown"], NO_WORD)
            | {"18-taken-over": "its first connection was closed, and told mqtt closed, not DISCONNECT 0x8e"},
        ),
        (lambda: UsesAliases(1), "12", dict.fromkeys(["12-alias-out-none", "12-alias-out-no-more"], ONE_TO_NONE)),
        (
            lambda: UsesAliases(3), "12",
            dict.fromkeys(
                ["12-alias-out", "12-alias-out-again", "12-alias-out-no-more"], "3 came to a client that takes 2"
            )
            | {"12-alias-out-none": "topic alias 3 came to a client that takes none"},
        ),
        (
            lambda: UsesAliases(1, told=aliased), "12",
            dict.fromkeys(["12-alias-out", "12-alias-out-again"], COMMAND)
            | dict.fromkeys(["12-alias-out-none", "12-alias-out-no-more"], ONE_TO_NONE),
        ),
        (
            lambda: UsesAliases(1, told=returned), "12",
            dict.fromkeys(["12-alias-out-none", "12-alias-out-no-more"], ONE_TO_NONE) | {"12-alias-out-again": UNTOLD},
        ),
        (
            lambda: ChangesMessages(altered(payload_format_indicator=None)), "16",
            dict.fromkeys(PROPERTIES, "payload_format_indicator None came"),
        ),
        (
            lambda: ChangesMessages(altered(content_type=None)), "16",
            dict.fromkeys([*PROPERTIES, "16-properties-empty"], "content_type None came"),
        ),
        (
            lambda: ChangesMessages(altered(response_topic="elsewhere")), "16",
            dict.fromkeys([*PROPERTIES, "16-properties-empty"], "response_topic 'elsewhere' came")
            | {"16-to-older": "what MQTT 3.1.1 cannot bear came: Properties(response_topic='elsewhere')"},
        ),
        (lambda: ChangesMessages(altered(correlation_data=b"\0")), "16-properties*",
         dict.fromkeys([*PROPERTIES, "16-properties-empty"], "correlation_data b'\\x00' came")),
        (
            lambda: ChangesMessages(altered(user_properties=(("added", "here"),))), "16-properties*",
            dict.fromkeys([*PROPERTIES, "16-properties-empty"], "user_properties (('added', 'here'),) came"),
        ),
        (lambda: ChangesMessages(sorted_pairs), "16", dict.fromkeys(PROPERTIES, "user_properties (('a', '2'), ")),
        (
            lambda: ChangesMessages(each_pair_once), "16",
            dict.fromkeys(PROPERTIES, "user_properties (('z', '1'), ('a', '3'), ('a', '2'), "),
        ),
        (
            lambda: ChangesMessages(bare_when_queued), "16",
            {"16-properties-queued": "an expiry interval of None came, 90 was told"},
        ),
        (
            lambda: ChangesMessages(bare_when_retained), "16",
            {"16-properties-retained": "an expiry interval of None came, 90 was told"},
        ),
        (
            lambda: ChangesMessages(without_what_is_empty), "16",
            {"16-properties-empty": "content_type None came, '' was told"},
        ),
        (lambda: ChangesMessages(cut_short), "16", {"16-payload": "what was sent: not all came"}),
        (lambda: Loses(to_older), "16", {"16-to-older": "what was said: not all came"}),
        (
            lambda: ChangesConnacks(with_response), "16",
            {"16-no-response-information": "response information came unasked: 'answers/here'"},
        ),
        (lambda: TellsProblems(Suback), "16", {"16-no-problem-information": "SUBACK came with Properties(reason_"}),
        (lambda: TellsProblems(Unsuback), "16", {"16-no-problem-information": "UNSUBACK came with Properties(reason"}),
        (lambda: TellsProblems(Puback), "16", {"16-no-problem-information": "PUBACK came with Properties(reason_"}),
        (Impatient, "17", {"17-keep-alive": "was put out: mqtt closed"}),
        (NeverAnswersPings, "17", {"17-keep-alive": "was put out: mqtt closed"}),
        (
            AssignsOne, "17-assigned",
            {"17-assigned": "the client identifiers that were assigned are not new: nameless, nameless"},
        ),
        (
            lambda: ChangesConnacks(nameless), "17",
            {"17-assigned": "CONNACK did not tell the client identifier", "17-assigned-returns": GONE},
        ),
        (lambda: ChangesConnacks(misnamed), "17", {"17-assigned-returns": GONE}),
        (
            taking_nobody_over, "18-taken-over,18-taken-over-clean",
            {"18-taken-over": "its first connection was not closed"},
        ),
        (
            lambda: Loses(again), "18",
            OWN | dict.fromkeys(UNACKED, UNACKNOWLEDGED) | {"18-taken-over-queued": QUEUED},
        ),
        (
            lambda: Loses(queued), "18,20-order-returns,21",
            OWN
            | dict.fromkeys(UNACKED, "what came then: not all came")
            | dict.fromkeys(["18-taken-over-queued", *PROLONGED], QUEUED)
            | {"20-order-returns": "its commands: not all came"},
        ),
        (LosesReleases, "18", OWN | {"18-taken-over-released": "no PUBREL came again"}),
        (SendsAgainWithoutDup, "18", OWN | dict.fromkeys(UNACKED, "with DUP 0; the first time it was 1, and DUP has")),
        (
            SendsAgainUnderAnotherIdentifier, "18",
            OWN
            | dict.fromkeys(UNACKED, "sent again under packet identifier 5001 with DUP 1; the first time it was 1")
            | {"18-taken-over-released": "the message came again, or PUBREL for [5001]"},
        ),
        (
            DoublesWhatComesThen, "18,20,21",
            OWN
            | dict.fromkeys(UNACKED, "what came then: came more than once")
            | dict.fromkeys(["18-taken-over-queued", *PROLONGED], QUEUED_MORE)
            | RETURNS_OTHERWISE,
        ),
        (Overtakes, "20", RETURNS_OTHERWISE),
        (KeepsSessions, "18-taken-over-clean", {"18-taken-over-clean": "it asked for a clean start, and got its old"}),
        (
            ForgetsSessions, "18,20,21",
            dict.fromkeys([*UNACKED, "18-taken-over-released", "18-taken-over-queued", "18-taken-over-will-at-once",
                           "18-taken-over-will", "20-order-returns", "20-many-queued", *PROLONGED], GONE)
            | {"18-taken-over-will-clean": "its will was never sent"},
        ),
        (
            SendsTheWillOfWhoReturned, "18-taken-over-will",
            {"18-taken-over-will": "its will was sent, though it had come for its session at once"},
        ),
        (lambda: Swaps(QoS.AT_MOST_ONCE), "20", {"20-order": f"messages of QoS 0 {OTHERWISE}"}),
        (
            lambda: Swaps(QoS.AT_LEAST_ONCE), "20",
            dict.fromkeys(["20-order", "20-many-queued"], f"messages of QoS 1 {OTHERWISE}"),
        ),
        (
            lambda: Swaps(QoS.EXACTLY_ONCE), "20",
            dict.fromkeys(["20-order", "20-order-two", "20-order-returns"], f"messages of QoS 2 {OTHERWISE}"),
        ),
        (lambda: keeping_for(1000), "21", dict.fromkeys(["21-session-ends", "21-session-ends-at-once"], STILL_THERE)),
        (keeping_as_at_first, "21", {"21-session-prolonged": GONE}),
        (
            IgnoresGoodbyes, "21",
            {"21-session-ended-at-goodbye": STILL_THERE, "21-session-prolonged-at-goodbye": GONE},
        ),
    ]),
)  # fmt: skip
async def test_faults_are_found_where_they_are(tmp_path: Path, trials: Sequence[Trial]) -> None:
    await assert_each_found(tmp_path, trials)
