"""DER taken apart, changed element by element, and put together with lengths that are right again.

    tree = parse(der)          # None: it is no DER
    encode(tree) == der
    mutated(der, random, pool) # an element changed, removed, doubled, moved, or taken from another file

Bits flipped anywhere are nearly always refused at the first length that does not fit: what is behind it is never
reached. OCTET STRINGs and BIT STRINGs that hold DER are taken apart, too, as extensions and keys are.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from provisioning.ca.der import BIT_STRING, SEQUENCE, element
from provisioning.pki.keys import PrivateKey

_ECDSA: Final = bytes.fromhex("300a06082a8648ce3d040302")
"""The algorithm of a signature: ecdsa-with-SHA256."""
_DEEPEST: Final = 14
_LONG: Final = 0x80
_CONSTRUCTED: Final = 0x20
_BIT_STRING, _OCTET_STRING = 3, 4
_INTEGERS: Final = {2, 10}
_TIMES: Final = {0x17, 0x18}
_TAGS: Final = bytes.fromhex(
    "00 01 02 03 04 05 06 0a 0c 13 16 17 18 1c 1e 1f 30 31 80 81 82 83 84 86 87 a0 a1 a2 a3 a4 bf"
)
_TIME_VALUES: Final = (
    *(b"99991231235959Z", b"20500101000000Z", b"00000101000000Z", b"00010101000000Z", b"19700101000000Z"),
    *(b"500101000000Z", b"491231235959Z", b"000101000000Z", b"0001010000Z", b"20260230000000Z", b"20261231235960Z"),
)
_NUMBERS: Final = (
    b"",
    b"\0",
    b"\1",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\0\0",
    b"\0\x80",
    b"\x7f" * 21,
    b"\xff" * 9,
    b"\1" * 200,
    b"\1" * 2000,
)
_STRINGS: Final = (
    *(b"", b"\0", b"\xff\xfe", b"\xd8\0", b"\xc3\x28", b"1", b"a.b", b"*.x", b"x@y", b"xn--", b"-.-", b"a" * 65),
    *(b"spiffe://fleet.internal/device/meters/meter-1", b"http://[", b"http://x:99999999/", b"\x7f\0\0\1", b"\0" * 16),
)


@dataclass(slots=True)
class Node:
    """An element: its *tag*, and its content, or the elements in it behind *before* (a BIT STRING's first octet)."""

    tag: int
    content: bytes | list[Node]
    before: bytes = b""


def parse(der: bytes, depth: int = 0) -> list[Node] | None:
    """Return the elements one after another in *der*; None if they are none."""
    nodes: list[Node] = []
    place = 0
    while place < len(der):
        if place + 2 > len(der):
            return None
        tag, length = der[place], der[place + 1]
        place += 2
        if length >= _LONG:
            size = length - _LONG
            if not 0 < size <= 4 or place + size > len(der):
                return None
            length = int.from_bytes(der[place : place + size], "big")
            place += size
        if place + length > len(der):
            return None
        nodes.append(_node(tag, der[place : place + length], depth))
        place += length
    return nodes


def _node(tag: int, content: bytes, depth: int) -> Node:
    before = content[:1] if tag == _BIT_STRING and content[:1] == b"\0" else b""
    if depth < _DEEPEST and len(content) > 1 and (tag & _CONSTRUCTED or tag == _OCTET_STRING or before):
        inner = parse(content[len(before) :], depth + 1)
        if inner and (not before or inner[0].tag & _CONSTRUCTED):
            return Node(tag, inner, before)
    return Node(tag, content)


def encode(nodes: Sequence[Node]) -> bytes:
    """Return *nodes* in DER."""
    return b"".join(element(bytes([each.tag]), each.before + _inside(each)) for each in nodes)


def _inside(node: Node) -> bytes:
    return node.content if isinstance(node.content, bytes) else encode(node.content)


def signed_by(what: bytes, key: PrivateKey) -> bytes:
    """Return *what* as it is signed with *key*."""
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = key.sign(what, ec.ECDSA(hashes.SHA256()))
    return element(SEQUENCE, what + _ECDSA + element(BIT_STRING, b"\0" + signature))


def first_inside(der: bytes) -> Node | None:
    """Return what is signed in *der*."""
    tree = parse(der)
    inside = tree[0].content if tree else b""
    return inside[0] if isinstance(inside, list) and inside else None


def places(nodes: list[Node]) -> list[tuple[list[Node], int]]:
    """Return where each element is, at any depth: a list, and a place in it."""
    found = []
    for place, node in enumerate(nodes):
        found.append((nodes, place))
        if isinstance(node.content, list):
            found += places(node.content)
    return found


def mutated(der: bytes, chance: random.Random, pool: Sequence[bytes]) -> bytes | None:
    """Return *der* with one to three elements changed; None if it is no DER. Others may come from those in *pool*."""
    nodes = parse(der)
    if not nodes:
        return None
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        if not (found := places(nodes)):
            break
        siblings, place = chance.choice(found)
        _change(siblings, place, chance, pool)
    return encode(nodes)


def _change(siblings: list[Node], place: int, chance: random.Random, pool: Sequence[bytes]) -> None:
    node = siblings[place]
    match chance.randrange(10):
        case 0:
            del siblings[place]
        case 1:
            siblings.insert(place, Node(node.tag, node.content, node.before))
        case 2:
            node.tag = chance.choice(_TAGS)
        case 3 if isinstance(node.content, bytes) and node.content:
            changed = bytearray(node.content)
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
            node.content = bytes(changed)
        case 4 if isinstance(node.content, bytes):
            node.content *= chance.choice((0, 2, 3, 20))
        case 5 | 6 if pool:
            others = places(parse(chance.choice(pool)) or [node])
            alike = [each for each in others if each[0][each[1]].tag == node.tag] or others
            taken = chance.choice(alike)
            siblings[place] = taken[0][taken[1]]
        case 7:
            other = chance.randrange(len(siblings))
            siblings[place], siblings[other] = siblings[other], siblings[place]
        case _:
            known = _TIME_VALUES if node.tag in _TIMES else _NUMBERS if node.tag in _INTEGERS else _STRINGS + _NUMBERS
            node.content, node.before = chance.choice(known), b""
