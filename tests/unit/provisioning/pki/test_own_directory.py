"""Whose directory it is: of each way in which a stranger may write there, or has, and of none beside them."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from provisioning.pki.own_directory import ForeignDirectory, check_own, enter, user_name

US = os.geteuid()
NOBODY = 59_999
"""Another user, who is not root."""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    enter(directory, US)
    (directory / "broker.db").touch(0o600)
    return directory


def test_it_is_made_its_user_s_alone_also_where_the_umask_says_nothing(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        enter(tmp_path / "above" / "state", US)
    finally:
        os.umask(before)
    assert (tmp_path / "above" / "state").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("mode", "remedy"),
    [
        (0o770, "chmod -R go-w {}"),
        (0o702, "chmod -R go-w {}"),
        (0o777, "chmod -R go-w {}"),
        (0o1777, "name a directory below {}, which is then made with mode 0700"),  # /tmp: many use it.
    ],
)
def test_a_directory_where_others_write_is_refused(own: Path, mode: int, remedy: str) -> None:
    own.chmod(mode)
    with pytest.raises(ForeignDirectory, match=f"^{own} has mode {mode:04o}: .* {remedy.format(own)}$"):
        enter(own, US)


def _opened_to_its_group(own: Path) -> None:
    """As a mount of Kubernetes does it, each time, to all there is, where a pod has an `fsGroup`."""
    (own / "anchors").mkdir(0o700)
    for each in (own, *own.rglob("*")):
        each.chmod(each.stat().st_mode | (0o2770 if each.is_dir() else 0o660))


def test_one_remedy_is_enough_for_all_that_a_mount_has_opened_to_a_group(own: Path) -> None:
    _opened_to_its_group(own)
    with pytest.raises(ForeignDirectory) as refused:
        enter(own, US)
    assert refused.value.group_alone
    _type_what_it_says(refused.value)
    enter(own, US)


def _type_what_it_says(refused: ForeignDirectory) -> None:
    subprocess.run(["/bin/sh", "-c", str(refused).rpartition("and then ")[2]], check=True)


@pytest.mark.parametrize("name", ["its fleet's", "$HOME", "-R"])
def test_what_it_says_is_typed_as_it_stands(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path(name)
    enter(own, US)
    own.chmod(0o770)
    with pytest.raises(ForeignDirectory) as refused:
        enter(own, US)
    _type_what_it_says(refused.value)
    enter(own, US)


def test_a_link_to_where_many_write_is_not_to_be_closed_for_them(own: Path, tmp_path: Path) -> None:
    (tmp_path / "for many").mkdir()
    (tmp_path / "for many").chmod(0o1777)
    (own / "link").symlink_to(tmp_path / "for many")
    own.chmod(0o755)
    with pytest.raises(ForeignDirectory, match=r"; remove this link, or have it lead elsewhere$"):
        enter(own, US)


def test_what_a_link_leads_to_is_put_right_by_the_link_s_name(own: Path, tmp_path: Path) -> None:
    (tmp_path / "policy").touch()
    (tmp_path / "policy").chmod(0o666)
    (own / "policy").symlink_to(tmp_path / "policy")
    own.chmod(0o755)
    with pytest.raises(ForeignDirectory) as refused:
        enter(own, US)
    _type_what_it_says(refused.value)
    enter(own, US)


def test_the_group_may_write_where_that_is_said_and_nobody_else(own: Path) -> None:
    _opened_to_its_group(own)
    enter(own, US, of_group=True)
    (own / "broker.db").chmod(0o666)
    own.chmod(0o2771)
    with pytest.raises(ForeignDirectory, match=rf"broker\.db has mode 0666: .* chmod -R go-w {own}$") as refused:
        enter(own, US, of_group=True)
    assert not refused.value.group_alone


@pytest.mark.skipif(US != 0, reason="only root gives a file away")
def test_whose_volume_is_root_s_is_told_to_name_a_directory_below_it(own: Path) -> None:
    own.chmod(0o2775)
    with pytest.raises(ForeignDirectory, match=f"; name a directory below {own}, which is then made with mode 0700$"):
        check_own(own, NOBODY)
    check_own(own, NOBODY, of_group=True)


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755, 0o500])
def test_one_that_others_only_read_is_not(own: Path, mode: int) -> None:
    own.chmod(mode)
    enter(own, US)
    own.chmod(0o700)


@pytest.mark.parametrize(
    ("outer", "inner", "refused"),
    [
        (0o755, 0o666, True),
        (0o755, 0o620, True),
        (0o701, 0o602, True),
        (0o710, 0o620, True),
        (0o710, 0o602, False),
        (0o701, 0o660, False),
        (0o700, 0o666, False),
        (0o744, 0o666, False),
        (0o755, 0o644, False),
    ],
)
def test_a_file_that_others_can_reach_and_write_is_refused(own: Path, outer: int, inner: int, *, refused: bool) -> None:
    own.chmod(outer)
    (own / "broker.db").chmod(inner)
    if not refused:
        check_own(own, US)
        return
    with pytest.raises(ForeignDirectory, match=rf"^{own}/broker\.db has mode {inner:04o}: "):
        check_own(own, US)


def test_a_socket_s_mode_is_its_operator_s(own: Path) -> None:
    own.chmod(0o750)
    with socket.socket(socket.AF_UNIX) as admin:
        admin.bind(str(own / "admin.sock"))
        (own / "admin.sock").chmod(0o660)
        check_own(own, US)


def test_a_link_that_leads_nowhere_and_a_file_are_somebody_else_s_complaint(own: Path, tmp_path: Path) -> None:
    (own / "link").symlink_to(tmp_path / "gone")
    (own / "again").symlink_to("again")
    check_own(own, US)
    enter(own / "broker.db", US)
    enter(own / "broker.db" / "below", US)


def _directory(own: Path, elsewhere: Path) -> Path:
    del elsewhere
    return own


def _file(own: Path, elsewhere: Path) -> Path:
    del elsewhere
    return own / "broker.db"


def _link(own: Path, elsewhere: Path) -> Path:
    elsewhere.touch()
    (own / "broker.pem").symlink_to(elsewhere)
    return own / "broker.pem"


def _target(own: Path, elsewhere: Path) -> Path:
    _link(own, elsewhere)
    return elsewhere


@pytest.mark.skipif(US != 0, reason="only root gives a file away")
@pytest.mark.parametrize("what", [_directory, _file, _link, _target])
def test_what_belongs_to_somebody_else_is_refused(
    own: Path, tmp_path: Path, what: Callable[[Path, Path], Path]
) -> None:
    theirs = what(own, tmp_path / "elsewhere")
    check_own(own, US)
    os.chown(theirs, NOBODY, -1, follow_symlinks=False)
    named = own / "broker.pem" if what is _target else theirs
    theirs_it_is = f"^{named} belongs to user {NOBODY}, .*: run as user {NOBODY}, or "
    with pytest.raises(ForeignDirectory, match=theirs_it_is) as refused:
        check_own(own, US)
    command = str(refused.value).rpartition("and then ")[2]
    subprocess.run(command.split(), check=True)
    check_own(own, US)


@pytest.mark.skipif(US != 0, reason="only root gives a file away")
def test_who_has_no_name_is_a_number_in_a_command(own: Path) -> None:
    os.chown(own, NOBODY - 1, -1)
    with pytest.raises(ForeignDirectory, match=f"belongs to user {NOBODY - 1}, .* and then chown -hR {NOBODY} {own}$"):
        check_own(own, NOBODY)


def test_what_belongs_to_a_user_or_to_root_is_his(own: Path) -> None:
    """As another user sees it: ours are a stranger's to him, unless we are root, who is nobody's."""
    if US == 0:
        check_own(own, NOBODY)
    else:
        with pytest.raises(ForeignDirectory, match=f"^{own} belongs to {user_name(US)}, "):
            check_own(own, NOBODY)


def test_a_link_that_leads_in_circles_hides_nothing_behind_it(own: Path) -> None:
    (own / "a").symlink_to("a")
    (own / "broker.db").chmod(0o666)
    own.chmod(0o755)
    with pytest.raises(ForeignDirectory, match=r"broker\.db has mode 0666"):
        enter(own, US)
