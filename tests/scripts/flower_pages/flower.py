"""A running Flower, as tests talk to it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from graft.config import acl
from graft.config.queues import own_names
from graft.scripts.stack.redis_server import free_port
from tests.stack import Stack, wait_until

LOGIN = "ada:secret"


@dataclass(frozen=True)
class Answer:
    status: int
    text: str
    headers: Mapping[str, str]

    @property
    def data(self) -> Any:
        return json.loads(self.text)["data"]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class Flower:
    """One Flower: its address without a slash at the end, and ``name:password``."""

    def __init__(self, stack: Stack, address: str, login: str) -> None:
        self.stack, self.address, self.login = stack, address, login
        self._cookies = urllib.request.HTTPCookieProcessor(CookieJar())
        self._opener = urllib.request.build_opener(self._cookies, _NoRedirect)

    def ask(
        self, path: str, data: bytes | None = None, *, login: bool = True, headers: Mapping[str, str] | None = None
    ) -> Answer:
        request = urllib.request.Request(f"{self.address}{path}", data=data, headers=dict(headers or {}))
        if login:
            request.add_header("Authorization", f"Basic {b64encode(self.login.encode()).decode()}")
        try:
            with self._opener.open(request, timeout=60) as answer:
                return Answer(answer.status, answer.read().decode(), answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read().decode(), error.headers)

    def page(self, path: str) -> str:
        """The HTML of a page that must be there."""
        answer = self.ask(path)
        assert answer.status == 200, f"{path}: {answer.status} {answer.text[-2000:]}"
        return answer.text

    def data(self, path: str) -> Any:
        """What a page says as JSON."""
        answer = self.ask(f"/api/graft{path}")
        assert answer.status == 200, f"{path}: {answer.status} {answer.text[-2000:]}"
        return answer.data

    def do(self, action: str, **fields: Any) -> Answer:
        """Act through the API."""
        body = json.dumps(fields).encode()
        return self.ask(f"/api/graft/do/{action}", body, headers={"Content-Type": "application/json"})

    def submit(self, path: str, **fields: str) -> Answer:
        """Send a form with the token that the page of before has set."""
        token = next(cookie.value for cookie in self._cookies.cookiejar if cookie.name == "_xsrf")
        return self.ask(path, urlencode({"_xsrf": token, **fields}).encode())


def redis_version(stack: Stack) -> tuple[int, ...]:
    with stack.connect() as client:
        return tuple(map(int, str(client.info("server")["redis_version"]).split(".")))


def user(stack: Stack, role: str) -> dict[str, str]:
    """The variables with which a process of *stack* is a Redis user with the rules of *role* and no more."""
    name = f"flowers-{role}"
    with stack.connect() as client:
        client.execute_command(
            "ACL", "SETUSER", name, "reset", "on", ">secret", *acl.roles(own_names())[role].rules(redis_version(stack))
        )
    assert stack.redis
    address = f"redis://{name}:secret@127.0.0.1:{stack.redis.port}/0"
    return {"CELERY_BROKER_URL": address, "CELERY_RESULT_BACKEND": address}


def refused(stack: Stack, role: str) -> set[str]:
    """What the user of *role* was refused since the server started."""
    with stack.connect() as client:
        entries = client.execute_command("ACL", "LOG", "128")
    texts = [
        {
            _text(name): _text(value)
            for name, value in (entry.items() if isinstance(entry, dict) else zip(entry[::2], entry[1::2], strict=True))
        }
        for entry in entries
    ]
    return {f"{one['context']} {one['object']}" for one in texts if one["username"] == f"flowers-{role}"}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


@contextmanager
def another(stack: Stack, folder: Path, prefix: str = "", **environ: str) -> Iterator[Flower]:
    """One more Flower beside *stack*, with variables of its own."""
    port = free_port()
    env = {**stack.env_of("viewer"), "FLOWER_BASIC_AUTH": LOGIN, "FLOWER_DB": str(folder / "db"), **environ}
    log = folder / "flower.log"
    with log.open("w") as file:
        argv = [sys.executable, "-m", "celery", "-A", "graft", "flower", f"--port={port}"]
        process = subprocess.Popen(argv, env=env, stdout=file, stderr=file, cwd=folder)
    made = Flower(stack, f"http://127.0.0.1:{port}{prefix}", LOGIN)
    try:

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return made.ask("/healthcheck").status == 200
            except OSError:
                return False

        wait_until(answers, 60, "Flower")
        yield made
    finally:
        process.kill()
        process.wait()


def links(html: str) -> list[str]:
    return re.findall(r'(?:href|src|action)="([^"]+)"', html)


__all__ = ["LOGIN", "Answer", "Flower", "another", "links", "redis_version", "refused", "user"]
