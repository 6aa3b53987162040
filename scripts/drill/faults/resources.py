"""What a machine runs out of: descriptors, disk, memory."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final

import psutil

from graft.config.queues import Lane
from graft.scripts.drill.fault import Fault, FaultResult
from graft.scripts.drill.faults.processes import Poison
from graft.scripts.drill.ledger import Count
from graft.scripts.drill.stage import Stage
from graft.scripts.stack.redis_server import RedisServer, StackError

MEBIBYTE: Final = 1 << 20


class DescriptorLimit(Fault):
    """Neither worker may open another file for a while: its connections are cut meanwhile, and a process is killed."""

    name = "fd-limit"
    limit = "0 lost, 0 dead letters, doubled at most what ran; a worker that ends is replaced"
    lasts = 12.0
    lanes: ClassVar[tuple[Lane, ...]] = ("cpu",)  # It kills a pool process.

    def inject(self, stage: Stage) -> None:
        limits = [(worker.process, resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)) for worker in stage.workers]
        for process, (_, hard) in limits:
            # What is open stays open; whatever is opened anew is refused.
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (3, hard))
        time.sleep(1.0)
        with suppress(psutil.NoSuchProcess):
            stage.pool_processes()[0].kill()
            self.strikes += 1
        time.sleep(2.0)
        self.strikes += bool(stage.cut_connections())
        time.sleep(self.lasts - 4.0)
        for process, (soft, hard) in limits:
            with suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (soft, hard))

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        return result.lost == 0 and not self.letters and result.doubled <= 5 and self.strikes == 2

    def finally_(self, stage: Stage) -> None:
        self.letters = stage.letters()
        self.seen.append(f"{self.letters} dead letters")


class SmallDiskStage(Stage):
    """Redis writes to a disk of its own, which is small."""

    SIZE = 128 * MEBIBYTE  # Twice what is written down of ten thousand tasks.

    def _make_redis(self, program: Path) -> RedisServer:
        mount = f'mount -t tmpfs -o size={self.SIZE} drill "$0" && exec "$@"'
        # In a namespace of its own: the disk is gone with the server.
        before = ["unshare", "-m", "sh", "-c", mount, str(self.directory / "redis")]
        return RedisServer(self.guard, program, self.env, before=before)

    def fill_disk(self) -> Path:
        """Leave no room on the disk of Redis; returns the file that takes it."""
        assert self.redis is not None
        filler = Path(f"/proc/{self.redis.pid}/root{self.redis.folder}/filler")
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        return filler


class DiskFull(Fault):
    """The disk of Redis is full for a while, so that it can write down nothing and refuses to be written to."""

    name = "disk-full"
    limit = "0 lost, clear errors, workers live on"
    on: ClassVar[type[Stage]] = SmallDiskStage

    @classmethod
    def unavailable(cls) -> str:
        tried = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=1m", "drill", "/mnt"]
        works = shutil.which("unshare") and not subprocess.run(tried, check=False, stderr=subprocess.DEVNULL).returncode
        return "" if works else "a small disk can be mounted by root alone"

    @property
    def lasts(self) -> float:
        return max(8.0, 30.0 * self.scale)

    def inject(self, stage: Stage) -> None:
        assert isinstance(stage, SmallDiskStage)
        filler = stage.fill_disk()
        time.sleep(self.lasts)
        self.strikes += len(stage.waits("refused")) > 0
        filler.unlink()

    def finally_(self, stage: Stage) -> None:
        refused = stage.waits("refused")
        self.seen.append(f"{len(refused)} sends refused, the slowest after {max(refused, default=0.0):.1f} s")

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        return super().passes(stage, count, result) and result.doubled <= 4


class SmallMemoryStage(Stage):
    """The workers share little memory, as a container does; the kernel chooses whom it kills when they want more."""

    SIZE = 600 * MEBIBYTE

    def start(self) -> None:
        self._group = memory_group(f"celery-graft-drill-{self._token}", self.SIZE)
        super().start()

    def launch(
        self, name: str, argv: Sequence[str], environ: Mapping[str, str] | None = None
    ) -> tuple[list[str], dict[str, str]]:
        arguments, made = super().launch(name, argv, environ)
        if name.startswith("worker"):
            enter = f'echo $$ > "{self._group}/cgroup.procs" && exec "$@"'
            arguments = ["sh", "-c", enter, "sh", *arguments]
        return arguments, made

    def stop(self, grace: float = 3.0) -> None:
        super().stop(grace)
        with suppress(OSError):
            self._group.rmdir()


class OutOfMemory(Poison):
    """A task that takes all the memory of its worker's group; the kernel kills a process of its choice."""

    name = "out-of-memory"
    task = "eat_memory"
    on: ClassVar[type[Stage]] = SmallMemoryStage

    @classmethod
    def unavailable(cls) -> str:
        try:
            memory_group(f"celery-graft-drill-{os.getpid()}", MEBIBYTE).rmdir()
        except (OSError, StackError) as error:
            return f"no group with a limit of memory can be made: {error}"
        return ""


def memory_group(name: str, size: int) -> Path:
    """Make a control group whose processes share *size* bytes, swap included; its folder."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):  # Version 1.
            group = Path("/sys/fs/cgroup/memory") / path.strip("/") / name
            group.mkdir()
            (group / "memory.limit_in_bytes").write_text(str(size))
            with suppress(OSError):  # Where swap is not counted.
                (group / "memory.memsw.limit_in_bytes").write_text(str(size))
            return group
    group = Path("/sys/fs/cgroup") / name
    group.mkdir()
    try:
        (group / "memory.max").write_text(str(size))
        (group / "memory.swap.max").write_text("0")
    except OSError:
        group.rmdir()
        raise
    return group
