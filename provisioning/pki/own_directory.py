"""A program's own directory: no other user may write there.

Theory
------
A program trusts what it finds in its directory: its key, its database, a list of anchors. Whoever may write there
controls what it trusts. A file left there by another user remains that user's after the directory's mode is corrected;
so the directory's contents are checked too.

Rules
-----
1. The directory and its contents belong to the user who runs the program, or to root, who may do everything anyway;
   not checked if root runs it for the directory's owner (`check_closed`).
2. Neither group nor others may write to the directory, nor to a file or directory in it that they can reach; the group
   may if the caller says that it is the user's own (docs/decisions/0166-group-writable-volumes.md).
3. A symbolic link counts as its target, and must itself belong to the user.
4. One remedy covers everything in the directory except links, each of which has its own; *user* can apply it, and it
   can be typed as printed.

Directories above or further down are not checked: a directory that another user puts in this one's place is that
user's, and refused as such; and the only way further down is through here.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from provisioning.program.durable_names import make_folder

_ROOT: Final = 0
_OTHERS_ENTER: Final = stat.S_IXGRP | stat.S_IXOTH


class ForeignDirectory(Exception):
    """Another user may write to the directory, or has; the text names the path and says what to do."""

    def __init__(self, text: str, *, group_alone: bool = False) -> None:
        """*group_alone*: the only finding is that a group may write."""
        super().__init__(text)
        self.group_alone = group_alone


def enter(directory: Path, user: int, *, of_group: bool = False) -> None:
    """Make *directory*, mode 0700, if it is not there, and raise as `check_own` does.

    One that can be neither made nor read is left for those who need something in it to report.
    """
    with contextlib.suppress(OSError):
        make_folder(directory)
    with contextlib.suppress(OSError):
        check_own(directory, user, of_group=of_group)


def check_own(directory: Path, user: int, *, of_group: bool = False) -> None:
    """Raise `ForeignDirectory` if others than *user*, a number, may write to *directory*, or have written.

    *of_group*: only *user* is in the groups that may write, or their members may do what *user* may.

    Raises OSError if it is not there, or cannot be read. What is not a directory is left for others to report.
    """
    _check_closed(directory, lambda path: _checked(path, directory, user), user, of_group=of_group)


def check_closed(directory: Path, user: int, *, of_group: bool) -> None:
    """Check like `check_own` what others may write, without checking ownership. The remedy is for *user*."""
    _check_closed(directory, Path.stat, user, of_group=of_group)


def _check_closed(directory: Path, look_at: Callable[[Path], os.stat_result], user: int, *, of_group: bool) -> None:
    found = look_at(directory)
    if not stat.S_ISDIR(found.st_mode):
        return
    others_write = stat.S_IWOTH if of_group else stat.S_IWGRP | stat.S_IWOTH
    if found.st_mode & others_write:
        raise _open_to_others(directory, found, directory, found, user)
    reachable = (found.st_mode & _OTHERS_ENTER) << 1  # The execute bit shifted to the write bit of the same class.
    for each in sorted(directory.iterdir()):
        with contextlib.suppress(OSError):  # It is gone meanwhile, or a dangling link: go on with the others.
            inside = look_at(each)
            plain = stat.S_ISREG(inside.st_mode) or stat.S_ISDIR(inside.st_mode)  # A socket's mode is its operator's.
            if plain and inside.st_mode & reachable & others_write:
                raise _open_to_others(each, inside, directory, found, user)


def _checked(path: Path, directory: Path, user: int) -> os.stat_result:
    """Return the status of *path*, *directory* or in it; raise `ForeignDirectory` if it or its link is not *user*'s."""
    link = path.lstat()
    for found in (link, path.stat()):
        if found.st_uid not in {user, _ROOT}:
            owner = user_name(found.st_uid)
            where = f"-hR {user_argument(user)} {quoted(directory)}"
            if found is not link and stat.S_ISLNK(link.st_mode):  # The target's ownership, not the link's own.
                where = f"{user_argument(user)} {quoted(path)}"
            raise ForeignDirectory(
                f"{path} belongs to {owner}, who could have put there what is to be believed: run as {owner}, or look "
                f"what it is, and then chown {where}"
            )
    return found


def _open_to_others(
    path: Path, found: os.stat_result, directory: Path, whole: os.stat_result, user: int
) -> ForeignDirectory:
    """Return the finding about *path*, which is *directory*, with the status *whole*, or in it."""
    if user not in {whole.st_uid, _ROOT} or whole.st_mode & stat.S_ISVTX:  # *user* cannot correct it, or many use it.
        remedy = f"name a directory below {directory}, which is then made with mode 0700"
    elif path != directory and path.is_symlink():  # Such are left out below a directory.
        remedy = f"look what is in it, and then chmod go-w {quoted(path)}"
        if found.st_mode & stat.S_ISVTX:  # Like /tmp, where that is intended.
            remedy = "remove this link, or have it lead elsewhere"
    else:
        remedy = f"look what is in it, and then chmod -R go-w {quoted(directory)}"
    return ForeignDirectory(
        f"{path} has mode {stat.S_IMODE(found.st_mode):04o}: others may write to it, and could have put "
        f"there what is to be believed; {remedy}",
        group_alone=not found.st_mode & stat.S_IWOTH,
    )


def quoted(path: Path) -> str:
    """Return *path* as a command's argument, as typed, even with a space or a leading dash."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def user_name(user: int) -> str:
    """Return the name of the user with that number."""
    name = user_argument(user)
    return f"user {user}" if name == str(user) else name


def user_argument(user: int) -> str:
    """Return the user with that number as a command's argument: in a container it seldom has a name."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
