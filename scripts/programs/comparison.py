"""One program, run plainly and with ``--pools`` on copies of the same input, and what differs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from graft.scripts.programs.table import SAMPLES, Program

TIMEOUT: Final = 300.0
TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?")
TRACKER: Final = re.compile(r".*resource_tracker.*\n(  warnings\.warn.*\n)?")  # Of pools that end badly at home.
WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\w\s]")
SKIPPED: Final = (".pyc", ".lock")  # Their bytes hold times.


@dataclass(frozen=True)
class Ran:
    """What one run has left: exit codes, what it wrote, a digest for each file, seconds."""

    codes: tuple[int, ...]
    out: str
    err: str
    files: dict[str, str]
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """How the two runs compare; ``differences`` is empty where they are the same."""

    name: str
    differences: tuple[str, ...]
    plain: float
    pools: float
    calls: int
    cluster: int
    reasons: tuple[str, ...] = field(default=())

    @property
    def share(self) -> float:
        """The share of calls that ran in the cluster."""
        return self.cluster / self.calls if self.calls else 0.0


def compare(program: Program, python: str, environ: Mapping[str, str]) -> Verdict:
    """Run *program* with the interpreter *python*, both ways, each in a folder of the same name."""
    with tempfile.TemporaryDirectory(prefix="graft-programs-") as folder:
        home = Path(folder)
        report = home / "report.json"
        plain = _run(program, [python], home, environ)
        pools = _run(program, [python, "-m", "graft.compat", "--pools", "--report", str(report)], home, environ)
        rows = json.loads(report.read_text())["calls"] if report.exists() else []
    cluster = sum(row["calls"] for row in rows if row["where"] == "cluster")
    local = [row for row in rows if row["where"] == "local"]
    reasons = tuple(dict.fromkeys(row["reason"] for row in local))
    calls = cluster + sum(max(row["calls"], 1) for row in local)
    differences = tuple(_differences(program, plain, pools))
    return Verdict(program.name, differences, plain.seconds, pools.seconds, calls, cluster, reasons)


def _run(program: Program, command: list[str], home: Path, environ: Mapping[str, str]) -> Ran:
    folder = home / "work"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    program.prepare(folder)
    if program.arguments[0].endswith(".py"):
        shutil.copy(SAMPLES / program.arguments[0], folder)
    env = {**environ, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    codes, out, err = [], "", ""
    began = time.monotonic()
    for _ in range(program.runs):
        try:
            ran = subprocess.run(
                [*command, *program.arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=TIMEOUT,
                check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            codes.append(-1)
            err += f"did not end within {TIMEOUT:g} s"
            break
        codes.append(ran.returncode)
        out, err = out + ran.stdout, err + ran.stderr
    files = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in SKIPPED and "cache" not in path.relative_to(folder).parts
    }
    return Ran(tuple(codes), out, err, files, time.monotonic() - began)


def _differences(program: Program, plain: Ran, pools: Ran) -> list[str]:
    found: list[str] = []
    if plain.codes != pools.codes:
        found.append(f"exit codes {plain.codes} and {pools.codes}")
    for stream in ("out", "err"):
        ours, theirs = (_lines(getattr(ran, stream), program) for ran in (plain, pools))
        if ours != theirs:
            first = next((pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), None)
            told: Any = first or (len(ours), len(theirs), (ours[len(theirs) :] or theirs[len(ours) :])[:3])
            found.append(f"std{stream}: {told}")
    changed = {
        name for name in plain.files.keys() | pools.files.keys() if plain.files.get(name) != pools.files.get(name)
    }
    if changed:
        found.append(f"files: {', '.join(sorted(changed)[:5])}")
    return found


def _lines(text: str, program: Program) -> list[str]:
    """The lines of *text*; its words in order of the alphabet where processes write into each other's lines."""
    text = TRACKER.sub("", TIME.sub("TIME", text))
    return sorted(WORD.findall(text)) if program.is_unordered else text.split("\n")


def environ_for_programs(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of both runs."""
    return {**environ, "PYTHONHASHSEED": "0", "COLUMNS": "100", "PATH": os.environ["PATH"]}
