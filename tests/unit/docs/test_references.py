"""What the pages name exists: links, files, modules, functions, codes; and the pages that modules name exist too."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

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


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def page(request: pytest.FixtureRequest) -> Path:
    path = request.param
    assert isinstance(path, Path)
    return path


def test_every_relative_link_resolves(page: Path) -> None:
    for target in _LINK.findall(prose(page)):
        if "://" not in target:
            path = page.parent / target.partition("#")[0]
            assert path.exists(), target
            assert path.resolve().is_relative_to(REPOSITORY), target


def anchors(page: Path) -> set[str]:
    """Return what a link may name in *page*: its headings, as GitHub makes them into anchors."""
    return {_NOT_IN_ANCHOR.sub("", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(prose(page))}


def test_every_heading_that_a_link_names_exists(page: Path) -> None:
    for target in _LINK.findall(prose(page)):
        path, _, anchor = target.partition("#")
        if anchor and "://" not in target:
            assert anchor in anchors(page.parent / path if path else page), target


def test_every_file_exists(page: Path) -> None:
    for mark in code_marks(page):
        if _FILE.fullmatch(mark):
            assert (REPOSITORY / mark).exists(), mark
        elif _SHORT_FILE.fullmatch(mark):
            assert mark in endings(), mark


def test_every_module_exists(page: Path) -> None:
    for mark in code_marks(page):
        if _MODULE.fullmatch(mark) and not mark.endswith(_SUFFIXES):
            path = REPOSITORY.joinpath(*mark.split("."))
            assert path.is_dir() or path.with_suffix(".py").exists(), mark


def test_every_function_class_and_setting_exists(page: Path) -> None:
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
            assert known or (REPOSITORY / name).exists(), mark


def test_every_stable_code_exists(page: Path) -> None:
    for mark in code_marks(page):
        if _STABLE_CODE.fullmatch(mark) and mark not in FOREIGN:
            assert mark in source(), mark


def test_every_page_that_a_module_names_exists() -> None:
    documents = {str(path.relative_to(REPOSITORY)) for path in PAGES}
    for folder in (*PACKAGES, "benchmarks"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            for named in _PAGE_IN_MODULE.findall(path.read_text(encoding="utf-8")):
                found = any(document == named or document.startswith(f"{named}-") for document in documents)
                assert found or (REPOSITORY / named).is_dir(), f"{path.relative_to(REPOSITORY)} names {named}"
