"""A worker that is alive and runs nothing is not ready, and is named as soon as work waits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import psutil
import pytest

from tests.stack import Stack, run_python, wait_until

pytestmark = pytest.mark.worker

WAIT = 60.0
SUBMIT = "import graft, time; from tests import samples; graft.submit(samples.square, [1]); time.sleep(1)"
CANCEL = """
import sys
from graft.config.celery_app import app
for queue in sys.argv[1].split(","):
    app.control.cancel_consumer(queue)
"""


def probe(stack: Stack, *options: str) -> tuple[int, str]:
    argv = [sys.executable, "-m", "graft.scripts.probe", "worker", stack.workers[0].name, *options]
    done = subprocess.run(argv, env=stack.env, capture_output=True, text=True, timeout=WAIT, check=False)
    return done.returncode, done.stdout


def said(stack: Stack) -> dict[str, Any]:
    """What health says of the worker now."""
    argv = [sys.executable, "-m", "celery", "-A", "graft", "health", "--live", "--json"]
    done = subprocess.run(argv, env=stack.env, capture_output=True, text=True, timeout=WAIT, check=False)
    verdicts = json.loads(done.stdout)["verdicts"]
    (found,) = [one for one in verdicts if (one["check"], one["subject"]) == ("worker", stack.workers[0].name)]
    return dict(found)


def test_a_worker_that_runs_nothing_is_not_ready_and_is_named_when_work_waits(fresh_stack):
    stack = fresh_stack(cpu=1)
    assert probe(stack, "--ready") == (0, "")
    processes = psutil.Process(stack.workers[0].pid).children(recursive=True)
    for process in processes:
        os.kill(process.pid, signal.SIGSTOP)
    wait_until(lambda: probe(stack, "--ready")[0] == 1, WAIT, "the stopped processes to be noticed")
    assert "stopped (SIGSTOP)" in probe(stack, "--ready")[1]
    assert probe(stack) == (0, "")
    assert run_python(stack, SUBMIT).returncode == 0
    wait_until(lambda: said(stack)["state"] == "failing", WAIT, "the worker to be named")
    assert "runs nothing while work waits" in said(stack)["detail"]
    for process in processes:
        os.kill(process.pid, signal.SIGCONT)
    wait_until(lambda: probe(stack, "--ready")[0] == 0, WAIT, "it to be ready again")

    with stack.connect() as client:
        queues = json.loads(client.get(f"graft:worker:{stack.workers[0].name}"))["queues"]
    assert run_python(stack, CANCEL, WAIT, ",".join(queues)).returncode == 0
    wait_until(lambda: "it reads no queue" in probe(stack, "--ready")[1], WAIT, "the cancelled consumers to be noticed")
    assert said(stack)["state"] == "ok"
    assert run_python(stack, SUBMIT).returncode == 0
    found = said(stack)
    assert (found["state"], "reads no queue" in found["detail"]) == ("failing", True)
