"""Fuzzes targets, each in a process of its own, guided by which lines an input reaches (atheris, libFuzzer).

    make fuzz                                                  # all, twenty seconds each
    make fuzz FUZZ_SECONDS=600 FUZZ_TARGETS='mqtt texts.feed'  # a group, and one of another
    .venv/bin/python -m tests.fuzz.driver --again texts.feed FILE   # what a finding does, without atheris

What has reached something new is kept in ``.build/fuzz/TARGET/corpus`` for the next time. Each finding is a file in
``.build/fuzz/TARGET``, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import random
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import structlog

from tests.fuzz.der import mutated
from tests.fuzz.target import Target
from tests.support.memory_place import memory_place

GROUPS: Final = (
    "mqtt",
    "certificates",
    "texts",
    "stored",
    "operators_api",
    "foreign",
    "http",
    "credentials",
    "followed",
)
WHERE: Final = Path(".build/fuzz")
_WATCHED: Final = ["broker", "provisioning", "device_sim"]
_SPARE_SECONDS: Final = 300
"""For imports and seeds before libFuzzer counts; and one input may take a minute."""
_KNOWING_DER: Final = 0.85
"""The share of inputs of DER that are changed by who knows it; the others libFuzzer changes."""


def targets(group: str) -> Sequence[Target]:
    """Return those of *group*, whose module is imported for it."""
    found: Sequence[Target] = import_module(f"tests.fuzz.{group}").TARGETS
    return found


def target(name: str) -> Target:
    """Return the target called *name*: its group, a dot, and its own name."""
    group, _, own = name.partition(".")
    found = [each for each in targets(group) if each.name == own] if group in GROUPS else []
    if not found:
        raise SystemExit(f"there is no target {name}: its name is a group ({', '.join(GROUPS)}), or as texts.feed")
    return found[0]


def names(asked: Sequence[str]) -> list[str]:
    """Return the names of all targets that are *asked* for, by themselves or by their group; of all, if none are."""
    expanded: list[str] = []
    for each in asked or GROUPS:
        expanded += [f"{each}.{one.name}" for one in targets(each)] if each in GROUPS else [each]
    return expanded


def fuzz(name: str, seconds: int) -> None:
    """Fuzz the target *name*; the process ends with it."""
    atheris = import_module("atheris")
    with atheris.instrument_imports(include=_WATCHED):
        chosen = target(name)
    where = WHERE / name
    corpus = where / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in chosen.seeds:
        (corpus / hashlib.sha256(seed).hexdigest()[:40]).write_bytes(seed)
    arguments = [name, str(corpus), f"-artifact_prefix={where}/", f"-max_total_time={seconds}", "-timeout=60"]
    arguments += [f"-max_len={chosen.longest}", "-rss_limit_mb=2048", "-verbosity=0", "-print_final_stats=1"]
    if chosen.words:
        dictionary = where / "words"
        dictionary.write_text("".join(f'"{_escaped(word)}"\n' for word in chosen.words), encoding="ascii")
        arguments.append(f"-dict={dictionary}")
    changed = {"custom_mutator": _mutator(chosen.seeds, atheris)} if chosen.is_der else {}
    atheris.Setup(arguments, lambda data: chosen(bytes(data)), **changed)
    with chosen.around():
        atheris.Fuzz()


def _mutator(pool: Sequence[bytes], atheris: Any) -> Callable[[bytes, int, int], bytes]:
    def change(data: bytes, longest: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < _KNOWING_DER:
            result = mutated(bytes(data), chance, pool)
            if result is not None and len(result) <= longest:
                return result
        changed: bytes = atheris.Mutate(data, longest)  # Of the module: it has another one when it has begun.
        return changed

    return change


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{each:02x}" for each in word)


def run(asked: Sequence[str], seconds: int) -> int:
    """Fuzz all that is *asked* for, one after another; return how many have found something."""
    failed = 0
    for name in names(asked):
        where = WHERE / name
        where.mkdir(parents=True, exist_ok=True)
        before = set(where.iterdir())
        log = where / "log"
        # libFuzzer ends the process at once: what a target has put into its directory is removed here.
        with log.open("wb") as output, tempfile.TemporaryDirectory(dir=memory_place()) as directory:
            try:
                code = subprocess.run(
                    [sys.executable, "-m", "tests.fuzz.driver", "--one", name, "--seconds", str(seconds)],
                    stdout=output, stderr=output, check=False,
                    env=os.environ | {"TMPDIR": directory}, timeout=seconds + _SPARE_SECONDS,
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                code = -1
        lines = log.read_text(errors="replace").splitlines(keepends=True)
        text = "".join(line for line in lines if not line.startswith(("INFO:", "WARNING:")))
        if code == 0:
            _say(f"{name}: nothing found in {_count(text)} inputs")
            continue
        failed += 1
        _say(f"{name}: a finding, or no end (exit code {code})\n{text[-3000:]}")
        for finding in sorted({*where.iterdir()} - before - {log, where / "corpus", where / "words"}):
            _say(f"again: .venv/bin/python -m tests.fuzz.driver --again {name} {finding}")
    return failed


def _count(log: str) -> str:
    return next((line.split()[-1] for line in log.splitlines() if "number_of_executed_units" in line), "no")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def quiet() -> None:
    """Have the programs log nothing, and nobody warn: a target is judged by what it raises."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.driver", description="fuzz parsers")
    parser.add_argument("--seconds", type=int, default=20, help="for each target")
    parser.add_argument("--one", metavar="TARGET", help="fuzz this in this process")
    parser.add_argument("--again", nargs=2, metavar=("TARGET", "FILE"), help="give a target the bytes in a file")
    parser.add_argument("targets", nargs="*", help=f"groups ({', '.join(GROUPS)}) or targets; all, if none are named")
    given = parser.parse_args(arguments)
    if given.again:
        name, file = given.again
        chosen = target(name)
        with chosen.around():
            chosen(Path(file).read_bytes())
        _say("nothing is wrong with it")
        return 0
    if given.one:
        quiet()
        fuzz(given.one, given.seconds)
    return 1 if run(given.targets, given.seconds) else 0


if __name__ == "__main__":
    sys.exit(main())
