"""What the CA of a trusted partner may sign: names in any encoding, and lists of revoked certificates.

All is signed with the right key: what a signature keeps out is not what is tried here. An input for names is a list of
them: where each stands, the tag of its string, its length, its octets.
"""

from __future__ import annotations

import asyncio
import functools
import re
import ssl
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from broker.admission.admission import Admitted
from broker.admission.peer import Peer
from broker.admission.refusal import Refused
from provisioning.ca.der import OCTET_STRING, SEQUENCE, SET, element
from provisioning.pki.crl import CrlRefused, parse
from provisioning.pki.extension import UNREADABLE
from provisioning.pki.identity import SCHEME, parse_uri
from provisioning.pki.keys import key_identifier
from tests.fuzz.certificates import lists
from tests.fuzz.der import encode, first_inside, signed_by
from tests.fuzz.target import Disagreement, Target, agree
from tests.support.bundles import PKI, PLANT, PLANT_DOMAIN, admission, bundle, foreign
from tests.support.crl import crl
from tests.support.pki import Held, shared_device
from tests.support.wire import V5, connect_packet
from tests.unit.broker.sources.test_crl_intake import Receiving

_PLACE: Final = tempfile.TemporaryDirectory()
"""Removed when the process ends."""
_TAGS: Final = bytes.fromhex("0c 13 16 1e 14 1c 1a 12 03 04 15 80 30 01")
"""Of strings, the usual ones first; and of what is none."""
_COMMON_NAME, _ORGANISATION, _UNIT = (bytes.fromhex(each) for each in ("0603550403", "060355040a", "060355040b"))
_SUBJECT: Final = (_COMMON_NAME, _ORGANISATION, _UNIT, _COMMON_NAME)
"""The last is in one set with what is before it."""
_ALTERNATIVE: Final = (b"\x86", b"\x82", b"\x81", b"\x87", b"\xa0", b"\xa4")
"""URI, DNS name, email address, IP address, something else, directory name (RFC 5280 §4.2.1.6)."""
_ALTERNATIVE_NAMES: Final = bytes.fromhex("0603551d11")
_MOST: Final = 12
_PATTERNS: Final = {
    "common-name": r"(?P<name>.+)",
    "san-dns": r"(?P<name>[^.]+)\.plant\.example",
    "san-uri": r"urn:dev:(?P<name>.+)",
    "san-email": r"(?P<name>[^@]+)@plant\.example",
    "san-ip": r"10\.(?P<name>.+)",
    "subject": r"(?:.*,)?CN=(?P<name>[^,+]+)(?:[,+].*)?",
}
_JUDGES: Final = {
    source: admission(bundle(PLANT, identity=({"source": source, "pattern": pattern, "group": "plant"},)))
    for source, pattern in _PATTERNS.items()
}
_OWN: Final = admission(bundle(PKI.root))
_VICTIMS: Final = ("meter-1", "meter-2", "m")


def _with_names(of: Held, data: bytes, issuer: Held) -> bytes:
    """Return the certificate *of* somebody with the names in *data*, signed by *issuer*."""
    subject: list[list[bytes]] = []
    alternative = b""
    place = count = 0
    while place + 3 <= len(data) and count < _MOST:
        where, tag, size = data[place] % 10, _TAGS[data[place + 1] % len(_TAGS)], data[place + 2]
        content = data[place + 3 : place + 3 + size]
        place, count = place + 3 + size, count + 1
        if where < len(_SUBJECT):
            attribute = element(SEQUENCE, _SUBJECT[where] + element(bytes([tag]), content))
            if where == len(_SUBJECT) - 1 and subject:
                subject[-1].append(attribute)
            else:
                subject.append([attribute])
        else:
            alternative += element(_ALTERNATIVE[where - len(_SUBJECT)], content)
    before, after, extensions = _parts(of.der)
    names = element(SEQUENCE, b"".join(element(SET, b"".join(sorted(each))) for each in subject))
    if alternative:
        extensions += element(SEQUENCE, _ALTERNATIVE_NAMES + element(OCTET_STRING, element(SEQUENCE, alternative)))
    return signed_by(
        element(SEQUENCE, before + names + after + element(b"\xa3", element(SEQUENCE, extensions))), issuer.key
    )


@functools.cache
def _parts(der: bytes) -> tuple[bytes, bytes, bytes]:
    """Return what is before the subject of a certificate, what is behind it, and the extensions but for names."""
    asked = first_inside(der)
    assert asked is not None
    fields: Any = asked.content
    kept = [each for each in fields[7].content[0].content if encode([each.content[0]]) != _ALTERNATIVE_NAMES]
    return encode(fields[:5]), encode(fields[6:7]), encode(kept)


def _as_openssl_reads(der: bytes) -> dict[str, list[str]] | None:
    """Return the names by their source; None: it cannot read them."""
    path = Path(_PLACE.name, "names.pem")
    path.write_text(ssl.DER_cert_to_PEM_cert(der))
    decoder: Any = ssl
    try:
        read = decoder._ssl._test_decode_cert(str(path))
    except (ssl.SSLError, ValueError, UnicodeError):
        return None
    names = list(read.get("subjectAltName", ()))
    kinds = {"san-uri": "URI", "san-dns": "DNS", "san-email": "email", "san-ip": "IP Address"}
    found = {source: [value for kind, value in names if kind == named] for source, named in kinds.items()}
    found["san-ip"] = [_address(each) for each in found["san-ip"]]
    found["common-name"] = [value for each in read["subject"] for kind, value in each if kind == "commonName"]
    return found


def _address(text: str) -> str:
    try:
        return str(ip_address(text.strip()))
    except ValueError:
        return text


def _expected(source: str, read: dict[str, list[str]]) -> set[str]:
    """Return the names that a certificate may have by *source*."""
    if source == "subject":  # By any of its Common Names, if the pattern leaves that open, and by nothing else.
        return set(read["common-name"])
    found = [re.fullmatch(_PATTERNS[source], each) for each in read[source]]
    names = {each["name"] for each in found if each is not None}
    return names if len(names) == 1 else set()


def _names(data: bytes) -> None:
    """Whoever is admitted is who OpenSSL reads, with the topics and the client identifier of nobody else."""
    now = datetime.now(UTC)
    der = _with_names(_FOREIGN, data, PLANT)
    read = _as_openssl_reads(der)
    for source, judge in _JUDGES.items():
        peer = judge.examine(der, now, lambda: (der, PLANT.der))
        if isinstance(peer, Refused):
            str(peer.detail).encode()
            continue
        if read is None:
            continue  # No handshake with it succeeds.
        if peer.identity.name not in _expected(source, read):
            raise Disagreement(f"{source}: {peer.identity} is not in {read}")
        agree("the domain and the group", (peer.identity.trust_domain, peer.identity.group), (PLANT_DOMAIN, "plant"))
        _is_nobody_else(judge, peer)
    der = _with_names(_OURS, data, PKI.issuing)
    peer = _OWN.examine(der, now, lambda: (der, PKI.issuing.der, PKI.root.der))
    if isinstance(peer, Peer):
        if (read := _as_openssl_reads(der)) is None:
            return
        agree("our URI", [each for each in read["san-uri"] if each.startswith(SCHEME)], [peer.identity.uri])
        agree("the Common Name", read["common-name"], [peer.identity.name])
        _is_nobody_else(_OWN, peer)


def _is_nobody_else(judge: Any, peer: Peer) -> None:
    identity = peer.identity
    agree("parsed again", parse_uri(identity.uri), identity)
    for victim in _VICTIMS:
        admitted = judge.admit(peer, connect_packet(V5, client_id=victim), 0.0)
        if isinstance(admitted, Admitted) and identity.name != victim:
            raise Disagreement(f"{identity} is admitted as {victim}")
    if identity.group is None:
        return
    permissions = judge.permissions(identity, identity.name)
    for group in ("plant", "meters", "north"):
        for name in _VICTIMS:
            topic = f"fleet/{group}/{name}/t"
            if permissions.may_publish(topic) and (identity.group, identity.name) != (group, name):
                raise Disagreement(f"{identity} may publish to {topic}")


def _item(where: int, content: str | bytes, tag: int = 0) -> bytes:
    octets = content.encode() if isinstance(content, str) else content
    return bytes([where, tag, len(octets)]) + octets


_FOREIGN: Final = foreign()
_OURS: Final = shared_device("meter-1")
_URI: Final = "spiffe://fleet.internal/device/meters/meter-1"
_SEEDS: Final = [
    _item(0, "meter-1") + _item(4, _URI),
    _item(0, "meter-1") + _item(4, _URI) + _item(4, _URI.upper()),
    _item(0, "meter-1") + _item(4, _URI) + _item(4, _URI.replace("-1", "-2")),
    _item(0, "meter-1\0.evil") + _item(4, _URI + "\0"),
    _item(0, "meter-1".encode("utf-16-be"), 3) + _item(1, "Plant"),
    _item(0, "meter-1".encode("utf-32-be"), 5),
    _item(0, "meter-1", 4) + _item(0, "meter-2", 1),
    _item(1, "Plant,CN=meter-2") + _item(0, "meter-1"),
    _item(1, "Plant+CN=meter-2") + _item(3, "meter-1") + _item(2, 'CN="meter-2"'),
    _item(5, "meter-1.plant.example") + _item(5, "METER-1.PLANT.EXAMPLE"),
    _item(5, "meter-1.plant.example\0.evil.example"),
    _item(4, "urn:dev:meter-1") + _item(4, "urn:dev:meter%2d1"),
    _item(6, "meter-1@plant.example") + _item(6, '"meter-1@plant.example"@evil.example'),
    _item(7, b"\x0a\1\2\3"),
    _item(7, b"\x0a\1\2\3") + _item(7, bytes(16)) + _item(7, b"\x0a\1"),
    _item(0, "meter\u200b-1") + _item(0, "\u202emeter-1") + _item(0, "\uff4deter-1"),
    _item(0, "m/#") + _item(0, "+"),
    _item(0, "xn--mter-1-bva") + _item(0, "m" * 65) + _item(8, b"\6\3\x2a\3\4\xa0\3\x0c\1a") + _item(9, b"\x30\0"),
]
_WORDS: Final = [
    *(b"meter-1", b"meter-2", b"CN=", b",CN=meter-2", b"+CN=", b"\\,", b"\\", b'"', b"#", b"=", b";", b"<", b"\n"),
    *(b"\0", b"%2d", b"%00", b"\xe2\x80\x8b", b"\xe2\x80\xae", b"\xef\xbd\x8d", b"xn--", b".plant.example"),
    *(b"@plant.example", b"urn:dev:", _URI.encode(), b"spiffe://", b"/../", b"\xc4\xb0", b"\xc5\xbf", b"$share/"),
]
_SERIALS: Final = range(1, 9)


class _Here(ThreadPoolExecutor):
    """Does what is for a thread at once: handing it over would take longer."""

    def submit(self, what: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        done = Future[Any]()
        try:
            done.set_result(what(*arguments, **named))
        except Exception as error:  # noqa: BLE001 - It is raised where the result is awaited.
            done.set_exception(error)
        return done


_HELD: Final[list[asyncio.Runner]] = []
"""The event loop, while there is one."""


@contextmanager
def _running() -> Iterator[None]:
    with asyncio.Runner() as runner:
        runner.get_loop().set_default_executor(_Here())
        _HELD.append(runner)
        try:
            yield
        finally:
            _HELD.pop()


def _listed(data: bytes) -> None:
    """After a list that was used comes another: it is used whole, or nothing has changed; and is no exception."""
    signed = first_inside(data)
    _HELD[-1].run(_taken(signed_by(encode([signed]), PKI.issuing.key) if signed else data))


async def _taken(der: bytes) -> None:
    receiving = Receiving(PKI.root, PKI.issuing)
    await receiving.take(_BEFORE, "file")
    shelf, index = receiving.broker.engine.admission.status.lists, receiving.broker.engine.admission.status.index
    before = _revoked_in(index)
    agree("what was revoked before", before, set(_SERIALS))
    await receiving.take(der, "file")
    receiving.intake.alarm()
    for held in shelf.held:
        f"{held.number} {held.this_update} {held.fresh_until} {held.late_from}".encode()
    shelf.overdue(_KEY_ID, datetime.now(UTC), is_authority=False, names=frozenset({"http://x/y.crl"}))
    after = _revoked_in(index)
    told = [each for each in receiving.problems if each not in {"CRL_LATE", "CRL_EXPIRED"}]
    try:
        read = parse(der)
        listed, removed = _entries(x509.load_der_x509_crl(der))
    except (CrlRefused, *UNREADABLE):
        agree("after one that cannot be read", after, before)
        return
    is_news = after != before
    if set(told) == {"CRL_OLDER"}:  # If it contradicts the one in use, whom it revokes is revoked nevertheless.
        agree("who is revoked besides", after in (before, before | listed), other=True)
    elif told and is_news:
        raise Disagreement(f"{told}, and yet {before} became {after}")
    if is_news and not told:
        agree("who is revoked", listed <= after, other=True)
    if gone := before - after:
        is_delta = read.base_number is not None
        allowed = removed if is_delta else before - listed
        if not gone <= allowed or read.number < _NUMBER:
            raise Disagreement(f"{gone} are released by {read.number}, which has {listed} and removes {removed}")


def _revoked_in(index: Any) -> set[int]:
    return {serial for serial in (*_SERIALS, *range(9, 90)) if index.find((_KEY_ID, serial)) is not None}


def _entries(found: x509.CertificateRevocationList) -> tuple[set[int], set[int]]:
    """Return who is revoked in it, of those that are looked for, and who is removed."""
    listed, removed = set[int](), set[int]()
    for each in found:
        reasons = [one.value.reason for one in each.extensions if isinstance(one.value, x509.CRLReason)]
        if x509.ReasonFlags.remove_from_crl in reasons:
            removed.add(each.serial_number)
            listed.discard(each.serial_number)
        else:
            listed.add(each.serial_number)
            removed.discard(each.serial_number)
    return {each for each in listed if 0 < each < 90}, removed


_NUMBER: Final = 5
_KEY_ID: Final = key_identifier(PKI.issuing.certificate.public_key())
_BEFORE: Final = crl(PKI.issuing, dict.fromkeys(_SERIALS, x509.ReasonFlags.certificate_hold), number=_NUMBER)
_LATER: Final = [
    crl(PKI.issuing, dict.fromkeys(_SERIALS), number=6),
    crl(PKI.issuing, {1: x509.ReasonFlags.remove_from_crl, 11: None}, number=7, base=5),
    crl(PKI.issuing, {9: None}, number=5),
    crl(PKI.issuing, {9: None}, number=6, age=timedelta(minutes=30)),  # Number and date contradict those in use.
    crl(PKI.issuing, {9: None}, number=6, age=timedelta(minutes=30), base=5),
    crl(PKI.issuing, {9: x509.ReasonFlags.key_compromise}, number=6, freshest="http://x/d.crl"),
    *lists(),
]

TARGETS: Final = (
    Target("names", _names, _SEEDS, words=_WORDS, longest=400),
    Target("lists", _listed, _LATER, is_der=True, longest=4096, around=_running),
)
