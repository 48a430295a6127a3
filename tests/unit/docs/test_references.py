"""What the pages name exists: links, files, modules, functions, codes; and the pages that modules name exist too."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests.support.provisioning import REPOSITORY

PACKAGES = ("provisioning", "broker", "device_sim")
FOLDERS = (*PACKAGES, "tests", "benchmarks", "docs", "deploy")
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]

_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_FILE = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*")
_SHORT_FILE = re.compile(r"(?:[\w-]+/)*[\w-]+\.py")
_MODULE = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:\.\w+)+")
_MEMBER = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
_NAME = re.compile(r"[A-Z][a-z]\w*|_\w+|[a-z]+_\w+")
_STABLE_CODE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
_SUFFIXES = (".py", ".md", ".toml", ".db", ".crt", ".key", ".pem")
_WORD = re.compile(r"\w+")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_NOT_IN_ANCHOR = re.compile(r"[^\w\- ]")
_PAGE_IN_MODULE = re.compile(r"docs/[\w/-]+(?:\.md)?")

# Other people's names, and names of the page's own scene.
FOREIGN = {"CERT_OPTIONAL", "X509_V_FLAG_PARTIAL_CHAIN", "mosquitto_pub", "mosquitto_sub", "set_tcp_nodelay"}


@functools.cache
def prose(page: Path) -> str:
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


def code_marks(page: Path) -> list[str]:
    return _CODE.findall(prose(page))


def words_of(folders: Iterable[Path], files: str = "*.py", line: str = "") -> frozenset[str]:
    """Return every word in the *files* of *folders*, in the lines that contain *line*; asked for thousands of times."""
    texts = (path.read_text(encoding="utf-8") for folder in folders for path in folder.rglob(files))
    if line:
        texts = ("\n".join(each for each in text.splitlines() if line in each) for text in texts)
    return frozenset(word for text in texts for word in set(_WORD.findall(text)))


# Every worker collects these tests, and few run them: what they look into is read when it is asked for.
@functools.cache
def endings() -> frozenset[str]:
    """Return each Python file of ours, and each end of its path behind a slash."""
    paths = [
        path.relative_to(REPOSITORY).parts for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")
    ]
    return frozenset("/".join(parts[first:]) for parts in paths for first in range(len(parts)))


@functools.cache
def source() -> frozenset[str]:
    return words_of(REPOSITORY / package for package in PACKAGES)


@functools.cache
def words_of_amqtt() -> frozenset[str]:
    """The pages on plugins name what is amqtt's."""
    found = importlib.util.find_spec("amqtt")
    assert found is not None
    return words_of(map(Path, found.submodule_search_locations or ()))


@functools.cache
def names_of_tests() -> frozenset[str]:
    return words_of([REPOSITORY / "tests"], "test_*.py", "def test_")


def wrong(judge: Callable[[Path], Iterator[str]]) -> list[str]:
    """Return what *judge* finds in each of the pages. A test for each of them would take longer than what it tests."""
    return [f"{page.relative_to(REPOSITORY)}: {what}" for page in PAGES for what in judge(page)]


def test_every_relative_link_resolves() -> None:
    def dangling(page: Path) -> Iterator[str]:
        for target in _LINK.findall(prose(page)):
            if "://" not in target:
                path = page.parent / target.partition("#")[0]
                if not path.exists() or not path.resolve().is_relative_to(REPOSITORY):
                    yield target

    assert wrong(dangling) == []


def anchors(page: Path) -> set[str]:
    """Return what a link may name in *page*: its headings, as GitHub makes them into anchors."""
    return {_NOT_IN_ANCHOR.sub("", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(prose(page))}


def test_every_heading_that_a_link_names_exists() -> None:
    def missing(page: Path) -> Iterator[str]:
        for target in _LINK.findall(prose(page)):
            path, _, anchor = target.partition("#")
            if anchor and "://" not in target and anchor not in anchors(page.parent / path if path else page):
                yield target

    assert wrong(missing) == []


def test_every_page_is_in_the_index() -> None:
    index = REPOSITORY / "docs" / "README.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for target in _LINK.findall(prose(index))}
    assert [page for page in PAGES if page.parent.name != "decisions" and page not in {index, *linked}] == []


def test_every_file_exists() -> None:
    def missing(page: Path) -> Iterator[str]:
        for mark in code_marks(page):
            if _FILE.fullmatch(mark):
                if not (REPOSITORY / mark).exists():
                    yield mark
            elif _SHORT_FILE.fullmatch(mark) and mark not in endings():
                yield mark

    assert wrong(missing) == []


def test_every_module_exists() -> None:
    def missing(page: Path) -> Iterator[str]:
        for mark in code_marks(page):
            if _MODULE.fullmatch(mark) and not mark.endswith(_SUFFIXES):
                path = REPOSITORY.joinpath(*mark.split("."))
                if not path.is_dir() and not path.with_suffix(".py").exists():
                    yield mark

    assert wrong(missing) == []


def test_every_function_class_and_setting_exists() -> None:
    def missing(page: Path) -> Iterator[str]:
        for mark in code_marks(page):
            if _MEMBER.fullmatch(mark) and not _MODULE.fullmatch(mark) and not mark.endswith(_SUFFIXES):
                names = [name for name in mark.split(".") if name not in {"ssl", "transport", "connection"}]
            elif _NAME.fullmatch(mark):
                names = [mark]
            else:
                continue
            for name in names:
                known = name in (names_of_tests() if name.startswith("test_") else source())
                known |= name in FOREIGN or ("plugins" in page.name and name in words_of_amqtt())
                if not known and not (REPOSITORY / name).exists():
                    yield mark

    assert wrong(missing) == []


def test_every_stable_code_exists() -> None:
    def missing(page: Path) -> Iterator[str]:
        for mark in code_marks(page):
            if _STABLE_CODE.fullmatch(mark) and mark not in FOREIGN and mark not in source():
                yield mark

    assert wrong(missing) == []


def test_every_page_that_a_module_names_exists() -> None:
    documents = {str(path.relative_to(REPOSITORY)) for path in PAGES}
    for folder in (*PACKAGES, "benchmarks"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            for named in _PAGE_IN_MODULE.findall(path.read_text(encoding="utf-8")):
                found = any(document == named or document.startswith(f"{named}-") for document in documents)
                assert found or (REPOSITORY / named).is_dir(), f"{path.relative_to(REPOSITORY)} names {named}"
