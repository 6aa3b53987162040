"""A real Beat, real workers and a real Redis; faults are planted, and the verdict is read."""

from __future__ import annotations

import hmac
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from graft.tasks.health import report_store
from graft.tasks.health.verdicts import Verdict
from graft.tasks.monitoring import worker_registry
from tests.stack import Stack, clean_environ, run_python, wait_until

pytestmark = pytest.mark.worker

WAIT = 60.0
KEY = "a key for the webhook"


class Receiver:
    """A webhook's receiver that fails at its first call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.calls.append((self.headers["X-Graft-Signature"], body))
                self.send_response(500 if len(receiver.calls) == 1 else 204)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def heard(self) -> list[dict[str, Any]]:
        """The changes of all calls that were answered well."""
        return [change for _, body in self.calls[1:] for change in json.loads(body)["changes"]]


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(scope="module")
def deployment(redis_stack: Stack, receiver: Receiver) -> Iterator[Stack]:
    """One worker, checked every half second once Beat runs."""
    environ = {
        **clean_environ(os.environ),
        "GRAFT_HEALTH_EVERY": "0.5",
        "GRAFT_HEALTH_SILENCE": "4",
        "GRAFT_HEALTH_DEPTH": "20",
        "GRAFT_HEALTH_WINDOW": "4",
        "GRAFT_LEAKS_EVERY": "1",
        "GRAFT_WEBHOOK_URL": receiver.url,
        "GRAFT_WEBHOOK_KEY": KEY,
        "GRAFT_WEBHOOK_EVERY": "0.2",
    }
    with Stack({"cpu": 2}, environ) as made:
        yield made


@contextmanager
def beating(stack: Stack, folder: Path) -> Iterator[None]:
    """A real Beat for as long as the block lasts."""
    argv = [sys.executable, "-m", "celery", "-A", "graft", "beat", "-s", str(folder / "schedule"), "--pidfile="]
    with (
        open(folder / "beat.log", "w") as log,
        subprocess.Popen(argv, env=stack.env_of("beat"), stdout=log, stderr=log) as beat,
    ):
        try:
            yield
        finally:
            beat.kill()


@pytest.fixture
def beat(deployment: Stack, tmp_path: Path) -> Iterator[None]:
    with beating(deployment, tmp_path):
        yield


@pytest.fixture
def verdict(deployment: Stack) -> Iterator[Callable[[str], str]]:
    """The state that the last report gives a check; "" when it has no such check."""
    with deployment.connect() as client:

        def state(name: str) -> str:
            report = report_store.last(client)
            found: list[Verdict] = [each for each in (report.verdicts if report else ()) if each.name == name]
            return found[0].state if found else ""

        yield state


def health(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "celery", "-A", "graft", "health", *arguments]
    return subprocess.run(argv, env=stack.env_of("viewer"), capture_output=True, text=True, timeout=WAIT, check=False)


def test_a_real_beat_finds_a_healthy_deployment_healthy_and_sends_canaries_through_every_queue(
    deployment, beat, verdict, redis_stack
):
    with deployment.connect() as client:
        wait_until(lambda: (last := report_store.last(client)) and last.state == "ok", WAIT, "all to be well")
    for queue in ("maintenance", "high", "default", "batch", "io", "low", "heavy"):
        wait_until(lambda queue=queue: verdict(f"round trip {queue}") == "ok", WAIT, f"a canary through {queue}")
    shown: list[subprocess.CompletedProcess[str]] = []

    def well() -> bool:
        # On a busy machine a look may take longer than half a second, and the next one is skipped and counted.
        shown.append(health(deployment, "--all"))
        return shown[-1].returncode == 0

    wait_until(well, WAIT, "the command to say so")
    done = shown[-1]
    assert done.stdout.split()[1] == "ok"
    assert "the last canary message was run after" in done.stdout


def test_faults_are_found_told_and_forgotten_when_they_are_mended(deployment, beat, verdict, receiver):
    with deployment.connect() as client:
        wait_until(lambda: verdict("eviction redis") == "ok", WAIT, "a first report")
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.sadd("graft:paused", "low")
        wait_until(lambda: verdict("eviction redis") == "failing", WAIT, "the eviction policy to be found")
        wait_until(
            lambda: not [one for one in worker_registry.workers(client) if "low" in one.queues], WAIT, "the pause"
        )
        client.lpush("low", *(json.dumps({"headers": {"id": str(number)}}) for number in range(30)))
        wait_until(lambda: verdict("depth low") == "degraded", WAIT, "the full queue to be found")
        run_python(
            deployment,
            "import graft\nfrom tests import samples\n"
            "try: graft.submit(samples.raise_value_error, range(100), batch_size=5).collect(60)\n"
            "except ValueError: pass",
        )
        wait_until(lambda: verdict("errors") == "failing", WAIT, "the errors to be found")
        done = health(deployment)
        assert done.returncode == 2
        assert "CONFIG SET maxmemory-policy noeviction" in done.stdout
        client.config_set("maxmemory-policy", "noeviction")
        client.delete("low")
        client.srem("graft:paused", "low")
        wait_until(lambda: report_store.last(client).state == "ok", WAIT, "all to be well again")
    wait_until(lambda: any(each["name"] == "eviction redis" for each in receiver.heard), WAIT, "the webhook to be told")
    signature, body = receiver.calls[-1]
    at, _, given = signature.removeprefix("t=").partition(",v1=")
    assert hmac.compare_digest(given, hmac.digest(KEY.encode(), f"{at}.".encode() + body, "sha256").hex())
    first, second = (json.loads(body)["changes"] for _, body in receiver.calls[:2])
    assert second[: len(first)] == first, "what a failed call told was not told again"
    assert "eviction redis" in health(deployment, "--history").stdout


def test_a_stopped_beat_and_a_killed_worker_are_found_by_whoever_asks(deployment, tmp_path, verdict):
    with beating(deployment, tmp_path):
        wait_until(lambda: verdict("beat") == "ok", WAIT, "a report")
    # Beat sends the checks; the workers stand in for it, so that its end is on record and told.
    wait_until(lambda: verdict("beat") == "failing", WAIT, "the silence to be found")
    name = deployment.worker.name
    deployment.worker.kill()

    def bad() -> dict[str, str]:
        report = json.loads(health(deployment, "--json").stdout)
        assert report["state"] == "failing"
        return {f"{each['check']} {each['subject']}".strip(): each["state"] for each in report["verdicts"]}

    def all_found() -> bool:
        found = bad()
        return [found.get(each) for each in ("beat", "workers", f"worker {name}")] == ["failing"] * 3

    wait_until(lambda: health(deployment).returncode == 2, WAIT, "a bad verdict")
    wait_until(all_found, WAIT, "the worker's heartbeat to expire")


def test_a_redis_that_is_away_is_a_verdict_and_no_traceback(deployment):
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "graft", "health", "--json"],
        env={**deployment.env, "CELERY_BROKER_URL": "redis://127.0.0.1:1/0", "CELERY_RESULT_BACKEND": ""},
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert done.returncode == 2
    (only,) = json.loads(done.stdout)["verdicts"]
    assert "does not answer" in only["detail"]
