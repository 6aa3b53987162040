"""Several hosts: Redis, two with a worker each and one with the caller, each in a network namespace of its own.

drill ── switch ─┬─ redis    10.213.x.2
├─ worker1  10.213.x.3     a link is cut by a wrong neighbour: packets go nowhere, one way or both,
├─ worker2  10.213.x.4     and nothing is refused or closed
└─ caller   10.213.x.5
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from graft.scripts.drill.fault import Fault, FaultResult
from graft.scripts.drill.ledger import Count
from graft.scripts.drill.stage import VISIBILITY, Kind, Stage
from graft.scripts.stack.redis_server import RedisServer, StackError

HOSTS: Final = ("redis", "worker1", "worker2", "caller")
SWITCH: Final = "switch"
NAMESPACE: Final = "graft-drill-"
NOBODY: Final = "02:00:00:00:de:ad"
LASTS: Final = 1.6 * VISIBILITY
# Slow and lossy: what waits for longer than the buffer holds is dropped.
NARROW: Final = ("tbf", "rate", "128kbit", "burst", "1600", "limit", "4000")

Way = Literal["both", "out", "in"]


class HostsStage(Stage):
    """Everybody is on a host of his own; links between them can be cut, and made narrow."""

    hosts: ClassVar[Sequence[str]] = HOSTS

    def __init__(self, kind: Kind, **options: Any) -> None:
        super().__init__(kind, **options)
        self._net = f"10.213.{random.randrange(1, 255)}"
        self._bridge = f"gd{self._token}"

    def start(self) -> None:
        remove_leftovers()
        # In a namespace of its own: the machine's firewall, such as Docker's, would drop what goes from host to host.
        switch, here = self.namespace(SWITCH), self._bridge
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        ip("link", "add", here, "type", "veth", "peer", "name", "drill", "netns", switch)
        ip("-n", switch, "link", "set", "drill", "master", "bridge", "up")
        ip("addr", "add", f"{self._net}.1/24", "dev", here)
        ip("link", "set", here, "up")
        for host in self.hosts:
            there = self.namespace(host)
            ip("netns", "add", there)
            ip("-n", switch, "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", there)
            ip("-n", switch, "link", "set", host, "master", "bridge", "up")
            ip("-n", there, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            ip("-n", there, "link", "set", "eth0", "up")
            ip("-n", there, "link", "set", "lo", "up")
        super().start()

    def stop(self, grace: float = 3.0) -> None:
        super().stop(grace)
        for host in (*self.hosts, SWITCH):
            with suppress(StackError):
                ip("netns", "del", self.namespace(host))

    def namespace(self, host: str) -> str:
        return f"{NAMESPACE}{os.getpid()}-{self._token}-{host}"

    def address(self, host: str) -> str:
        return f"{self._net}.{2 + self.hosts.index(host)}"

    def launch(
        self, name: str, argv: Sequence[str], environ: Mapping[str, str] | None = None
    ) -> tuple[list[str], dict[str, str]]:
        arguments, made = super().launch(name, argv, environ)
        if name.startswith("worker"):
            name = f"worker{(int(name.removeprefix('worker')) - 1) % 2 + 1}"
        return [*self._enter(name), *arguments], made

    def _make_redis(self, program: Path) -> RedisServer:
        return RedisServer(self.guard, program, self.env, host=self.address("redis"), before=self._enter("redis"))

    def _enter(self, host: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace(host)]

    @contextmanager
    def cut(self, host: str, way: Way, others: Sequence[str] = ("redis",)) -> Iterator[None]:
        """Have nothing pass between *host* and *others*: both ways, or only not from it (out), not to it (in)."""
        out, back = [(host, other) for other in others], [(other, host) for other in others]
        ends = {"out": out, "in": back, "both": [*out, *back]}[way]
        for one, other in ends:
            self._neighbour("replace", one, other, "lladdr", NOBODY, "nud", "permanent")
        try:
            yield
        finally:
            for one, other in ends:
                self._neighbour("del", one, other)

    def _neighbour(self, verb: str, host: str, other: str, *rest: str) -> None:
        ip("-n", self.namespace(host), "neigh", verb, self.address(other), *rest, "dev", "eth0")

    def reaches(self, host: str) -> bool:
        """Whether Redis answers on *host*."""
        assert self.redis is not None
        probe = f"exec 3<>/dev/tcp/{self.address('redis')}/{self.redis.port}"
        command = [*self._enter(host), "timeout", "1", "bash", "-c", probe]
        return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0

    @contextmanager
    def narrow(self) -> Iterator[None]:
        """Have all links slow and lossy meanwhile."""
        for host in self.hosts:
            tc(self.namespace(host), "add", *NARROW)
        try:
            yield
        finally:
            for host in self.hosts:
                tc(self.namespace(host), "del")


class Partition(Fault):
    """Each host in turn is cut off from Redis, both ways and one way; then all links are slow and lossy."""

    name = "partition"
    limit = "0 lost, 0 dead letters, doubled at most what a host held that was cut off, workers live on"
    full_strikes = 10
    on: ClassVar[type[Stage]] = HostsStage
    load: ClassVar[Mapping[str, Any]] = {"patience": 300.0}

    @classmethod
    def unavailable(cls) -> str:
        if os.geteuid() or not (shutil.which("ip") and shutil.which("tc") and shutil.which("bash")):
            return "network namespaces need root, and ip and tc (iproute2)"
        try:
            ip("netns", "add", f"{NAMESPACE}{os.getpid()}-probe")
            ip("netns", "del", f"{NAMESPACE}{os.getpid()}-probe")
        except StackError as error:
            return str(error)
        return ""

    def times(self, full: int | None = None) -> int:
        return self.full_strikes

    @property
    def lasts(self) -> float:
        return self.full_strikes * (LASTS + 2.0)

    def inject(self, stage: Stage) -> None:
        assert isinstance(stage, HostsStage)
        ways: tuple[Way, ...] = ("both", "out", "in")
        for host in HOSTS[1:]:
            for way in ways:
                with stage.cut(host, way):
                    self.strikes += not stage.reaches(host)
                    time.sleep(LASTS)
                time.sleep(2.0)
                stage.restart_ended()
        with stage.narrow():
            self.strikes += 1
            time.sleep(LASTS)

    def finally_(self, stage: Stage) -> None:
        self.letters = stage.letters()
        self.seen.append(f"{self.letters} dead letters, {len(stage.waits('refused'))} sends refused")

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        happened = self.strikes == self.full_strikes
        # Six times a worker was cut off, with two running and two fetched ahead.
        return super().passes(stage, count, result) and not self.letters and result.doubled <= 24 and happened


def ip(*arguments: str) -> None:
    """Configure the network; a StackError has what the program says against it."""
    _run("ip", *arguments)


def tc(namespace: str, verb: str, *arguments: str) -> None:
    """Shape the traffic of the one link of *namespace*."""
    _run("tc", "-n", namespace, "qdisc", verb, "dev", "eth0", "root", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise StackError(f"{' '.join(command)}: {done.stderr.strip()}")


def remove_leftovers() -> None:
    """Remove the namespaces of drills that were killed, and with them all links."""
    listed = subprocess.run(["ip", "netns", "list"], check=False, capture_output=True, text=True).stdout
    for name in (line.split(" ")[0] for line in listed.splitlines()):
        pid = name.removeprefix(NAMESPACE).split("-")[0]
        if name.startswith(NAMESPACE) and pid.isdigit() and not Path(f"/proc/{pid}").exists():
            with suppress(StackError):
                ip("netns", "del", name)
