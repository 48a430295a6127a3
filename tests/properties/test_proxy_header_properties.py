"""The reader of PROXY headers, with any bytes in any portions: nothing but its answers, and never a byte too many."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from provisioning.program.proxy_header import LONGEST, InvalidHeader, ProxyHeader, read_header
from tests.support.proxy_headers import LOCAL, SIGNATURE, UNKNOWN, block, line


def flipped(header: bytes, at: int, bit: int) -> bytes:
    """Return *header* with one bit changed."""
    at %= len(header)
    return header[:at] + bytes([header[at] ^ 1 << bit]) + header[at + 1 :]


ports = st.integers(0, 65_535)
addresses = st.ip_addresses().map(str)
clients = st.tuples(addresses, ports)
fields = st.lists(st.tuples(st.integers(0, 255).filter(lambda kind: kind != 3), st.binary(max_size=60)), max_size=5)
headers = st.one_of(
    clients.map(lambda client: line(client, ("::1" if ":" in client[0] else "127.0.0.1", 1))),
    st.builds(lambda client, named: block(client, fields=named), clients, fields),
    st.sampled_from([LOCAL, UNKNOWN, block(None)]),
)
near = st.one_of(
    st.binary(max_size=40),
    st.binary(max_size=200).map(lambda rest: SIGNATURE + rest),
    st.binary(max_size=120).map(lambda rest: b"PROXY " + rest),
    st.text("PROXYTCUNKW46 .:0123456789abcdef\r\n", max_size=120).map(lambda rest: b"PROXY " + rest.encode()),
    st.builds(flipped, headers, st.integers(0, 400), st.integers(0, 7)),
)


@given(near)
def test_any_bytes_have_one_answer_however_they_are_divided(data: bytes) -> None:
    answers: list[ProxyHeader | str | None] = []
    for end in range(len(data) + 1):
        try:
            answers.append(read_header(data[:end]))
        except InvalidHeader:
            answers.append("refused")
    known = [each for each in answers if each is not None]
    assert answers[len(answers) - len(known) :] == known, "an answer is never taken back"
    assert len({*known}) <= 1, "and never another one"
    if known and isinstance(known[0], ProxyHeader):
        assert answers.index(known[0]) == known[0].size, "no byte behind the header is needed"
        assert known[0].size <= LONGEST


@given(clients, fields, st.binary(max_size=30))
def test_the_client_is_who_the_proxy_says(client: tuple[str, int], named: list[tuple[int, bytes]], rest: bytes) -> None:
    address = ipaddress.ip_address(client[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    is_ = (str(mapped or address), client[1])
    server = ("::1" if ":" in client[0] else "127.0.0.1", 1)
    for header in (line(client, server), block(client, fields=named)):
        assert read_header(header + rest) == ProxyHeader(len(header), is_)
