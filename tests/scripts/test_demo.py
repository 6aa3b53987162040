"""The demo, for real: its table, its exit code, and what it leaves behind, which is nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from graft.scripts import demo
from graft.scripts.demo import Run
from graft.scripts.stack.redis_server import StackError
from tests.stack import Stack, clean_environ, wait_until

LOCAL = Run({"words": [["self", 3]], "modules": [], "skipped": {}}, files=9, items=27, work=2.0, whole=3.0)
CLUSTER = replace(LOCAL, work=1.0, envelopes=5)
CHORD = replace(LOCAL, result={"words": [["self", 3]]})


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment of its own, whose variables mark every process and whose folders get every file."""
    folders = {name: tmp_path / name for name in ("TMPDIR", "XDG_RUNTIME_DIR")}
    for folder in folders.values():
        folder.mkdir()
    return clean_environ(os.environ) | {name: str(folder) for name, folder in folders.items()}


@pytest.fixture(autouse=True)
def _nothing_is_left(environ: dict[str, str]) -> Iterator[None]:
    yield
    wait_until(lambda: not processes_of(environ), timeout=15, what="the demo's processes end")
    assert [path for name in ("TMPDIR", "XDG_RUNTIME_DIR") for path in Path(environ[name]).iterdir()] == []


def processes_of(environ: dict[str, str]) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == environ["TMPDIR"] and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def run(environ: dict[str, str], module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"graft.scripts.{module}", *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def rows(text: str) -> dict[str, list[str]]:
    """The table's rows by their first cell."""
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line[0] == "│"]
    return {label: figures for label, *figures in cells}


@pytest.mark.usefixtures("stack")  # For its marker, and to be skipped where there is no Redis; the demo has its own.
class TestDemo:
    def test_both_ways_agree_and_one_table_says_so(self, environ):
        done = run(environ, "demo", "--files", "60")
        assert done.returncode == 0, done.stderr
        table = rows(done.stdout)
        assert table["files"] == ["60", "60", "60"]
        assert table["items"] == ["180", "180", "60"]
        assert table["result"] == ["-", "the same", "the same"]
        assert table["retries"] == ["0", "0", "0"]
        sent = [int(figure) for figure in table["envelopes sent"]]
        assert sent[0] == 0
        assert min(sent[1:]) > 0
        assert all(float(figure) > 0 for label in ("seconds of work", "seconds in all") for figure in table[label])
        assert done.stdout.splitlines()[-1] == "To look around afterwards: ./scripts/demo --keep"
        assert "three times: in one process, on " in done.stderr.splitlines()[0]
        assert "It takes less than a minute" in done.stderr.splitlines()[0]
        assert "://graft:" not in done.stdout + done.stderr  # No password in an address that is dead when it is read.
        assert done.stderr.count(": 60 of 60 files after ") == 3  # Each way told its end.

    def test_kept_it_stays_until_it_is_taken_down(self, environ):
        done = run(environ, "demo", "--files", "20", "--keep")
        try:
            assert done.returncode == 0, done.stderr
            assert "python -m graft.scripts.dev down" in done.stderr
            status = run(environ, "dev", "status")
            assert status.returncode == 0, status.stdout
            assert done.stdout.splitlines()[-1] in status.stdout  # Where Flower is.
            again = run(environ, "demo", "--files", "20", "--keep")
            assert again.returncode == 1
            assert "a stack is up already" in again.stderr
        finally:
            assert run(environ, "dev", "down").returncode == 0

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
    def test_a_signal_ends_it_with_everything_it_started(self, environ, tmp_path, number, code):
        said = tmp_path / "said"
        with said.open("w") as file:
            started = subprocess.Popen(
                [sys.executable, "-m", "graft.scripts.demo", "--files", "600"],
                env=environ,
                stdout=file,
                stderr=file,
                process_group=0,
            )
        wait_until(lambda: said.read_text().count(": 200 of 600") == 2, 60, "the workers are at work")
        if number == signal.SIGINT:
            os.killpg(started.pid, number)  # As Ctrl-C does.
        else:
            started.send_signal(number)
        began = time.monotonic()
        assert started.wait(20) == code
        assert time.monotonic() - began < 15
        assert "Traceback" not in said.read_text()


def test_a_broker_that_is_down_is_named_at_once(environ):
    done = run(environ | {"CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}, "demo", "--files", "20")
    assert done.returncode == 1
    assert "redis://127.0.0.1:1/0 does not answer" in done.stderr


@pytest.mark.parametrize("arguments", [["--files", "0"], ["--files", "some"], ["--fast"]])
def test_wrong_arguments_are_refused(environ, arguments):
    done = run(environ, "demo", *arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr


def test_runs_that_agree_are_no_problem():
    assert demo.problems(LOCAL, CLUSTER, CHORD) == []


@pytest.mark.parametrize(
    ("cluster", "chord", "problem"),
    [
        (
            replace(CLUSTER, result=LOCAL.result | {"modules": [1]}),
            CHORD,
            "differs from its result in one process: modules",
        ),
        (CLUSTER, replace(CHORD, result={"words": [["self", 4]]}), "the map-reduce counted other words"),
        (replace(CLUSTER, stayed=["process of measure: a lock"]), CHORD, "stayed in the program's process: process of"),
        (replace(CLUSTER, envelopes=0), CHORD, "no envelope was sent"),
    ],
)
def test_what_the_demo_fails_to_show_is_said(cluster, chord, problem):
    (found,) = demo.problems(LOCAL, cluster, chord)
    assert problem in found


def run_code(stack: Stack, code: str, step: demo.Step = lambda *_: None) -> float:
    (stack.directory / "test.log").unlink(missing_ok=True)
    return demo.run_python(["-c", f"import sys, time; {code}"], stack, "test", step)


def test_a_program_that_fails_is_quoted(stack: Stack):
    with pytest.raises(demo.DemoError, match=r"ended with 3:\n  out of paper"):
        run_code(stack, "print('out of paper', file=sys.stderr); sys.exit(3)")


def test_a_program_that_takes_for_ever_is_ended(stack: Stack, monkeypatch):
    monkeypatch.setattr(demo, "PATIENCE", 0.2)
    with pytest.raises(demo.DemoError, match=r"took longer than 0.2 s"):
        run_code(stack, "time.sleep(60)")


def test_a_worker_that_ends_ends_the_demo(fresh_stack):
    stack = fresh_stack(cpu=1)
    stack.wait_ready()
    stack.worker.kill()
    with pytest.raises(StackError, match="cpu1@"):
        run_code(stack, "time.sleep(60)")


def test_progress_of_the_program_is_followed(stack: Stack):
    seen: list[tuple[int, int]] = []
    lines = "print('150 of 400 files', file=sys.stderr, flush=True); time.sleep(1); print('400 of 400 files')"
    run_code(stack, lines, lambda done, total: seen.append((done, total)))
    assert list(dict.fromkeys(seen)) == [(150, 400), (400, 400)]
