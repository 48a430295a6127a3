"""`fleet-sim delivery` on a real broker with one fault in subscriptions: it is found, in the cases about it alone."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from broker.mqtt.codes import QoS
from broker.mqtt.packets import Publish
from tests.support.delivery_faults import ChangesSubscriptions, SendsAgainUnderAnotherIdentifier
from tests.support.judged_delivery import OF_MOSQUITTO, Trial, assert_each_found, together
from tests.support.one_fault import Passage
from tests.support.subscription_faults import (
    AnswersInReverse,
    ChangesFilters,
    ChangesMessages,
    ChangesTopics,
    CountsSubscriptions,
    ForgetsOptions,
    GrantsOtherwise,
    KeepsFirst,
    Loses,
    NeverUnsubscribes,
    NoOwnBesideAShare,
    OneCopy,
    OneIdentifierForAll,
    PassesIdentifiersOn,
    PassesOn,
    UnsubscribesFromAll,
    UnsubscribesToReplace,
    every_other,
    for_everybody,
    identified,
    of_one_group,
    shares,
)


def without_identifiers(_: Passage, packet: Publish) -> Publish:
    return identified(packet)


def without_when_returned(passage: Passage, packet: Publish) -> Publish:
    return identified(packet) if passage.memory.get("returned") else packet


def without_when_retained(_: Passage, packet: Publish) -> Publish:
    return identified(packet) if packet.retain else packet


def at_another_topic(_: Passage, packet: Publish) -> Publish:
    return replace(packet, topic=packet.topic.replace("/cmd/a", "/cmd/b"))


def as_something_else(_: Passage, packet: Publish) -> Publish:
    """As amqtt's broker did: who had expected a number there ended with a traceback, and all verdicts with it."""
    return replace(packet, payload=b"stored\xff")


def again(passage: Passage, packet: Publish) -> bool:
    """Whether it is sent again after a return."""
    return bool(passage.memory.get("returned")) and packet.dup


def queued(passage: Passage, packet: Publish) -> bool:
    """Whether it was queued for who has returned, and shares."""
    return bool(passage.memory.get("returned")) and not packet.dup


def with_dollar(_: Passage, packet: Publish) -> bool:
    return "/$" in packet.topic


def with_long_topic(_: Passage, packet: Publish) -> bool:
    return len(packet.topic) > 512


def behind_a_hundred(passage: Passage, packet: Publish) -> bool:
    """Whether so many have been sent on this connection."""
    del packet
    passage.memory["sent"] = sent = passage.memory.get("sent", 0) + 1
    return bool(sent > 100)


class LosesTheLast(Loses):
    """It sends a message to no more than 32 subscribers."""

    def __init__(self) -> None:
        super().__init__(self.is_last)
        self.copies: Counter[bytes] = Counter()

    def is_last(self, _: Passage, packet: Publish) -> bool:
        self.copies[packet.payload] += 1
        return self.copies[packet.payload] > 32


def replaced(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


def own(number: str) -> dict[str, str]:
    """Return what mosquitto does not do itself in the cases of *number*."""
    return {name: words for name, words in OF_MOSQUITTO.items() if name.startswith(f"{number}-")}


OWN = own("13") | own("15")
SHARED = "what was shared: not all came"
MORE = "what was shared: came more than once"
NEVER = "what was said never came to the only one of its group"
STAYED = "what was due to a client that has stayed: not all came"
UNACKNOWLEDGED = "what was not acknowledged: not all came"
NO_LOCAL = "what others said: b'own' came too"
ELSEWHERE = "it came at fleet/meters/"
SHARING = ["13-share-one", "13-share-one-qos2", "13-share-qos", "13-share-mixed", "13-share-leaves", "13-share-twice",
           "13-share-away"]  # fmt: skip
HOLDING = ["13-share-ends-qos1", "13-share-returns-qos1", "13-share-returns-qos2", "13-share-ends-qos2",
           "13-share-refused", "13-share-refused-qos2"]  # fmt: skip


def borne(ids: str, due: str) -> str:
    return f"the subscription identifiers that came were {ids}; due: {due}"


@pytest.mark.parametrize(
    "trials",
    together([
        (
            lambda: ChangesFilters(for_everybody), "13",
            own("13") | dict.fromkeys([*SHARING, "13-share-all-away"], MORE)
            | {"13-share-retained": "a retained message came to a client that has subscribed as one of many"},
        ),
        (
            lambda: ChangesFilters(of_one_group), "13",
            own("13") | {"13-share-each-group": "what was due to one group: not all came"},
        ),
        (
            lambda: Loses(lambda passage, packet: shares(passage) and every_other(passage, packet)), "13",
            dict.fromkeys(SHARING, SHARED) | dict.fromkeys(HOLDING, NEVER)
            | {"13-share-each-group": "what was due to one group: not all came",
               "13-share-and-own": "what was due twice: not all came"},
        ),
        (
            lambda: GrantsOtherwise(QoS.EXACTLY_ONCE), "13,15",
            OWN
            | {
                "13-share-qos": "a message came at QoS 2 to a client that was granted 0",
                "15-granted": "QoS 1 came to a client that was granted 0, said at 1",
                "15-many-filters": "QoS 2 came by the filter that was granted 1",
                "15-replaced": "it did not come once and at QoS 0, as had been subscribed last",
            },
        ),
        (
            lambda: GrantsOtherwise(QoS.AT_MOST_ONCE), "13-share-mixed,15",
            own("15")
            | {
                "13-share-mixed": "a message came at QoS 0 that was said at 2",
                "15-overlapping": "it came at QoS 0 and 0, to a client that had subscribed at 0 and 2",
                "15-granted": "QoS 0 came to a client that was granted 1, said at 1",
                "15-many-filters": "QoS 0 came by the filter that was granted 1",
                "15-replaced": "it did not come once and at QoS 2, as had been subscribed last",
                "15-ended-under-way": "what was under way: not all came",
            },
        ),
        (
            NeverUnsubscribes, "13,14,15",
            OWN
            | {
                "13-share-leaves": STAYED,
                "13-share-twice": STAYED,
                "14-identifier-unsubscribed": borne("1, 2", "1"),
                "15-overlapping-ended": "its command: came more than once",
                "15-ended": "who has unsubscribed: b'live' came too",
            },
        ),
        (
            UnsubscribesFromAll, "13,14,15",
            OWN
            | {
                "14-identifier-unsubscribed": "its command never came",
                "15-overlapping-ended": "its command: not all came",
                "15-ended": "the subscription that is left: not all came",
            },
        ),
        (CountsSubscriptions, "13,15", OWN | {"13-share-twice": STAYED}),
        (NoOwnBesideAShare, "13", own("13") | {"13-share-and-own": "what was due twice: not all came"}),
        (
            PassesOn, "13",
            dict.fromkeys(["13-share-returns-qos2", "13-share-ends-qos2"], "came to a second member of the group")
            | dict.fromkeys(["13-share-refused", "13-share-refused-qos2"], "had refused came again, to another"),
        ),
        (
            lambda: Loses(again), "13,15",
            OWN
            | dict.fromkeys(["13-share-returns-qos1", "13-share-returns-qos2"], UNACKNOWLEDGED)
            | {"15-ended-under-way": "what was under way: not all came"},
        ),
        (
            lambda: Loses(queued), "13,14",
            own("13")
            | dict.fromkeys(["13-share-away", "13-share-all-away"], SHARED)
            | {"14-identifier-returns": "its command never came"},
        ),
        (
            SendsAgainUnderAnotherIdentifier, "13",
            own("13")
            | {"13-share-returns-qos2": "what was not acknowledged came again under other packet identifiers"},
        ),
        (
            lambda: ChangesMessages(without_identifiers), "14",
            {
                "14-identifier": borne("none", "7"),
                "14-identifiers": borne("none", "1, 2"),
                "14-identifiers-alike": borne("none", "5, 5"),
                "14-identifier-returns": borne("none", "9"),
                "14-identifier-retained": borne("none", "4"),
            }
            | dict.fromkeys(
                ["14-identifier-replaced", "14-identifier-unsubscribed", "14-identifier-others",
                 "14-identifier-shared", "14-identifier-sent"], borne("none", "1"),
            ),
        ),
        (lambda: ChangesMessages(without_when_returned), "14", {"14-identifier-returns": borne("none", "9")}),
        (lambda: ChangesMessages(without_when_retained), "14", {"14-identifier-retained": borne("none", "4")}),
        (
            OneCopy, "14,15",
            own("15")
            | {
                "14-identifiers": borne("2", "1, 2"),
                "14-identifiers-alike": "one identifier came, and two subscriptions with it match",
                "15-overlapping": "it came at QoS 0, to a client that had subscribed at 2 and 0",
            },
        ),
        (
            KeepsFirst, "14,15",
            own("15")
            | {
                "14-identifier-replaced": borne("1", "2"),
                "15-replaced": "it did not come once and at QoS 0, as had been subscribed last",
            },
        ),
        (
            OneIdentifierForAll, "14",
            {"14-identifiers": borne("2, 2, 2", "1, 2")}
            | dict.fromkeys(
                ["14-identifier-unsubscribed", "14-identifier-others", "14-identifier-shared"], borne("2", "1")
            ),
        ),
        (PassesIdentifiersOn, "14", {"14-identifier-sent": borne("1, 77", "1")}),
        (
            AnswersInReverse, "15",
            own("15")
            | {"15-many-filters": "SUBACK 0x02 0x00 0x01 was the answer to a client that had asked for 1 0 2"},
        ),
        # It replaces the options too, which mosquitto does not.
        (
            UnsubscribesToReplace, "15",
            {"15-replaced-meanwhile": "what was sent meanwhile: not all came", "15-no-local-retained": NO_LOCAL},
        ),
        (
            ForgetsOptions, "15-local,15-no-*,15-as-*",
            dict.fromkeys(["15-no-local-returns", "15-no-local-retained"], NO_LOCAL)
            | {"15-as-published-returns": "RETAIN was 0 0"},
        ),
        (
            lambda: ChangesSubscriptions(no_local=False), "15",
            own("15") | dict.fromkeys(["15-no-local", "15-no-local-returns"], NO_LOCAL),
        ),
        (
            lambda: ChangesSubscriptions(no_local=True), "15-local,15-no*",
            {
                "15-local": "what itself and another said: not all came",
                "15-no-local": "what both said, to a client that has not asked for No Local: not all came",
                "15-no-local-retained": NO_LOCAL,
            },
        ),
        (
            lambda: ChangesFilters(replaced("/+", "/#")), "19-one-level",
            {"19-one-level": "cmd/+ does not match cmd, which came"},
        ),
        (
            lambda: ChangesFilters(replaced("/#", "/+")), "19",
            {
                "19-all-levels": "not all came that cmd/# matches",
                "19-both-wildcards": "not all came that cmd/+/c/# matches",
            },
        ),
        (
            lambda: ChangesFilters(replaced("/+/c", "/#")), "19-level-between",
            {"19-level-between": "cmd/+/c does not match cmd/c, which came"},
        ),
        (
            lambda: ChangesMessages(at_another_topic), "19",
            dict.fromkeys(
                ["19-one-level", "19-all-levels", "19-level-between", "19-both-wildcards", "19-long-topic"], ELSEWHERE
            ),
        ),
        (
            lambda: ChangesTopics(str.lower), "19",
            {
                "19-level-between": "cmd/+/c does not match cmd/a/C, which came",
                "19-exact": "cmd/open does not match cmd/Open, which came",
                "19-no-normalising": "does not match",
            },
        ),
        (
            lambda: ChangesTopics(partial(unicodedata.normalize, "NFC")), "19",
            {"19-no-normalising": "does not match"},
        ),
        (
            lambda: ChangesTopics(replaced(" ", "")), "19", {"19-space": "not all came that cmd/open door matches"},
        ),
        (
            lambda: ChangesTopics(replaced("//", "/")), "19",
            {
                "19-one-level": "cmd/+ does not match cmd//, which came",
                "19-all-levels": ELSEWHERE,
                "19-level-between": "not all came that cmd/+/c matches",
                "19-exact": "cmd/open does not match cmd//open, which came",
            },
        ),
        (
            lambda: ChangesTopics(lambda topic: topic.rstrip("/")), "19",
            {
                "19-one-level": "not all came that cmd/+ matches",
                "19-all-levels": ELSEWHERE,
                "19-exact": "cmd/open does not match cmd/open/, which came",
            },
        ),
        (lambda: Loses(with_dollar), "19", {"19-dollar-inside": "not all came that cmd/+ matches"}),
        (lambda: Loses(with_long_topic), "19", {"19-long-topic": "not all came that cmd/# matches"}),
        (lambda: Loses(behind_a_hundred), "20", {"20-many-queued": "of 300 queued messages not all came"}),
        (LosesTheLast, "15-many-listeners,15-local", {"15-many-listeners": "nothing came to subscriber"}),
        (
            lambda: ChangesMessages(as_something_else), "15-granted,15-many-filters,19-exact",
            dict.fromkeys(
                ["15-granted", "15-many-filters", "19-exact"], "b'stored\\xff' came, which nobody has said"
            ),
        ),
    ]),
)  # fmt: skip
async def test_faults_are_found_where_they_are(tmp_path: Path, trials: Sequence[Trial]) -> None:
    await assert_each_found(tmp_path, trials)
