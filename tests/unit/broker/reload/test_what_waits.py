"""What a reload adds to trust waits for the policy, and the settings that name it, whatever becomes of trust itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from broker.admission.policy_file import PolicyError
from broker.reload.parts import Candidate, Unchanged
from broker.reload.reloader import Reloader
from broker.reload.report import Effects, Outcome, Part
from broker.settings.config import BrokerConfig
from broker.settings.config_file import ConfigError


class Holding:
    """A part whose file holds what the test says: an error, `Unchanged`, or what is new."""

    def __init__(self, part: Part) -> None:
        self.part, self.holds = part, object()

    def files(self, _config: BrokerConfig) -> Sequence[Path]:
        return []

    def load(self, _config: BrokerConfig, _candidate: Candidate | None) -> object:
        if isinstance(self.holds, Exception):
            raise self.holds
        return self.holds

    async def preview(self, _loaded: Any) -> tuple[str, Effects | None]:
        return "", None

    async def apply(self, _loaded: Any) -> tuple[str, Effects | None]:
        return "", None


class Keeping(Holding):
    """One that keeps something back when it is applied, if it is told to."""

    waits = withheld = False

    def withhold(self) -> None:
        self.withheld = True

    def grant(self) -> None:
        self.waits = self.withheld = False

    async def apply(self, loaded: Any) -> tuple[str, Effects | None]:
        self.waits = self.withheld
        return await super().apply(loaded)


async def test_what_trust_adds_waits_for_settings_and_policy_whatever_becomes_of_its_own_file(tmp_path: Path) -> None:
    settings = BrokerConfig(cafile=tmp_path, certfile=tmp_path, keyfile=tmp_path, unsafe_no_revocation=True)
    trust, policy, unusable = Keeping(Part.TRUST), Holding(Part.POLICY), [ConfigError("a slip")]
    policy.holds = Unchanged()

    def reread() -> BrokerConfig:
        if unusable:
            raise unusable[0]
        return settings

    reloader = Reloader([trust, policy], settings, reread, Counter(), None, None)

    async def waits(parts: Sequence[Part], holds: object, outcome: Outcome) -> bool:
        trust.holds = holds
        report = await reloader.reload(parts)
        assert [each.outcome for each in report.parts if each.part is Part.TRUST] == [outcome]
        return trust.waits

    both, alone = (Part.TRUST, Part.POLICY), (Part.TRUST,)
    assert await waits(both, "new", Outcome.REFUSED), "which policy was meant is not known"
    unusable.clear()
    policy.holds = PolicyError("a slip")
    assert await waits(both, Unchanged(), Outcome.REFUSED)
    assert await waits(alone, "another", Outcome.REFUSED), "as by an anchors_url"
    policy.holds = Unchanged()
    assert not await waits(both, OSError("gone"), Outcome.REFUSED)
    assert not await waits(both, "newer", Outcome.RELOADED)
    policy.holds = PolicyError("a slip")
    assert await waits(both, "newest", Outcome.REFUSED)
    policy.holds = Unchanged()
    assert not await waits((Part.POLICY,), Unchanged(), Outcome.RELOADED)
