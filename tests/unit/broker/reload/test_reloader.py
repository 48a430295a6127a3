"""One reload of several parts: what becomes of the others when one of them cannot even be judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from broker.reload.parts import Candidate
from broker.reload.reloader import Reloader
from broker.reload.report import Effects, Outcome, Part
from broker.settings.config import BrokerConfig


class Always:
    """A part that is new at each look, or whose `load` has a defect."""

    def __init__(self, part: Part, error: Exception | None = None) -> None:
        self._part, self._error, self.applied = part, error, 0

    @property
    def part(self) -> Part:
        return self._part

    def files(self, _config: BrokerConfig) -> Sequence[Path]:
        return []

    def load(self, _config: BrokerConfig, _candidate: Candidate | None) -> Any:
        if self._error is not None:
            raise self._error
        return "new"

    async def preview(self, loaded: Any) -> tuple[str, Effects | None]:
        return loaded, None

    async def apply(self, loaded: Any) -> tuple[str, Effects | None]:
        self.applied += 1
        return loaded, None


def config(tmp_path: Path) -> BrokerConfig:
    return BrokerConfig(cafile=tmp_path, certfile=tmp_path, keyfile=tmp_path, unsafe_no_revocation=True)


async def test_a_defect_costs_its_part_and_neither_the_others_nor_the_broker(tmp_path: Path) -> None:
    settings = config(tmp_path)
    before, broken, after = Always(Part.CERTIFICATE), Always(Part.TRUST, KeyError("a defect")), Always(Part.POLICY)
    reloader = Reloader([before, broken, after], settings, lambda: settings, Counter(), None, None)
    with capture_logs() as said:
        report = await reloader.reload()
    assert [each.outcome for each in report.parts] == [Outcome.RELOADED, Outcome.REFUSED, Outcome.RELOADED]
    assert "the broker's log has the traceback" in report.parts[1].detail
    assert (before.applied, broken.applied, after.applied) == (1, 0, 1)
    assert [each["part"] for each in said if each.get("code") == "INTERNAL_ERROR"] == ["trust"]


async def test_settings_that_cannot_be_read_for_a_defect_of_ours_leave_everything_as_it_is(tmp_path: Path) -> None:
    def defect() -> BrokerConfig:
        raise RuntimeError("a defect")

    policy, limits = Always(Part.POLICY), Always(Part.LIMITS)
    reloader = Reloader([policy, limits], config(tmp_path), defect, Counter(), None, None)
    with capture_logs() as said:
        report = await reloader.reload()
    assert [each.outcome for each in report.parts] == [Outcome.RELOADED, Outcome.REFUSED]
    assert limits.applied == 0
    assert [each["part"] for each in said if each.get("code") == "INTERNAL_ERROR"] == ["settings"]
