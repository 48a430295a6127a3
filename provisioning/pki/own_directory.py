"""A program's own directory: nobody else writes there.

Theory
------
What a program finds in its directory it believes: its key, a database of its own, a list of anchors. Whoever may write
there chooses what it believes. And what he has left there stays his when the directory's mode is put right: so what is
in it is looked at, too.

Rules
-----
1. The directory, and what is in it, belongs to the user who runs the program, or to root, who may do everything anyway;
   not where root runs it for the directory's owner (`check_closed`).
2. Neither group nor others may write to the directory, nor to a file or directory in it that they can reach; the group
   may where the caller says that it is his (docs/decisions/0166-a-volume-that-is-opened-to-a-group.md).
3. A symbolic link counts as what it leads to, and has to be the user's, too.
4. One remedy is enough for all that is in the directory but links, each of which has its own; it is one that *user*
   can apply, and is typed as it stands.

It does not look at the directories above, nor further down: what somebody puts in the directory's place is his, and
refused as his; and nobody gets further down but through here.
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

_ROOT: Final = 0
_OTHERS_ENTER: Final = stat.S_IXGRP | stat.S_IXOTH


class ForeignDirectory(Exception):
    """Somebody else may write to the directory, or has; the text names the path and says what to do."""

    def __init__(self, text: str, *, group_alone: bool = False) -> None:
        """*group_alone*: nothing is wrong but that a group may write."""
        super().__init__(text)
        self.group_alone = group_alone


def enter(directory: Path, user: int, *, of_group: bool = False) -> None:
    """Make *directory*, mode 0700, if it is not there, and raise as `check_own` does.

    One that can be neither made nor read keeps whoever needs something there from it, and is his to complain of.
    """
    with contextlib.suppress(OSError):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        check_own(directory, user, of_group=of_group)


def check_own(directory: Path, user: int, *, of_group: bool = False) -> None:
    """Raise `ForeignDirectory` if others than *user*, a number, may write to *directory*, or have written.

    *of_group*: nobody but *user* is in the groups that may, or who is may do what *user* may.

    Raises OSError where it is not there, or cannot be read. What is no directory is somebody else's to complain of.
    """
    _check_closed(directory, lambda path: _checked(path, directory, user), user, of_group=of_group)


def check_closed(directory: Path, user: int, *, of_group: bool) -> None:
    """Do as `check_own` does for what others may write, and look at nobody's ownership. *user* is who is advised."""
    _check_closed(directory, Path.stat, user, of_group=of_group)


def _check_closed(directory: Path, look_at: Callable[[Path], os.stat_result], user: int, *, of_group: bool) -> None:
    found = look_at(directory)
    if not stat.S_ISDIR(found.st_mode):
        return
    others_write = stat.S_IWOTH if of_group else stat.S_IWGRP | stat.S_IWOTH
    if found.st_mode & others_write:
        raise _open_to_others(directory, found, directory, found, user)
    reachable = (found.st_mode & _OTHERS_ENTER) << 1  # For whom who may enter: the bit of who may write.
    for each in sorted(directory.iterdir()):
        with contextlib.suppress(OSError):  # It has gone meanwhile, or leads nowhere: the next ones count.
            inside = look_at(each)
            plain = stat.S_ISREG(inside.st_mode) or stat.S_ISDIR(inside.st_mode)  # A socket's mode is its operator's.
            if plain and inside.st_mode & reachable & others_write:
                raise _open_to_others(each, inside, directory, found, user)


def _checked(path: Path, directory: Path, user: int) -> os.stat_result:
    """Return what is at *path*, *directory* or in it; raise `ForeignDirectory` if that is not *user*'s, or the link."""
    link = path.lstat()
    for found in (link, path.stat()):
        if found.st_uid not in {user, _ROOT}:
            owner = user_name(found.st_uid)
            where = f"-hR {user_argument(user)} {quoted(directory)}"
            if found is not link and stat.S_ISLNK(link.st_mode):  # What it leads to, and not itself.
                where = f"{user_argument(user)} {quoted(path)}"
            raise ForeignDirectory(
                f"{path} belongs to {owner}, who could have put there what is to be believed: run as {owner}, or look "
                f"what it is, and then chown {where}"
            )
    return found


def _open_to_others(
    path: Path, found: os.stat_result, directory: Path, whole: os.stat_result, user: int
) -> ForeignDirectory:
    """Return what is wrong with *path*, which is *directory*, in state *whole*, or in it."""
    if user not in {whole.st_uid, _ROOT} or whole.st_mode & stat.S_ISVTX:  # He cannot put it right, or many use it.
        remedy = f"name a directory below {directory}, which is then made with mode 0700"
    elif path != directory and path.is_symlink():  # Such are left out below a directory.
        remedy = f"look what is in it, and then chmod go-w {quoted(path)}"
        if found.st_mode & stat.S_ISVTX:  # As /tmp, which is meant so.
            remedy = "remove this link, or have it lead elsewhere"
    else:
        remedy = f"look what is in it, and then chmod -R go-w {quoted(directory)}"
    return ForeignDirectory(
        f"{path} has mode {stat.S_IMODE(found.st_mode):04o}: others may write to it, and could have put "
        f"there what is to be believed; {remedy}",
        group_alone=not found.st_mode & stat.S_IWOTH,
    )


def quoted(path: Path) -> str:
    """Return *path* as a command's argument: as it is typed, also with a space or a dash at its beginning."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def user_name(user: int) -> str:
    """Return what the user of that number is called."""
    name = user_argument(user)
    return f"user {user}" if name == str(user) else name


def user_argument(user: int) -> str:
    """Return what a command takes for the user of that number: in a container it seldom has a name."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
