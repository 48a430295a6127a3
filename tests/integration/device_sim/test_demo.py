"""The demo as a user starts it: a process of its own, judged by its exit code and by what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.fleet_sim import fleet_sim, left_running, until_said
from tests.support.last_words import last_words

FEW = ("--devices", "8", "--seconds", "1")


@asynccontextmanager
async def demo(tmp_path: Path, *arguments: str, afresh: bool = False) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the demo with its temporary files under *tmp_path*; kill what is left of it afterwards."""
    try:
        async with fleet_sim(tmp_path, "demo", *arguments, afresh=afresh) as process:
            yield process
    finally:
        for pid in left_running(tmp_path):
            os.kill(pid, signal.SIGKILL)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def test_the_whole_story_passes(tmp_path: Path) -> None:
    async with demo(tmp_path, *FEW, "--json", afresh=True) as process:
        out, err = await last_words(process)
        assert process.returncode == 0, err.decode()
        report = json.loads(out)
        assert report["passed"]
        assert all(check["passed"] for check in report["checks"])
        messages = report["messages"]  # Those in flight were a revoked device's, when it was cut off.
        assert messages["published"] == messages["received"] + messages["in_flight"] > 0
        assert report["messages"]["lost"] == 0
        assert [finding["outcome"] for finding in report["intruders"]] == ["refused"] * 6
        assert len(report["revocations"]) == 5
        assert report["retries"] | {"told": []} == {"made": 10, "refused": 10, "resumed": 5, "told": []}
        assert b"Traceback" not in err
        assert names_in(tmp_path) == []
        assert left_running(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "root and issuing CA made"),
        (signal.SIGINT, "broker enrolled itself"),
        (signal.SIGINT, "Telemetry"),
        (signal.SIGTERM, "Telemetry"),
    ],
)
async def test_an_interruption_leaves_nothing_behind(tmp_path: Path, number: signal.Signals, moment: str) -> None:
    async with demo(tmp_path, "--devices", "8", "--seconds", "60") as process:
        await until_said(process, moment)
        process.send_signal(number)
        out, err = await last_words(process)
        assert process.returncode == 128 + number
        assert f"stopped by {number.name}" in err.decode()
        assert b"Traceback" not in err
        assert b"PASS" not in out
        assert names_in(tmp_path) == []
        assert left_running(tmp_path) == []


async def test_a_service_that_dies_ends_the_demo_with_its_last_words(tmp_path: Path) -> None:
    async with demo(tmp_path, "--devices", "8", "--seconds", "60") as process:
        await until_said(process, "Telemetry")
        (broker,) = left_running(tmp_path, "broker-1")
        os.kill(broker, signal.SIGKILL)
        out, err = await last_words(process)
        assert process.returncode == 1
        assert "fleet-broker run ended with status -9" in err.decode()
        assert b"Traceback" not in err
        assert b"PASS" not in out
        assert names_in(tmp_path) == []
        assert left_running(tmp_path) == []


async def test_kept_service_and_broker_run_until_the_user_has_enough(tmp_path: Path) -> None:
    async with demo(tmp_path, *FEW, "--keep", "--dir", str(tmp_path / "kept")) as process:
        await until_said(process, "Service and broker run until Ctrl-C")
        assert len(left_running(tmp_path)) == 3  # The demo itself, too.
        assert names_in(tmp_path / "kept" / "credentials") == sorted(
            f"{stem}.{kind}" for stem in ("device", "service", "revoked", "expired") for kind in ("crt", "key")
        )
        assert (tmp_path / "kept" / "credentials" / "device.key").stat().st_mode & 0o777 == 0o600
        process.send_signal(signal.SIGINT)
        out, _ = await last_words(process)
        assert process.returncode == 0
        assert b"PASS" in out
        assert (tmp_path / "kept" / "provisioning").is_dir()
        assert left_running(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--devices", "1"), "--devices"), (("--seconds", "0"), "--seconds"), (("--nonsense",), "--nonsense")],
)
async def test_wrong_usage_is_told_apart(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    async with demo(tmp_path, *arguments) as process:
        _, err = await last_words(process)
        assert process.returncode == 2
        assert words in err.decode()


async def test_a_directory_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    async with demo(tmp_path, "--dir", str(tmp_path)) as process:
        _, err = await last_words(process)
        assert process.returncode == 2
        assert "--dir" in err.decode()
        assert names_in(tmp_path) == ["mine"]
