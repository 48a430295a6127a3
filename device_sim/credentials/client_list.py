"""The list of a fleet's clients, `clients.csv`: `export` writes it for other tools, `import` reads it.

Rules
-----
1. What is exported can be imported as it is.
2. A file is where its row says, seen from the list's directory: a list moves together with its files.
3. An unknown column is told and not guessed at (`ClientList.unused`): it may be another tool's, or misspelt.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from device_sim.credentials.credential_file import UnusableCredential
from provisioning.program.given_file import LIST_BYTES, contents_of, unread

_WRITTEN = ("client_id", "group", "certificate", "key", "telemetry_topic", "command_filter", "name")
_READ = ("certificate", "key", "chain", "name", "client_id", "group")
_DERIVED = {"telemetry_topic", "command_filter"}
"""What `export` writes for others, and follows from name and group."""


@dataclass(frozen=True, slots=True)
class Client:
    """One row: where a client's files are, and what it is called where the row says so."""

    line: int
    certificate: Path
    key: Path | None = None
    chain: Path | None = None
    name: str | None = None
    client_id: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class ClientList:
    """The rows of a list, and its columns that were not used."""

    clients: list[Client]
    unused: list[str]

    @classmethod
    def read(cls, path: Path) -> ClientList:
        """Return the list in *path*. Raises `UnusableCredential`."""
        try:
            text = contents_of(path, LIST_BYTES).decode("utf-8-sig")
        except OSError as error:
            raise UnusableCredential(unread(path, error)) from error
        except UnicodeDecodeError as error:
            raise UnusableCredential(f"{path} is no text in UTF-8: name a directory, or a CSV file") from error
        if "\0" in text:
            raise UnusableCredential(f"{path} has NUL characters in it: name a directory, or a CSV file")
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            columns = rows.fieldnames = [column.strip() for column in rows.fieldnames or ()]
            if "certificate" not in columns:
                raise UnusableCredential(
                    f"{path} has no column `certificate` in its first line, separated by commas; the columns are "
                    f"{', '.join(_READ)}"
                )
            twice = next((column for column in _READ if columns.count(column) > 1), None)
            if twice is not None:
                raise UnusableCredential(f"{path} has two columns `{twice}`: leave one of them out")
            clients = [_client(path, rows.line_num, row) for row in rows]
        except csv.Error as error:
            raise UnusableCredential(f"{path} line {rows.line_num}: {error}: write it as CSV with commas") from error
        if not clients:
            raise UnusableCredential(f"{path} has no row below its first line: list a certificate in each")
        return cls(clients, [column for column in columns if column not in {*_READ, *_DERIVED}])


def _client(path: Path, line: int, row: dict[str | None, str | list[str] | None]) -> Client:
    if None in row or None in row.values():
        raise UnusableCredential(f"{path} line {line}: more or fewer fields than the first line has: write all of them")
    given = {name: str(row.get(name) or "").strip() for name in _READ}
    if not given["certificate"]:
        raise UnusableCredential(f"{path} line {line}: no certificate is named: write its file, or remove the line")
    files = {name: path.parent / given[name] for name in ("key", "chain") if given[name]}
    names = {name: given[name] for name in ("name", "client_id", "group") if given[name]}
    return Client(line, path.parent / given["certificate"], files.get("key"), files.get("chain"), **names)


def written(rows: Iterable[tuple[str, str, str, Path, Path]]) -> bytes:
    """Return the list of clients with name, client identifier, group, certificate and key each."""
    content = io.StringIO()
    table = csv.writer(content, lineterminator="\n")
    table.writerow(_WRITTEN)
    for name, client_id, group, certificate, key in rows:
        own = f"fleet/{group}/{name}"
        table.writerow(
            [client_id, group, certificate.absolute(), key.absolute(), f"{own}/telemetry", f"{own}/cmd/#", name]
        )
    return content.getvalue().encode()
