"""Every target of `make fuzz` takes its own seeds; and one that finds something says so, and how to see it again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz import driver
from tests.fuzz.der import encode, mutated, parse
from tests.fuzz.target import Disagreement, Target, TooSlow, cuts
from tests.support.pki import shared_device
from tests.support.provisioning import REPOSITORY
from tests.support.requests import csr_der


@pytest.mark.filterwarnings("ignore:Attribute's length must be")  # Of one seed, it is wrong.
@pytest.mark.parametrize("group", driver.GROUPS)
def test_every_target_takes_its_seeds(group: str) -> None:
    names = [each.name for each in driver.targets(group)]
    assert len(names) == len({*names}) > 0
    for target in driver.targets(group):
        assert target.seeds, target.name
        assert max(map(len, target.seeds)) <= target.longest, f"{target.name}: libFuzzer would cut a seed off"
        with target.around():
            for seed in target.seeds:
                target(seed)
            target(b"")


def test_groups_and_targets_are_chosen_by_name() -> None:
    assert {each.partition(".")[0] for each in driver.names([])} == {*driver.GROUPS}
    assert driver.names(["texts.feed", "operators_api"]) == ["texts.feed", "operators_api.body"]
    for unknown in ("texts.none", "none", "os.path"):
        with pytest.raises(SystemExit, match="there is no target"):
            driver.target(unknown)


def test_a_finding_is_told_again_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What libFuzzer has kept fails without it as well; another input does not."""

    def check(data: bytes) -> None:
        if data.startswith(b"fault"):
            raise Disagreement("one is not the other")

    monkeypatch.setattr(driver, "target", lambda _: Target("broken", check, [b""]))
    file = tmp_path / "crash"
    file.write_bytes(b"fault")
    with pytest.raises(Disagreement, match="one is not the other"):
        driver.main(["--again", "texts.broken", str(file)])
    file.write_bytes(b"none")
    assert driver.main(["--again", "texts.broken", str(file)]) == 0


def test_a_target_that_ends_badly_is_told_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    assert driver.main(["texts.none", "--seconds", "1"]) == 1
    assert "texts.none: a finding, or no end (exit code 1)" in capsys.readouterr().out


def test_what_takes_too_long_is_a_finding() -> None:
    with pytest.raises(TooSlow, match="for 3 bytes"):
        Target("slow", lambda _: sum(range(100_000)), [b""], seconds=0)(b"abc")


@pytest.mark.parametrize("der", [shared_device("meter-1").der, csr_der()], ids=["certificate", "request"])
def test_der_is_taken_apart_and_put_together(der: bytes) -> None:
    """What is changed is DER again: most of it would else be refused at its first length."""
    tree = parse(der)
    assert tree is not None
    assert encode(tree) == der
    changed = {mutated(der, random.Random(seed), [der]) for seed in range(50)}
    assert len(changed) > 30
    assert all(each is not None and parse(each) is not None for each in changed)
    assert mutated(b"\x30\x05", random.Random(1), [der]) is None


@pytest.mark.parametrize("data", [b"", b"a", b"ab" * 32, bytes(300)])
def test_cut_bytes_are_the_same_bytes(data: bytes) -> None:
    assert b"".join(cuts(data)) == data
    assert len(cuts(data)) == len(data) or len(data) > 64
