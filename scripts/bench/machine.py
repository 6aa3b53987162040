"""The machine of a run, without which its figures must not be quoted."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import psutil

import graft
from graft.scripts.bench.contenders import CONTENDERS
from graft.scripts.bench.contenders.base import version_of


@dataclass(frozen=True)
class Machine:
    """``load`` is the run queue when the run began: well above 0 means that others were at work."""

    processor: str
    cores: int
    memory: int
    system: str
    python: str
    redis: str
    load: float
    at: str
    versions: dict[str, str]

    @classmethod
    def here(cls, redis: str, load: float) -> Self:
        wanted = {"celery", "kombu", "redis", "hiredis", *(name for each in CONTENDERS.values() for name in each.needs)}
        found = {name: version_of(name) for name in sorted(wanted)}
        return cls(
            processor=_processor(),
            cores=len(os.sched_getaffinity(0)),
            memory=psutil.virtual_memory().total,
            system=f"{platform.system()} {platform.release()}",
            python=f"{platform.python_implementation()} {platform.python_version()}",
            redis=redis,
            load=load,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            versions={"celery-graft": graft.__version__} | {name: text for name, text in found.items() if text},
        )

    @property
    def facts(self) -> dict[str, Any]:
        return dict(vars(self)) | {"flags": sys.flags.optimize}

    @property
    def lines(self) -> list[str]:
        """For the head of a report."""
        return [
            f"{self.at}: {self.cores} cores of {self.processor}, {self.memory / 2**30:.0f} GiB, {self.system}",
            f"{self.python}, Redis {self.redis}; load when it began: {self.load:.2f}",
            ", ".join(f"{name} {version}" for name, version in self.versions.items()),
        ]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
