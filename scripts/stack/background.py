"""The stack in the background: ``dev up`` starts it and leaves, ``dev status`` and ``dev down`` find it by its state.

The state file, in a directory of this user alone, holds every address and process id; the guard (``guard.py``) keeps
the processes and removes the file with the stack.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import redis
from rich.table import Table

from graft.config import queues, redis_client
from graft.config.settings import Settings
from graft.scripts.console import output, say
from graft.scripts.stack.local_stack import LocalStack
from graft.scripts.stack.redis_server import StackError
from graft.scripts.stack.services import GRACE


@dataclass(frozen=True)
class Process:
    """A process by id and time of birth, since ids are used again."""

    name: str
    pid: int
    born: float

    @classmethod
    def of(cls, name: str, pid: int) -> Process:
        return cls(name, pid, psutil.Process(pid).create_time())

    def find(self) -> psutil.Process | None:
        """The process if it still runs."""
        try:
            process = psutil.Process(self.pid)
            return process if process.create_time() == self.born else None
        except psutil.NoSuchProcess:
            return None


@dataclass(frozen=True)
class State:
    """A stack that ``up`` has started."""

    directory: str
    variables: dict[str, str]
    flower_url: str
    guard: Process
    processes: list[Process] = field(default_factory=list)
    made_with: dict[str, str] = field(default_factory=dict)  # Options, as people write them.

    @classmethod
    def of(cls, stack: LocalStack, made_with: Mapping[str, str] | None = None) -> State:
        pids = {service.name: service.pid for service in stack.services}
        if stack.redis and stack.redis.pid:
            pids["redis"] = stack.redis.pid
        return cls(
            str(stack.directory),
            stack.variables,
            stack.flower_url,
            Process.of("guard", stack.guard.pid),
            [Process.of(name, pid) for name, pid in pids.items()],
            dict(made_with or {}),
        )

    @classmethod
    def read(cls, path: Path) -> State | None:
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        processes = [Process(**process) for process in found.pop("processes")]
        return cls(**{**found, "guard": Process(**found["guard"]), "processes": processes})

    def write(self, path: Path) -> None:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(self), file)

    @property
    def ended(self) -> list[str]:
        """Names of the processes that should run and do not."""
        return [process.name for process in [self.guard, *self.processes] if not process.find()]

    def connect(self) -> redis.Redis:
        broker, backend = self.variables["CELERY_BROKER_URL"], self.variables["CELERY_RESULT_BACKEND"]
        client: redis.Redis = redis_client.connect(Settings(broker_url=broker, result_backend=backend))
        return client


def state_directory() -> Path:
    base = os.environ.get("XDG_RUNTIME_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "celery-graft")


@contextmanager
def locked_state() -> Iterator[Path]:
    """The path of the state file, ours alone during the block; an empty directory does not stay."""
    directory = state_directory()
    while True:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            owner = os.fstat(descriptor)
            if owner.st_uid != os.getuid():
                raise StackError(f"{directory} belongs to another user; set XDG_RUNTIME_DIR to a directory of yours")
            if not directory.exists() or not os.path.samestat(owner, directory.stat()):
                continue  # Another `down` removed it while we waited for the lock.
            directory.chmod(0o700)
            yield directory / "stack.json"
            with suppress(OSError):
                directory.rmdir()
            return
        finally:
            os.close(descriptor)


def up(
    options: Mapping[str, Any], pythonpath: Sequence[Path], made_with: Mapping[str, str], given: Collection[str]
) -> int:
    """Start the stack, made with *options*, unless it is up, and print its environment.

    *made_with* are the same options as people write them; they were *given*, or are the defaults.

    Raises:
        StackError: it is up, and was started with other options.
    """
    with locked_state() as path:
        state = State.read(path)
        if state and state.guard.find():
            _refuse_others(state.made_with, made_with, given)
            say("The stack is already up" + (f", but {', '.join(state.ended)} ended" if state.ended else "") + ".")
        else:
            _clear(state, path)
            stack = LocalStack(**options, pythonpath=[*pythonpath, Path.cwd()], beat=True, flower=True)
            state = _start(stack, path, made_with)
        _print_environment(state)
        return 1 if state.ended else 0


def _refuse_others(has: Mapping[str, str], wanted: Mapping[str, str], given: Collection[str]) -> None:
    """Refuse options that the running stack was not started with, instead of dropping them."""
    others = [f"{name} {wanted[name]}" for name in given if has.get(name, wanted[name]) != wanted[name]]
    if others:
        present = ", ".join(f"{name} {value}" for name, value in has.items() if value)
        raise StackError(
            f"the stack is up already, with {present}: {', '.join(others)} would change nothing. Stop it first: "
            "python -m graft.scripts.dev down"
        )


def status() -> int:
    """Print what runs; 0 when everything does."""
    with locked_state() as path:
        state = State.read(path)
    if state is None:
        say("The stack is not up.")
        return 1
    _print_environment(state)
    table = Table("process", "pid", "state", box=None)
    for process in [state.guard, *state.processes]:
        table.add_row(process.name, str(process.pid), "runs" if process.find() else "ended")
    output().print(table)
    try:
        depths = _depths(state)
    except redis.RedisError as error:
        say(f"Redis does not answer: {error}")
        return 1
    table = Table("queue", "waiting", box=None)
    for queue, depth in depths.items():
        table.add_row(queue, str(depth))
    output().print(table)
    return 1 if state.ended else 0


def down() -> int:
    """Stop the stack if it is up."""
    with locked_state() as path:
        state = State.read(path)
        if state is None:
            say("The stack is not up.")
            return 0
        if guard := state.guard.find():
            guard.terminate()
            try:
                guard.wait(GRACE + 10)
            except psutil.TimeoutExpired:
                guard.kill()
                guard.wait()
        _clear(state, path)
    say("The stack is stopped.")
    return 0


def _start(stack: LocalStack, path: Path, made_with: Mapping[str, str]) -> State:
    try:
        stack.start()
        stack.wait_ready()
        state = State.of(stack, made_with)
        state.write(path)
        stack.detach(path)
    except (StackError, ChildProcessError) as error:
        raise StackError(stack.report(error)) from error
    finally:
        stack.stop()  # Does nothing to a detached stack.
    return state


def _clear(state: State | None, path: Path) -> None:
    """Remove what a guard that was killed could not."""
    if state:
        shutil.rmtree(state.directory, ignore_errors=True)
        path.unlink(missing_ok=True)


def _print_environment(state: State) -> None:
    for name, value in state.variables.items():
        output().print(f"export {name}={shlex.quote(value)}", markup=False)
    output().print(f"# Flower: {state.flower_url}", markup=False)
    output().print(f"# logs:   {state.directory}", markup=False)


def _depths(state: State) -> dict[str, int]:
    """Messages that wait in each queue: its list, and one more list for each priority but the first."""
    depths = {}
    with state.connect() as client:
        for queue in queues.own_names(further=os.environ.get("GRAFT_QUEUES", "")):
            keys = [queue, *(f"{queue}\x06\x16{step}" for step in queues.PRIORITY_STEPS if step)]
            with client.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.llen(key)
                depths[queue] = sum(pipe.execute())
    return depths
