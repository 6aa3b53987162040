"""The deployment of docker-compose.yml, brought up for real under a name, ports and secrets of its own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis

from graft.scripts.stack.redis_server import free_port

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).resolve().parent / "programs"
BUILD_LIMIT = 900.0
COMMAND_LIMIT = 300.0
HEALTHY_LIMIT = 300.0
IMAGES = ("PYTHON_IMAGE", "REDIS_IMAGE", "BUILD_NETWORK")


def missing() -> str:
    """Why no container can be started here, or nothing."""
    if not shutil.which("docker"):
        return "there is no docker on PATH"
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        return "no Docker engine answers"
    return "" if compose_command() else "there is neither docker-compose nor docker compose"


def compose_command() -> list[str]:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and not subprocess.run([*command, "version"], capture_output=True).returncode:
            return command
    return []


class Deployment:
    """``compose("up", "-d")`` and what to look at afterwards."""

    def __init__(self, directory: Path, **variables: str) -> None:
        self.project = f"graft-lane-{secrets.token_hex(3)}"
        self.redis_port = free_port()
        self.flower_port = free_port()
        self.redis_password = secrets.token_hex(8)
        self.flower_login = f"lane:{secrets.token_hex(8)}"
        self.signing_key = secrets.token_hex(32)
        self._variables = {
            "GRAFT_SIGNING_KEY": self.signing_key,
            "REDIS_PASSWORD": self.redis_password,
            "FLOWER_BASIC_AUTH": self.flower_login,
            "REDIS_PORT": str(self.redis_port),
            "FLOWER_PORT": str(self.flower_port),
            "GRAFT_IMAGE": f"{self.project}:test",
            "PROGRAMS": str(PROGRAMS),
            "GRAFT_VISIBILITY_TIMEOUT": "6",
            **variables,
        }
        self._env_file = directory / "env"
        self._env_file.write_text("".join(f"{name}={value}\n" for name, value in self._variables.items()))
        self._command = [*compose_command(), "--env-file", str(self._env_file), "-p", self.project]

    @property
    def redis_url(self) -> str:
        return f"redis://:{self.redis_password}@127.0.0.1:{self.redis_port}/0"

    @property
    def client_environ(self) -> dict[str, str]:
        """The environment that a program on this machine needs to use the deployment."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "GRAFT_"))}
        return kept | {"CELERY_BROKER_URL": self.redis_url, "GRAFT_SIGNING_KEY": self.signing_key}

    def compose(self, *arguments: str, limit: float = COMMAND_LIMIT) -> str:
        """Run compose from the repository's root; its output, or an error that holds it."""
        return _run([*self._command, *arguments], limit, self._environ())

    def bring_up(self, *arguments: str) -> None:
        """Build, start, and wait until every health check is passed."""
        self.compose("build", "worker-cpu", limit=BUILD_LIMIT)
        self.compose(*arguments, "up", "-d")
        self.wait_healthy()

    def wait_healthy(self) -> None:
        """Wait until every container has passed its health check.

        Raises:
            AssertionError: one has not in time; with what it last said.
        """
        deadline = time.monotonic() + HEALTHY_LIMIT
        while sick := [
            name
            for name, container in self.inspect().items()
            if container["State"].get("Health", {}).get("Status") != "healthy"
        ]:
            if time.monotonic() > deadline:
                checks = [self.inspect()[name]["State"]["Health"]["Log"][-1:] for name in sick]
                logs = [docker("logs", "--tail", "20", name) for name in sick]
                raise AssertionError(f"not healthy within {HEALTHY_LIMIT:g} s: {sick}\n{checks}\n" + "\n".join(logs))
            time.sleep(0.5)

    def containers(self, *services: str) -> list[str]:
        """Ids of the containers of *services*, stopped ones included, oldest first."""
        wanted = [f"--filter=label=com.docker.compose.service={service}" for service in services]
        mine = f"--filter=label=com.docker.compose.project={self.project}"
        found: list[str] = []
        for option in wanted or [""]:
            found += docker("ps", "-aq", mine, *filter(None, [option])).split()
        return found[::-1]

    def inspect(self, *services: str) -> dict[str, dict[str, Any]]:
        """The engine's description of each container, by name."""
        ids = self.containers(*services)
        found: list[dict[str, Any]] = json.loads(docker("inspect", *ids)) if ids else []
        return {entry["Name"].lstrip("/"): entry for entry in found}

    def connect(self) -> redis.Redis:
        return redis.Redis.from_url(self.redis_url, socket_timeout=10)

    def start_program(self, *arguments: str) -> subprocess.Popen[str]:
        """Run a program on this machine, outside all containers, as a client."""
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=PROGRAMS, env=self.client_environ, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def remove(self) -> None:
        self.compose("--profile", "ha", "--profile", "observability", "down", "-v", "-t", "5")
        subprocess.run(["docker", "rmi", "-f", f"{self.project}:test"], capture_output=True, check=False)

    def _environ(self) -> dict[str, str]:
        # The shell's variables would win over the file's.
        kept = {name: os.environ[name] for name in ("PATH", "HOME", *IMAGES) if name in os.environ}
        return {"DOCKER_BUILDKIT": "0", **_stand_ins(), **kept}


def _stand_ins() -> dict[str, str]:
    """The base images that .ci/containers made, where it did."""
    names = {"PYTHON_IMAGE": "graft-base-python:bookworm", "REDIS_IMAGE": "graft-base-redis:bookworm"}
    if subprocess.run(["docker", "image", "inspect", *names.values()], capture_output=True, check=False).returncode:
        return {}
    return names | {"BUILD_NETWORK": "host"}


def docker(*arguments: str, limit: float = COMMAND_LIMIT) -> str:
    return _run(["docker", *arguments], limit, None)


def _run(argv: list[str], limit: float, environ: Mapping[str, str] | None) -> str:
    done = subprocess.run(
        argv, cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise AssertionError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout + (done.stderr if "logs" in argv else "")
