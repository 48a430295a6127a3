"""With `cafile` alone, nobody lasts longer than the CAs above: in the handshake that shows them, and coming back."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from broker.admission import path_ends
from broker.admission.admission import Admission
from broker.admission.bundle import TrustBundle
from broker.admission.freshness import Freshness
from broker.admission.issuers import revoked_as
from broker.admission.path_ends import Forgotten, PathEnds
from broker.admission.peer import Peer
from broker.admission.refusal import RefusalCode, Refused
from broker.admission.status import RevocationStatus
from broker.admission.trust import Trust
from broker.connection.connection import ClientConnection
from broker.mqtt.codes import ReasonCode
from broker.mqtt.properties import Properties
from provisioning.pki.identity import Identity
from provisioning.pki.keys import key_identifier
from provisioning.pki.revocation import RevocationIndex, pack, whole_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from tests.support.pki import DOMAIN, Held, shared_pki
from tests.support.policies import DEFAULT_POLICY
from tests.support.wire import FakeTransport, MemoryBroker, will

PKI = shared_pki()
NOW = PKI.now
METER = Identity(DOMAIN, Role.DEVICE, "meter-1", "meters")


def soon(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def der(held: Held) -> bytes:
    return held.certificate.public_bytes(Encoding.DER)


def issuing(seconds: float, *, like: Held | None = None, root: Held = PKI.root) -> Held:
    """Return an issuing CA that ends in so many *seconds*, with the key of another one if it is its renewal."""
    key = None if like is None else like.key
    return PKI.authority("Ending CA", root, key=key, not_after=soon(seconds))


FIRST = issuing(60)
RENEWED = issuing(600, like=FIRST)
ANOTHER = issuing(300)
HELD = PKI.certify(METER, issuer=FIRST)
OF_ANOTHER = PKI.certify(METER, issuer=ANOTHER)
LONG = (HELD.certificate.not_valid_after_utc - NOW).total_seconds()


def admission() -> Admission:
    freshness = Freshness(300.0)
    freshness.current(0.0)
    return Admission(RevocationStatus(RevocationIndex(), freshness), DEFAULT_POLICY, DOMAIN)


def left(judge: Admission, held: Held, path: list[Held] | None = None, at: float = 0) -> float:
    """Return how long *held* lasts; without *path* it comes back to its TLS session."""
    ders = [] if path is None else [held.der, *map(der, path)]
    peer = judge.examine(held.der, soon(at), lambda: ders)
    assert isinstance(peer, Peer), peer
    return peer.seconds_left


GARBLED = x509.UnrecognizedExtension(x509.AuthorityInformationAccess.oid, b"\x04\x00")
GARBLED_CA = PKI.authority("Garbled CA", PKI.root, extensions=[GARBLED])
P256, UNKNOWN_CURVE = bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d030104")


@pytest.mark.parametrize("bundles", [False, True], ids=["cafile", "bundles"])
@pytest.mark.parametrize(
    "authority",
    [der(GARBLED_CA), der(FIRST).replace(P256, UNKNOWN_CURVE), der(FIRST).replace(b"\xa0\3\2\1\2", b"\xa0\3\2\1\x7f")],
    ids=["an extension", "the key", "the version"],
)
def test_a_ca_of_which_only_openssl_can_read_the_certificate_lets_nobody_in(authority: bytes, *, bundles: bool) -> None:
    judge = admission()
    if bundles:
        judge.believe(Trust([TrustBundle("ours", [PKI.root.certificate])]))
    for _ in range(2):
        refused = judge.examine(HELD.der, NOW, lambda: [HELD.der, authority, der(PKI.root)])
        assert isinstance(refused, Refused)
        assert refused.code is RefusalCode.UNTRUSTED_ISSUER
        assert "cannot be read" in refused.detail
    assert left(judge, OF_ANOTHER, [ANOTHER, PKI.root]) == 300, "others are not affected"


@pytest.mark.parametrize("path", [[FIRST], [FIRST, PKI.root]])
def test_the_certificate_that_ends_first_ends_the_path(path: list[Held]) -> None:
    judge = admission()
    assert left(judge, HELD, path) == 60
    assert left(judge, HELD) == 60
    assert left(judge, HELD, at=59) == 1
    refused = judge.examine(HELD.der, soon(61))
    assert isinstance(refused, Refused)
    assert refused.code is RefusalCode.EXPIRED
    assert refused.detail == f"a CA's certificate above it expired on {soon(60):%Y-%m-%d %H:%M:%S} UTC"


def test_a_ca_higher_up_ends_it_too() -> None:
    root = PKI.authority("Ending Root", not_after=soon(30))
    between = issuing(60, root=root)
    held = PKI.certify(METER, issuer=between)
    judge = admission()
    assert left(judge, held, [between, root]) == 30
    assert left(judge, held) == 30


def test_the_clients_own_certificate_ends_it_where_that_is_first() -> None:
    held = PKI.certify(METER, issuer=FIRST, not_after=soon(20))
    judge = admission()
    assert (left(judge, held, [FIRST]), left(judge, held)) == (20, 20)
    refused = judge.examine(held.der, soon(21))
    assert isinstance(refused, Refused)
    assert refused.detail.startswith("the certificate expired on")


def test_another_device_of_the_same_ca_has_told_of_it() -> None:
    judge = admission()
    left(judge, PKI.certify(Identity(DOMAIN, Role.DEVICE, "meter-2", "meters"), issuer=FIRST), [FIRST])
    assert left(judge, HELD) == 60


def test_of_a_ca_that_is_not_known_nothing_is_said() -> None:
    judge = admission()
    assert left(judge, HELD) == LONG
    assert left(judge, HELD, []) == LONG, "the client's own certificate is an anchor"
    left(judge, OF_ANOTHER, [ANOTHER])
    assert left(judge, HELD) == LONG


def test_a_renewed_certificate_of_the_ca_counts_for_who_comes_back() -> None:
    judge = admission()
    assert left(judge, HELD, [RENEWED]) == 600
    assert left(judge, HELD, [FIRST]) == 60
    assert left(judge, HELD) == 600


def test_who_stays_though_nobody_knows_what_is_above_him_stays() -> None:
    judge = admission()
    peer = judge.examine(HELD.der, NOW)
    assert isinstance(peer, Peer)
    assert peer.verified is None
    judge.stays(peer)
    assert not judge.stands_above(peer.certificate)


def test_other_anchors_are_another_generation() -> None:
    judge = admission()
    left(judge, HELD, [RENEWED])
    judge.believe(None)
    assert judge.trust_generation == 2
    assert left(judge, HELD, [FIRST]) == 60
    assert left(judge, HELD) == 60


def end_of(ends: PathEnds, key_id: bytes, held: Held) -> datetime | None:
    known = ends.known(key_id, held.der)
    return None if known is None else known.ends


@given(
    seen=st.lists(st.tuples(st.sampled_from([b"a", b"b"]), st.sampled_from([FIRST, RENEWED, ANOTHER]), st.booleans())),
    asked=st.tuples(st.sampled_from([b"a", b"b"]), st.sampled_from([HELD, OF_ANOTHER])),
)
def test_what_is_remembered_is_what_the_signatures_say(
    seen: list[tuple[bytes, Held, bool]], asked: tuple[bytes, Held]
) -> None:
    ends = PathEnds()
    for key_id, ca, with_root in seen:
        path = [b"client", der(ca), *([der(PKI.root)] if with_root else [])]
        verified = ends.verified(key_id, path)
        assert verified is not None
        assert (verified.ends, verified.above) == (ca.certificate.not_valid_after_utc, tuple(path[1:]))
    key_id, held = asked
    of_that_name = [ca for each, ca, _ in seen if each == key_id]
    signer = FIRST if held is HELD else ANOTHER
    issuers = [ca for ca in of_that_name if ca.key is signer.key]
    expected = max((ca.certificate.not_valid_after_utc for ca in issuers), default=None)
    if len({id(ca.key) for ca in of_that_name}) == 1:  # The identifier names one CA: it need not be asked who signed.
        expected = max(ca.certificate.not_valid_after_utc for ca in of_that_name)
    assert end_of(ends, key_id, held) == expected


def test_it_is_bounded_and_forgets_what_was_learned_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_ends, "MOST_PATHS", 2)
    ends = PathEnds()
    for ca in (RENEWED, FIRST, ANOTHER):
        ends.verified(b"a", [b"client", der(ca)])
    ends.verified(b"a", [b"client", der(ANOTHER)])  # It is known, and needs no room.
    assert len(ends) == 2
    assert end_of(ends, b"a", HELD) == FIRST.certificate.not_valid_after_utc
    ends.verified(b"b", [b"client", der(RENEWED)])
    ends.verified(b"b", [b"client", der(FIRST)])
    assert len(ends) == 2
    with pytest.raises(Forgotten):
        ends.known(b"a", HELD.der)
    with pytest.raises(Forgotten):
        ends.known(b"b", OF_ANOTHER.der)
    assert end_of(ends, b"b", HELD) == RENEWED.certificate.not_valid_after_utc


def test_who_has_the_key_of_a_revoked_ca_does_not_come_back_by_having_its_path_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A path length of zero allows self-issued CAs (RFC 5280 §6.1.4 l): as many paths as he likes."""
    monkeypatch.setattr(path_ends, "MOST_PATHS", 8)
    stolen = PKI.authority("Stolen CA", PKI.root)
    by_name = [PKI.authority("Stolen CA", stolen) for _ in range(9)]
    thief = PKI.certify(METER, issuer=by_name[0])
    judge = admission()
    left(judge, thief, [by_name[0], stolen, PKI.root])
    judge.status.index.add(stolen.revocation)
    for each in by_name[1:]:
        held, path = PKI.certify(METER, issuer=each), [each, stolen, PKI.root]
        refused = judge.examine(held.der, NOW, lambda held=held, path=path: [held.der, *map(der, path)])  # type: ignore[misc]
        assert isinstance(refused, Refused)
        assert refused.code is RefusalCode.ISSUER_REVOKED
    refused = judge.examine(thief.der, NOW)
    assert isinstance(refused, Refused), "he resumes his TLS session"
    assert (refused.code, refused.reason_code) == (RefusalCode.TRUST_CHANGED, ReasonCode.SERVER_UNAVAILABLE)
    assert (refused.identity, refused.serial) == (METER.uri, f"{thief.certificate.serial_number:x}")
    keys = tuple(key_identifier(each.key.public_key()) for each in (by_name[0], stolen, PKI.root))
    assert judge.is_revoked(thief.revocation.key, keys), "nor is his will sent"
    assert judge.is_revoked(thief.revocation.key), "as little if an older broker has stored nothing of the CAs above"
    # He may also say that he is another CA's; but whose signature it is, is looked at now.
    left(judge, HELD, [FIRST])
    assert left(judge, HELD) == 60
    assert not judge.is_revoked(HELD.revocation.key, (key_identifier(FIRST.key.public_key()),))
    as_first = PKI.certify(METER, issuer=by_name[0], authority_key_id=key_identifier(FIRST.key.public_key()))
    assert isinstance(judge.examine(as_first.der, NOW), Refused)
    assert judge.is_revoked(as_first.revocation.key, keys)


def test_of_many_cas_that_one_identifier_may_mean_few_are_asked_who_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs a signature; whoever has a CA's key gives as many the same identifier as he likes."""
    monkeypatch.setattr(path_ends, "_MOST_TRIED", 2)
    ends, key_id = PathEnds(), key_identifier(FIRST.key.public_key())
    for ca in (*(PKI.authority("Ending CA", FIRST) for _ in range(3)), ANOTHER, FIRST):
        ends.verified(key_id, [b"client", der(ca)])
    assert end_of(ends, key_id, HELD) == FIRST.certificate.not_valid_after_utc, "it is identified as is usual"
    with pytest.raises(Forgotten):
        ends.known(key_id, OF_ANOTHER.der)


@pytest.mark.parametrize("path", [[FIRST], [FIRST, PKI.root]])
def test_who_is_below_a_ca_that_the_feed_has_revoked_is_refused(path: list[Held]) -> None:
    judge = admission()
    assert not judge.stands_above(FIRST.revocation.key), "nobody has come by it"
    left(judge, HELD, path)
    assert judge.stands_above(FIRST.revocation.key)
    assert not judge.is_revoked(HELD.revocation.key)
    judge.status.index.add(ANOTHER.revocation)
    assert left(judge, HELD) == 60
    judge.status.index.add(FIRST.revocation)
    assert judge.is_revoked(HELD.revocation.key), "of what is known of nothing but its issuer, too"
    for shown in ([HELD.der, *map(der, path)], []):
        refused = judge.examine(HELD.der, NOW, lambda shown=shown: shown)  # type: ignore[misc]
        assert isinstance(refused, Refused)
        assert refused.code is RefusalCode.ISSUER_REVOKED
        assert refused.detail == "the CA CN=Ending CA is revoked (keyCompromise)"


def test_that_one_issuing_ca_is_an_anchor_says_nothing_of_another_that_is_revoked() -> None:
    """Of an anchor's clients all CAs above are known; what the will of another's is judged by is what was learned."""
    judge = admission()
    judge.believed = Trust([TrustBundle("", [PKI.root.certificate, ANOTHER.certificate])])
    left(judge, HELD, [FIRST, PKI.root])
    keys = tuple(key_identifier(each.key.public_key()) for each in (FIRST, PKI.root))
    assert not judge.is_revoked(HELD.revocation.key, keys)
    judge.status.index.add(FIRST.revocation)
    assert judge.is_revoked(HELD.revocation.key, keys)
    assert not judge.is_revoked(OF_ANOTHER.revocation.key, (key_identifier(ANOTHER.key.public_key()), keys[1]))


def test_who_comes_by_a_root_for_which_another_does_not_vouch_any_more_is_refused() -> None:
    """The certificate between two roots has the name of its own issuer, as a root has."""
    retired = PKI.authority("Test Root CA")
    cross = PKI.authority("Test Root CA", PKI.root, key=retired.key)
    below = PKI.authority("A thief's CA", retired)
    thief, judge = PKI.certify(METER, issuer=below), admission()
    assert left(judge, thief, [below, cross, PKI.root])
    judge.status.index.add(cross.revocation)
    for shown in ([thief.der, *map(der, [below, cross, PKI.root])], []):
        refused = judge.examine(thief.der, NOW, lambda shown=shown: shown)  # type: ignore[misc]
        assert isinstance(refused, Refused)
        assert refused.code is RefusalCode.ISSUER_REVOKED
    judge = admission()
    judge.status.index.add(cross.revocation)
    refused = judge.examine(thief.der, NOW, lambda: [thief.der, *map(der, [below, cross])])
    assert isinstance(refused, Refused), "also where that certificate is an anchor"


def test_a_ca_is_revoked_by_whatever_name_its_issuers_key_goes() -> None:
    as_it_says = FIRST.revocation.key
    by_the_key = b"as a list has it", FIRST.certificate.serial_number
    itself = whole_key(key_identifier(FIRST.key.public_key()))
    assert revoked_as(FIRST.certificate, by_the_key[0]) == (by_the_key, as_it_says, itself)
    assert revoked_as(FIRST.certificate, None) == revoked_as(FIRST.certificate, as_it_says[0]) == (as_it_says, itself)
    assert revoked_as(PKI.root.certificate, None) == (), "nobody has certified a root"


def test_of_a_path_that_is_forgotten_no_ca_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_ends, "MOST_PATHS", 1)
    ends = PathEnds()
    for ca in (FIRST, ANOTHER):
        ends.verified(b"a", [b"client", der(ca), der(PKI.root)])
        assert ends.revoked_as == {ca.revocation.key, whole_key(key_identifier(ca.key.public_key()))}


@pytest.mark.parametrize("resumed", [False, True])
def test_a_live_session_ends_with_the_ca(resumed: bool) -> None:
    broker = MemoryBroker()
    verified = [HELD.der, der(FIRST)]
    broker.engine.admission.examine(HELD.der, broker.wall, lambda: verified)
    meter = broker.open(HELD, path=() if resumed else verified)
    meter.connect(client_id="meter-1")
    broker.advance(59)
    assert not meter.closed
    broker.advance(2)
    assert str(meter.farewell().properties.reason_string).startswith(
        "EXPIRED: the certificate, or that of a CA above it, has expired"
    )


def test_whose_cas_are_forgotten_is_told_to_show_them_and_cannot_resume_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_ends, "MOST_PATHS", 1)
    broker = MemoryBroker()
    for held, issuer in ((HELD, FIRST), (OF_ANOTHER, ANOTHER)):
        broker.open(held, path=[held.der, der(issuer)])
    resumed, full = broker.open(HELD), broker.open(HELD, path=[HELD.der, der(FIRST)])
    answer = resumed.connect(client_id="meter-1", expect=ReasonCode.SERVER_UNAVAILABLE)
    assert str(answer.properties.reason_string).startswith("TRUST_CHANGED: the broker does not remember the CAs")
    full.connect(client_id="meter-1")
    assert (resumed.transport.forgets_tls_session, full.transport.forgets_tls_session) == ("at any price", None)


@pytest.mark.parametrize("delay", [0, 5])
@pytest.mark.parametrize("revoked", [False, True])
def test_the_will_of_a_client_whose_path_is_forgotten_while_it_is_connected_is_judged_by_that(
    monkeypatch: pytest.MonkeyPatch, delay: int, *, revoked: bool
) -> None:
    """In a fleet of more CAs than are remembered, wills of honest devices were not sent."""
    monkeypatch.setattr(path_ends, "MOST_PATHS", 1)
    broker, topic = MemoryBroker(), "fleet/meters/meter-1/event"
    watcher = broker.service()
    watcher.subscribe(topic)
    meter = broker.open(HELD, path=[HELD.der, der(FIRST), der(PKI.root)])
    meter.connect(
        client_id="meter-1",
        properties=Properties(session_expiry_interval=600),
        will=will(topic, b"gone", will_delay_interval=delay),
    )
    broker.open(OF_ANOTHER, path=[OF_ANOTHER.der, der(ANOTHER), der(PKI.root)])
    if delay:
        meter.vanish()
    if revoked:
        broker.engine.admission.status.index.add(FIRST.revocation)
    if not delay:
        meter.vanish()
    broker.advance(delay + 2)
    assert watcher.payloads() == ([] if revoked else [b"gone"])


@pytest.mark.parametrize("anchor", [True, False])
def test_who_is_an_anchor_has_no_cas_that_could_be_forgotten(monkeypatch: pytest.MonkeyPatch, *, anchor: bool) -> None:
    """Each time that it came back to its TLS session it was refused once, and its will was never sent."""
    monkeypatch.setattr(path_ends, "MOST_PATHS", 1)
    broker, held = MemoryBroker(), PKI.self_signed(METER)
    anchors = [PKI.root.certificate, *([held.certificate] if anchor else [])]
    broker.engine.admission.believed = Trust([TrustBundle("cafile", anchors)])
    watcher = broker.service()
    watcher.subscribe("fleet/#")
    for above in (FIRST, ANOTHER):
        broker.open(PKI.certify(METER, issuer=above), path=[HELD.der, der(above), der(PKI.root)])
    meter = broker.open(held)  # It resumes its TLS session.
    if not anchor:
        answer = meter.connect(client_id="meter-1", expect=ReasonCode.SERVER_UNAVAILABLE)
        assert str(answer.properties.reason_string).startswith("TRUST_CHANGED")
        return
    meter.connect(client_id="meter-1", will=will("fleet/meters/meter-1/event", b"gone"))
    meter.vanish()
    assert watcher.payloads() == [b"gone"]


def test_who_was_judged_by_cafile_is_found_in_a_list_though_his_certificate_identifies_its_issuer_otherwise() -> None:
    """A list belongs to a key; what such a certificate says of its issuer is any text."""
    held = PKI.certify(METER, issuer=FIRST, authority_key_id=b"as the CA's maker has it")
    judge, key_id = admission(), key_identifier(FIRST.key.public_key())
    peer = judge.examine(held.der, NOW, lambda: [held.der, der(FIRST)])
    assert isinstance(peer, Peer)
    assert peer.certificate[0] != key_id
    assert not judge.is_revoked(peer.certificate, peer.authorities)
    revoked = {peer.certificate[1]: pack(RevocationReason.KEY_COMPROMISE, NOW)}
    judge.status.index.publish(key_id, "a list", revoked)
    assert judge.is_revoked(peer.certificate, peer.authorities)
    judge.believe(Trust([TrustBundle("ours", [PKI.root.certificate])]))
    assert judge.is_revoked(peer.certificate, peer.authorities), "as when its CRLs begin to be used"


def test_what_other_anchors_have_vouched_for_is_not_learned_from_who_was_at_the_door_just_then() -> None:
    """His handshake began under an anchor that lasts longer, and is none any more when it ends."""
    broker = MemoryBroker()
    for changes, lasts in ((True, 600), (False, 60)):
        connection = ClientConnection(broker.engine, FakeTransport(), broker.now)
        if changes:
            broker.engine.admission.believe(None)
        ca = RENEWED if changes else FIRST
        connection.secured(HELD.der, broker.now, NOW, lambda ca=ca: [HELD.der, der(ca)])  # type: ignore[misc]
        assert connection.peer is not None
        assert connection.peer.seconds_left == lasts
        connection.lost("CONNECTION_LOST", broker.now)
    assert left(broker.engine.admission, HELD) == 60
