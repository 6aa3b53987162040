"""A worker that sizes itself by what waits in Redis, and says why."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from graft.tasks.monitoring.worker_registry import workers
from tests.stack import run_python, wait_until

ARGUMENTS = ["--autoscale=6,1", "--without-gossip", "--without-mingle", "-l", "INFO"]


def test_it_grows_with_the_queue_and_shrinks_without_and_logs_the_numbers(fresh_stack, tmp_path):
    stack = fresh_stack(cpu=0)  # Redis alone.
    log = Path(tmp_path, "worker.log")
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "graft", "worker", "-n", "scaled@here", *ARGUMENTS],
            env={**stack.env_of("worker"), "GRAFT_SCALE_IDLE": "2"}, stdout=file, stderr=file,
        )  # fmt: skip
    try:
        with stack.connect() as client:

            def size() -> int:
                found = {beat.name: beat for beat in workers(client)}
                return found["scaled@here"].processes if "scaled@here" in found else 0

            wait_until(lambda: size() == 1, 60, "it starts small")
            code = "import graft, time; graft.submit(time.sleep, [0.15] * 100, batch_size=1).collect(timeout=100)"
            peak = [0]
            program = subprocess.Popen([sys.executable, "-c", code], env=stack.env)
            try:

                def is_large() -> bool:
                    peak[0] = max(peak[0], size())
                    return peak[0] >= 4

                wait_until(is_large, 60, f"it grows; {peak}")
            finally:
                assert program.wait(100) == 0
            wait_until(lambda: size() == 1, 60, "it shrinks")
        said = re.findall(r"autoscale scaled@here: (\d -> \d: .*)", log.read_text())
        assert re.match(r"1 -> 2: \d+\.\d+ messages per slot for \d+ s, above 1\.5", said[0]), said
        assert any("below 0.5" in line for line in said)
        assert (
            run_python(stack, "import graft, time; graft.submit(time.sleep, [0]).collect(timeout=30)").returncode == 0
        )
    finally:
        process.terminate()
        process.wait(30)
