"""Secrets stay where they are needed: a marked signing key and password turn up nowhere but in the environment."""

from __future__ import annotations

import base64
import binascii
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis as redis_py

from graft.scripts.stack.local_stack import LocalStack
from graft.scripts.stack.redis_server import find, free_port
from tests.stack import ROOT, clean_environ, run_python, wait_until

pytestmark = [pytest.mark.redis, pytest.mark.worker]

WAIT = 90.0
MARK = "canary7f3a"
PASSWORD, KEY, HOOK = f"{MARK}password", f"{MARK}signing{'k' * 20}", f"{MARK}webhook"
ENCODED = re.compile(rb"[A-Za-z0-9+/_-]{16,}={0,2}")

# Errors, dead letters, messages that nobody can read, results that cannot travel, an item that kills its process.
TROUBLE = """
import json, graft
from tests import samples
from graft.config.redis_client import shared

batch = graft.submit(samples.raise_value_error, range(3))
print([outcome.error for outcome in batch.as_completed()])
for item in (samples.kill_process, samples.raise_unpicklable):
    try:
        graft.submit(item, [1]).collect(60)
    except Exception as error:
        print(type(error), error)
try:
    graft.submit(lambda x: open, [lambda: 1]).collect(60)
except Exception as error:
    print(type(error), error)
client = shared()
for raw in (b"garbage", b"{}", json.dumps({"body": "W10=", "headers": {"task": "x", "id": "y"}, "properties": {}})):
    client.lpush("default", raw)
client.publish("/0.celery.pidbox", "[1]")
"""
PAGES = [
    f"/graft{page}"
    for page in ("", "/queues", "/batches", "/dead-letters", "/calls", "/health", "/workers", "/schedule")
]
COMMANDS = (
    ("report",), ("inspect", "conf", "--timeout", "10"), ("inspect", "stats", "--timeout", "10"),
    ("control", "graft_cancel", "some-id"), ("doctor", "--json"), ("dead-letters", "list"), ("exporter", "--json"),
    ("html-report", "--out", "page.html"),
)  # fmt: skip


def forms(data: bytes, depth: int = 3) -> Iterator[bytes]:
    """*data*, and what its parts are in base64, so that nothing hides in an envelope within a message."""
    yield data
    if depth:
        for found in ENCODED.findall(data):
            text = found.rstrip(b"=").replace(b"-", b"+").replace(b"_", b"/")
            try:
                inner = base64.b64decode(text + b"=" * (-len(text) % 4))
            except binascii.Error:
                continue
            yield from forms(inner, depth - 1)


def has_canary(data: str | bytes) -> bool:
    return any(MARK.encode() in form for form in forms(data.encode() if isinstance(data, str) else data))


def assert_clean(place: str, data: str | bytes) -> None:
    text = data.encode() if isinstance(data, str) else data
    if has_canary(text):
        at = max(0, text.find(MARK.encode()) - 200)
        raise AssertionError(f"the canary is in {place}: …{text[at : at + 400]!r}…")


def values(client: redis_py.Redis) -> Iterator[tuple[str, bytes]]:
    """Every key of every database, and everything under it."""
    for key in client.scan_iter(count=1000):
        match client.type(key):
            case b"string":
                found = [client.get(key) or b""]
            case b"list":
                found = client.lrange(key, 0, -1)
            case b"hash":
                found = [part for item in client.hgetall(key).items() for part in item]
            case b"set":
                found = list(client.smembers(key))
            case b"zset":
                found = client.zrange(key, 0, -1)
            case _:
                found = [client.dump(key) or b""]
        yield key.decode("utf-8", "replace"), b"\n".join([key, *found])


@contextmanager
def guarded_redis(folder: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A server with the marked password, which is told it by a file that nobody else reads."""
    port = free_port()
    configuration = folder / "redis.conf"
    configuration.touch(0o600)
    configuration.write_text(
        f'port {port}\nbind 127.0.0.1\nrequirepass {PASSWORD}\ndir "{folder}"\nappendonly yes\nsave ""\n'
    )
    command = [str(find(os.environ)), str(configuration)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C"}
    )
    try:
        with redis_py.Redis(port=port, password=PASSWORD) as client:
            wait_until(lambda: _answers(client), WAIT, "Redis")
        yield port, process
    finally:
        process.kill()
        process.wait()


def _answers(client: redis_py.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis_py.RedisError:
        return False


def program(environ: dict[str, str], *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    argv = [sys.executable, "-m", "celery", "-A", "graft", *arguments]
    return subprocess.run(
        argv, env=environ, cwd=cwd, capture_output=True, timeout=WAIT, check=False, stdin=subprocess.DEVNULL
    )


def command_lines() -> Iterator[tuple[str, bytes]]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            yield process.name, (process / "cmdline").read_bytes()
        except OSError:
            continue


def test_the_search_finds_what_is_hidden():
    once = base64.b64encode(f"password={PASSWORD}".encode())
    assert has_canary(once)
    assert has_canary(b'{"body": "' + base64.urlsafe_b64encode(b'["' + once + b'"]') + b'"}')
    assert not has_canary(b"nothing to see " * 50)


def test_no_secret_leaves_the_environment(tmp_path):
    with guarded_redis(tmp_path) as (port, _):
        url = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
        environ = {
            **clean_environ(os.environ), "CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url,
            "GRAFT_SIGNING_KEY": KEY,
            "GRAFT_WEBHOOK_URL": "http://127.0.0.1:9/", "GRAFT_WEBHOOK_KEY": HOOK, "GRAFT_HEALTH_EVERY": "1",
            "GRAFT_METRICS_PORT": str(free_port()), "PYTHONWARNINGS": "ignore",
        }  # fmt: skip
        with LocalStack({}, pythonpath=[ROOT], environ=environ, beat=True, flower=True) as stack:
            log = stack.directory / "debug.log"
            argv = ["worker", "-n", "debug@canary", "-c", "2", "-P", "prefork", "-E", "-l", "DEBUG"]
            stack.guard.start([sys.executable, "-m", "celery", "-A", "graft", *argv], stack.env, log=log)
            wait_until(lambda: b"ready." in log.read_bytes(), WAIT, "the worker")
            events = tmp_path / "events.log"
            dump = [sys.executable, "-m", "celery", "-A", "graft", "events", "--dump"]
            with events.open("wb") as file:
                listener = subprocess.Popen(dump, env=stack.env, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
            try:
                wait_until(lambda: b"debug@canary" in events.read_bytes(), WAIT, "the listener to hear of the worker")
                client = redis_py.Redis.from_url(url)
                told = run_python(stack, TROUBLE, WAIT)
                assert "no 2" in told.stdout, told.stderr
                assert_clean("what a caller sees", told.stdout + told.stderr)
                wait_until(lambda: client.llen("graft:quarantine") >= 3, WAIT, "the quarantine")
                wait_until(lambda: client.exists("graft:dead-letters"), WAIT, "a dead letter")
                for command in COMMANDS:
                    done = program(stack.env, *command, cwd=tmp_path)
                    assert_clean(f"celery {' '.join(command)}", done.stdout + done.stderr)
                assert_clean("the report", (tmp_path / "page.html").read_bytes())
                for path in ("/workers", "/worker/debug@canary", "/broker", "/tasks", "/metrics", *PAGES):
                    assert_clean(f"Flower's {path}", flower_page(stack, path))
                with urllib.request.urlopen(
                    f"http://127.0.0.1:{environ['GRAFT_METRICS_PORT']}/metrics", timeout=30
                ) as page:
                    assert_clean("the worker's metrics", page.read())
                client.client_kill_filter(_type="normal", skipme=True)
                client.config_set("requirepass", "another")
                time.sleep(3)  # Every process meets a server that refuses its password.
                client.config_set("requirepass", PASSWORD)
                for process, line in command_lines():
                    assert_clean(f"the command line of {process}", line)
                for key, content in values(client):
                    assert_clean(f"Redis under {key}", content)
                client.close()
            finally:
                listener.kill()
                listener.wait()
            assert b"graft.batch" in events.read_bytes()
            for path in [events, *stack.directory.rglob("*")]:
                if path.is_file():
                    assert_clean(f"the file {path.name}", path.read_bytes())
            assert stack.directory.stat().st_mode & 0o077 == 0


def flower_page(stack: LocalStack, path: str) -> bytes:
    who, _, address = stack.flower_url.removeprefix("http://").rpartition("@")
    request = urllib.request.Request(f"http://{address}{path}")
    request.add_header("Authorization", f"Basic {base64.b64encode(who.encode()).decode()}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: bytes = answer.read()
        return content


@pytest.mark.parametrize(
    "wrong",
    [
        {"GRAFT_SOFT_TIME_LIMIT": "no"}, {"GRAFT_SIGNING_KEY": MARK}, {"CELERY_BROKER_URL": f"http://:{PASSWORD}@h/"},
        {"CELERY_BROKER_URL": f"sentinel://:{PASSWORD}@h:1"}, {"CELERY_RESULT_BACKEND": f"db+sqlite://u:{PASSWORD}@h/"},
        {"CELERY_BROKER_URL": f"redis://:{PASSWORD}@127.0.0.1:1/0", "CELERY_RESULT_BACKEND": f"redis://:{PASSWORD}@127.0.0.1:1/0"},
        {"GRAFT_WEBHOOK_URL": f"ftp://u:{PASSWORD}@h/"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)  # fmt: skip
def test_no_error_at_start_tells_a_secret(redis_stack, wrong):
    environ = {**redis_stack.env, "GRAFT_SIGNING_KEY": KEY, "GRAFT_WEBHOOK_KEY": HOOK, **wrong}
    for code in (
        "import graft; graft.submit(abs, [1]).collect(5)",
        "from graft.config.deployment import settings; print(settings())",
    ):
        done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, timeout=WAIT, check=False)
        assert_clean(f"the error for {next(iter(wrong))}", done.stdout + done.stderr)
        assert done.stdout or done.stderr
