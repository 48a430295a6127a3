"""Ports: one pair of sockets, or a pair for each worker, on real sockets of the loopback addresses."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

from provisioning.config import Settings, load_settings
from provisioning.connections.listening import Listening, bound, bound_for, check_public
from provisioning.directory.in_charge import in_charge
from provisioning.directory.whereabouts import lock_of
from provisioning.errors import ConfigurationError
from provisioning.program.unbound_socket import unbound
from tests.support.unanswered import named

HOSTS = ["127.0.0.1", "::1", "localhost"]


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@pytest.mark.parametrize("host", HOSTS)
def test_workers_have_sockets_of_their_own_on_the_same_two_ports(host: str) -> None:
    with bound_for(Settings(host=host, port=0, http_port=0), 3) as places:
        assert len({each.https_url for each in places}) == 1
        assert len({each.http_url for each in places}) == 1
        assert places[0].https_url.startswith(f"https://[{host}]:" if ":" in host else f"https://{host}:")
        assert places[0].http_url.startswith("http://")
        assert places[0].https_url.rpartition(":")[2] != places[0].http_url.rpartition(":")[2]
        for each in places:
            each.https.listen()


def test_an_address_of_ipv6_takes_no_connection_over_ipv4() -> None:
    """Whatever the kernel's default."""
    settings = Settings(host="::1", port=0, http_port=0)
    with bound(settings) as alone, bound_for(settings, 1) as (shared,):
        for each in (alone.https, alone.http, shared.https, shared.http):
            assert each.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


@pytest.mark.parametrize(
    ("addresses", "family"), [(["::1"], "AF_INET6"), (["::1", "127.0.0.1"], "AF_INET"), (["127.0.0.1"], "AF_INET")]
)
def test_a_name_is_listened_on_at_the_address_that_it_has(
    addresses: list[str], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", named({"ca.example": addresses}))
    with unbound("ca.example") as made:
        assert made.family is socket.AddressFamily[family]


@pytest.mark.parametrize("host", ["x" * 64, "nul\0", "no such name"])
def test_a_name_that_nobody_has_is_told_as_such(host: str) -> None:
    with pytest.raises(ConfigurationError, match="host: "), bound(Settings(host=host, port=0, http_port=0)):
        pass


@pytest.mark.parametrize("host", ["::", "0::0"])
def test_the_address_that_is_all_takes_connections_over_ipv4_too(host: str) -> None:
    with bound_for(Settings(host=host, port=0, http_port=0), 1) as (shared,):  # Bound; nobody listens.
        for each in (shared.https, shared.http):
            assert not each.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("theirs", [1, 2])
@pytest.mark.parametrize("ours", [1, 2])
def test_a_port_where_anybody_listens_is_refused_whoever_has_workers(host: str, theirs: int, ours: int) -> None:
    settings = Settings(host=host, port=0, http_port=0)
    with bound_for(settings, 2) as places, bound(settings) as alone:
        for each in places:
            each.http.listen()
        taken = settings.model_copy(update={"http_port": port_of((places[0] if theirs == 2 else alone).http_url)})
        with pytest.raises(
            ConfigurationError,
            match=f"^http_port {taken.http_port} on {host} cannot be used: Address already in use "
            rf"\(ss -ltnp 'sport = :{taken.http_port}' says by whom\); choose",
        ):
            (bound(taken) if ours == 1 else bound_for(taken, 2)).__enter__()


@pytest.mark.parametrize("listen", [bound, lambda settings: bound_for(settings, 1)], ids=["alone", "for workers"])
def test_what_cannot_be_bound_is_said_by_its_setting(
    listen: Callable[[Settings], AbstractContextManager[object]],
) -> None:
    with bound(Settings(port=0, http_port=0)) as theirs:
        port = port_of(theirs.https_url)
        with pytest.raises(ConfigurationError, match=f"^port {port} on 127.0.0.1 cannot be used"):
            listen(Settings(port=port, http_port=0)).__enter__()
    for host, said in (
        ("a..b", r"^host: cannot listen on a\.\.b: [\w ]+; give an address that this machine has"),
        ("192.0.2.1", "^host: cannot listen on 192.0.2.1: Cannot assign requested address; give an address"),
        ("ä" * 64, "^host: 'ä+' is no name of a host"),
        ("a\0", "^host: .* is no name of a host"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            listen(Settings(host=host, port=0, http_port=0)).__enter__()


@pytest.mark.parametrize("listen", [bound, lambda settings: bound_for(settings, 1)], ids=["alone", "for workers"])
def test_a_port_that_the_directorys_own_service_has_is_told_so(
    listen: Callable[[Settings], AbstractContextManager[object]], tmp_path: Path
) -> None:
    settings = Settings(directory=tmp_path, port=0, http_port=0)
    with bound(settings) as theirs:
        taken = settings.model_copy(update={"http_port": port_of(theirs.http_url)})
        with pytest.raises(ConfigurationError, match=r"cannot be used: Address already in use \(.*\); choose another"):
            listen(taken).__enter__()
        with (
            in_charge(tmp_path, theirs.https_url, os.getpid(), alone=True),
            pytest.raises(
                ConfigurationError,
                match=f"^http_port {taken.http_port} on 127.0.0.1 is in use: {tmp_path} is served already, by process "
                f"{os.getpid()}, at https://localhost:{port_of(theirs.https_url)}: stop that first",
            ),
        ):
            listen(taken).__enter__()


def test_a_port_that_the_service_of_a_copied_directory_has_is_told_so(tmp_path: Path) -> None:
    original, copy = tmp_path / "fleet", tmp_path / "copy"
    for each in (original, copy):
        each.mkdir()
    with (
        bound(Settings(directory=original, port=0, http_port=0)) as theirs,
        subprocess.Popen(
            [sys.executable, "-c", "input(0)", "-m", "provisioning", "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process,
        in_charge(original, theirs.https_url, process.pid, alone=True),
    ):
        assert process.stdout is not None
        assert process.stdout.read(1) == b"0"  # Just after exec(2) its command line can still be empty.
        shutil.copy(lock_of(original), copy)
        taken = Settings(directory=copy, port=port_of(theirs.https_url), http_port=0)
        told = f"^port {taken.port} on 127.0.0.1 is in use: {copy} seems to be a copy of .* that process {process.pid} "
        with pytest.raises(ConfigurationError, match=told):
            bound(taken).__enter__()
        written = lock_of(copy).read_text()
        process.communicate()
        for number in (process.pid, os.getpid()):  # It has ended; a container gives the same number to each start.
            lock_of(copy).write_text(written.replace(str(process.pid), str(number)))
            with pytest.raises(ConfigurationError, match="cannot be used: Address already in use"):
                bound(taken).__enter__()


def test_what_is_closed_listens_no_more() -> None:
    with bound(Settings(port=0, http_port=0)) as listening:
        listening.close()
        assert (listening.https.fileno(), listening.http.fileno()) == (-1, -1)


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("192.0.2.1", False), ("localhost.example", False),
    ],
)  # fmt: skip
def test_others_can_connect_only_where_that_is_said(host: str, *, is_loopback: bool) -> None:
    check_public(Settings(host=host, public_listener=True))
    if is_loopback:
        check_public(Settings(host=host))
    else:
        with pytest.raises(ConfigurationError, match="say that they may: --public-listener"):
            check_public(Settings(host=host))


def test_the_file_or_variable_that_says_so_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "provisioning.toml"
    with bound(Settings(port=0, http_port=0)) as theirs:
        port = port_of(theirs.https_url)
        file.write_text(f"port = {port}\nhttp_port = 0\n")
        taken = f"port {port} on 127.0.0.1 cannot be used: Address already in use"
        assert refusal(load_settings(tmp_path)).startswith(f"{file}: {taken}")
        assert refusal(load_settings(tmp_path, port=port)).startswith(taken), "a flag is before one's eyes"
        monkeypatch.setenv("FLEET_PROVISIONING_PORT", str(port))
        assert refusal(load_settings(tmp_path)).startswith(f"FLEET_PROVISIONING_PORT: {taken}")
    monkeypatch.delenv("FLEET_PROVISIONING_PORT")
    for host in ("0.0.0.0", "[::1]", "::ffff:7f00:1"):
        file.write_text(f'host = "{host}"\n')
        assert refusal(load_settings(tmp_path)).startswith(f"{file}: host: {host}")
    for host in ("192.0.2.1", "x" * 64):  # An address of another machine, and what is no name.
        file.write_text(f'host = "{host}"\npublic_listener = true\n')
        assert refusal(load_settings(tmp_path)).startswith(f"{file}: host: ")


def refusal(settings: Settings) -> str:
    """Return why nobody can listen there."""
    try:
        check_public(settings)
        with bound(settings):
            pass
    except ConfigurationError as error:
        return str(error)
    raise AssertionError(f"port {settings.port} on {settings.host} is free")


def test_one_that_is_interrupted_gets_nothing_until_it_listens_again() -> None:
    with bound_for(Settings(port=0, http_port=0), 2) as (one, other):
        one.interrupt()  # Nobody listens there yet: no error.
        for each in (one, other):
            each.https.listen(64)
            each.https.setblocking(False)
        assert accepted(one, other) == {one, other}
        for _ in range(2):  # The second time nobody listens: the worker that should have listened again has died, too.
            one.interrupt()
        assert accepted(one, other) == {other}
        one.https.listen(64)
        assert accepted(one, other) == {one, other}


def accepted(*places: Listening) -> set[Listening]:
    """Connect 40 times, and return whose sockets have got some: that one of two gets none of 40 is no chance.

    What is sent must arrive: a socket can accept connections that have ended already.
    """
    found = set()
    for _ in range(40):
        with socket.create_connection(("127.0.0.1", port_of(places[0].https_url)), timeout=10) as made:
            made.sendall(b"x")
            for each in places:
                with suppress(OSError):  # Nothing has come, or it does not listen.
                    taken = each.https.accept()[0]
                    with taken:
                        assert taken.recv(1) == b"x"
                    found.add(each)
    return found


def test_an_address_in_brackets_is_told_without_them() -> None:
    with pytest.raises(ConfigurationError, match=r"^host: \[::1\]: write an address without brackets: ::1$"):
        check_public(Settings(host="[::1]", public_listener=True))


@pytest.mark.parametrize("host", ["::ffff:127.0.0.1", "::FFFF:7f00:1"])
def test_an_address_of_ipv4_written_as_ipv6_is_told_without_that(host: str) -> None:
    """No port would help: a socket for IPv6 alone cannot be bound to it."""
    with pytest.raises(ConfigurationError, match=rf"^host: {host}: write an address of IPv4 as such: 127\.0\.0\.1$"):
        check_public(Settings(host=host, public_listener=True))


@pytest.mark.parametrize("host", ["::", "0::0", "0.0.0.0", "::ffff:0.0.0.0", "0"])
def test_every_address_has_to_be_allowed(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^host: "):
        check_public(Settings(host=host))
