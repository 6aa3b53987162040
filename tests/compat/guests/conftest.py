"""``both(source, …)``: one program, run plainly and with ``--pools``, in folders of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import dataclass

import pytest


@dataclass
class Ran:
    code: int
    out: str
    err: str
    calls: list[dict]

    def where(self) -> set[str]:
        return {row["where"] for row in self.calls}

    def reasons(self) -> str:
        return " ".join(row["reason"] for row in self.calls if row["where"] == "local")


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")

    def write(name, source):
        (tmp_path / name).write_text(textwrap.dedent(source))

    return write


@pytest.fixture
def plain(write):
    def run(*arguments, timeout=120, prefix=()):
        ended = subprocess.run(
            [*prefix, sys.executable, *arguments], capture_output=True, text=True, timeout=timeout, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return Ran(ended.returncode, ended.stdout, ended.stderr, [])

    return run


@pytest.fixture
def on_workers(plain, tmp_path):
    def run(*arguments, timeout=120, prefix=()):
        report = tmp_path / "report.json"
        runner = ("-m", "graft.compat", "--pools=single", "--report", str(report))
        ended = plain(*runner, *arguments, timeout=timeout, prefix=prefix)
        ended.calls = json.loads(report.read_text())["calls"] if report.exists() else []
        return ended

    return run


@pytest.fixture
def moved(on_workers, stack):
    return on_workers
