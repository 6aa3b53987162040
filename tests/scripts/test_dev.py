from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

import psutil
import pytest

from tests.scripts.sandbox import Sandbox
from tests.stack import Stack, wait_until

# Notes the signals that it gets, until its standard input ends; then has the workers compute something.
NOTE_SIGNALS = """
import os, signal, sys
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    # Not print, which may be interrupted in the middle of itself.
    signal.signal(getattr(signal, name), lambda number, _: os.write(1, signal.Signals(number).name.encode() + b"\\n"))
print("ready", flush=True)
for line in sys.stdin:
    if line == "end\\n":
        break
import graft
print(graft.submit(abs, [-1, -2, -3]).collect(timeout=30), flush=True)
"""


def read_line(pipe: IO[str] | None) -> str:
    assert pipe
    return pipe.readline().strip()


def test_the_exit_code_is_the_commands_and_nothing_is_added_to_what_it_says(sandbox: Sandbox) -> None:
    command = "import sys; print(sys.stdin.read()); print('complaint', file=sys.stderr); sys.exit(7)"
    done = sandbox.run(sys.executable, "-c", command, text="asked")
    assert (done.returncode, done.stdout, done.stderr) == (7, "asked\n", "complaint\n")
    sandbox.check_clean(0)


def test_a_command_that_a_signal_ends_gives_128_and_the_signal(sandbox: Sandbox) -> None:
    assert sandbox.run("sh", "-c", "kill -SEGV $$").returncode == 128 + signal.SIGSEGV
    sandbox.check_clean(0)


def test_a_command_that_does_not_exist_gives_127(sandbox: Sandbox) -> None:
    done = sandbox.run("no-such-program", "--option")
    assert (done.returncode, done.stderr) == (127, "error: no-such-program: command not found\n")
    sandbox.check_clean(0)


def test_a_command_that_cannot_be_executed_gives_126(sandbox: Sandbox) -> None:
    (sandbox.work / "notes").touch(mode=0o600)
    done = sandbox.run("./notes")
    assert (done.returncode, done.stderr) == (126, "error: ./notes cannot be executed: Permission denied\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run"], "there is no COMMAND"),
        (["run", "--"], "there is no COMMAND"),
        (["run", "--lane", "cpu=0", "--", "true"], "'cpu=0': N in cpu=N must be a whole number from 1 to 256"),
        (["run", "--lane", "cpu=many", "--", "true"], "must be a whole number from 1 to 256"),
        (["run", "--lane", "io=10001", "--", "true"], "must be a whole number from 1 to 10000"),
        (["run", "--lane", "gpu=1", "--", "true"], "the lanes are cpu=N and io=N"),
        (["run", "--pythonpath", "nowhere", "--", "true"], "'nowhere' is not a directory"),
        (["status", "--", "true"], "status takes no COMMAND"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(sandbox: Sandbox, arguments: list[str], complaint: str) -> None:
    done = sandbox.dev(*arguments)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_workers_import_what_the_program_imports(sandbox: Sandbox) -> None:
    for folder, name in ((sandbox.work / "program", "beside"), (sandbox.work / "library", "given")):
        folder.mkdir()
        (folder / f"{name}.py").write_text(f"def double(x):\n    return '{name}', 2 * x\n")
    (sandbox.work / "here.py").write_text("def double(x):\n    return 'here', 2 * x\n")
    program = sandbox.work / "program" / "main.py"
    program.write_text(
        "import sys, beside, given, graft\n"
        "sys.path.append('')\n"
        "import here\n"
        "for module in (beside, given, here):\n"
        "    print(*graft.submit(module.double, [1, 2]).collect(timeout=30))\n"
    )
    done = sandbox.dev("run", "--lane", "cpu=1", "--pythonpath", "library", "--", sys.executable, "program/main.py")
    assert done.stdout.splitlines() == [f"('{name}', 2) ('{name}', 4)" for name in ("beside", "given", "here")]
    assert done.returncode == 0


BALANCE = """
from graft.compat.celery_migration_poc import CeleryWorkerOptimizer, LoadLevel

optimizer = CeleryWorkerOptimizer()
print(optimizer.dynamic_load_balancing(LoadLevel.MEDIUM, worker_group="cpu")["settings"])
print([len(stats["pool"]["processes"]) for stats in optimizer.get_worker_metrics()["workers"].values()])
"""


def test_the_workers_of_a_lane_are_a_worker_group(sandbox: Sandbox) -> None:
    done = sandbox.run(sys.executable, "-c", BALANCE)
    assert done.stdout == "{'concurrency': 4, 'prefetch': 2}\n[4]\n", done.stderr


def test_signals_reach_the_command_once_and_leave_the_workers_alone(sandbox: Sandbox) -> None:
    with sandbox.start(sys.executable, "-c", NOTE_SIGNALS) as dev:
        assert read_line(dev.stdout) == "ready", dev.communicate()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            dev.send_signal(number)
            assert read_line(dev.stdout) == number.name
        output, errors = dev.communicate("end\n", timeout=60)
        assert (output, errors, dev.returncode) == ("[1, 2, 3]\n", "", 0)
    sandbox.check_clean(0)


# Makes its standard input the terminal of a new session, as a login does, and becomes the command.
ON_A_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_ctrl_c_on_a_terminal_reaches_the_command_once_and_leaves_the_workers_alone(sandbox: Sandbox) -> None:
    argv = [sys.executable, "-m", "graft.scripts.dev", "run", "--lane", "cpu=1", "--", sys.executable, "-c"]
    ours, theirs = os.openpty()
    dev = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, *argv, NOTE_SIGNALS],
        env=sandbox.env,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    with open(ours, "r+b", buffering=0) as terminal, dev:
        shown = b""
        for typed, answer in ((b"", b"ready"), (b"\x03", b"SIGINT"), (b"\x03", b"SIGINT"), (b"end\n", b"[1, 2, 3]")):
            terminal.write(typed)
            expected = shown.count(answer) + 1
            while shown.count(answer) < expected:
                shown += terminal.read(1024)
        assert shown.count(b"SIGINT") == 2
        assert dev.wait(timeout=30) == 0
    sandbox.check_clean(0)


def test_a_killed_runner_leaves_nothing_of_the_command_or_the_stack(sandbox: Sandbox) -> None:
    with sandbox.start("sh", "-c", "setsid sleep 301 & echo ready; sleep 302") as dev:
        assert read_line(dev.stdout) == "ready"
        wait_until(lambda: sandbox.find("301"))
        assert len(sandbox.ports()) == 1
        dev.kill()
        dev.wait()
        sandbox.check_clean()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_while_the_stack_starts_leaves_nothing(sandbox: Sandbox, number: signal.Signals) -> None:
    with sandbox.start("echo", "must not run") as dev:
        wait_until(lambda: sandbox.find("celery"))
        dev.send_signal(number)
        assert dev.wait(timeout=30) == (128 + number if number == signal.SIGINT else -number)
        assert dev.stdout
        assert not dev.stdout.read()
        sandbox.check_clean()


def test_what_the_command_left_in_the_background_ends_with_the_stack(sandbox: Sandbox) -> None:
    assert sandbox.run("sh", "-c", "setsid sleep 303 >/dev/null 2>&1 &").returncode == 0
    sandbox.check_clean(0)


def test_a_stack_that_cannot_start_gives_125_and_keeps_its_logs(sandbox: Sandbox) -> None:
    done = sandbox.dev(
        "run", "--lane", "cpu=1", "--", "echo", "must not run",
        PYTHONPATH=str(broken_sitecustomize(sandbox)),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (125, "")
    assert "ended with exit code 3" in done.stderr
    kept = Path(done.stderr.splitlines()[-1].removeprefix("The logs are kept in "))
    assert "broken on purpose" in next(kept.glob("worker-cpu*.log")).read_text()
    assert sandbox.files() == [kept]


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        ({"GRAFT_SOFT_TIME_LIMIT": "9999"}, "soft_time_limit=9999 s must be below hard_time_limit"),
        ({"CELERY_BROKER_URL": "amqp://somewhere"}, "CELERY_BROKER_URL=amqp://somewhere is not Redis"),
        ({"GRAFT_SIGNING_KEY": "short", "CELERY_BROKER_URL": "redis://x"}, "at least 16 are needed"),
    ],
)
def test_settings_that_cannot_work_give_125_and_no_traceback(
    sandbox: Sandbox, environ: dict[str, str], complaint: str
) -> None:
    done = sandbox.run("echo", "must not run", **environ)
    assert (done.returncode, done.stdout) == (125, "")
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def broken_sitecustomize(sandbox: Sandbox) -> Path:
    """A directory that, on PYTHONPATH, ends every Celery process at its start."""
    code = "import os, sys\nif 'celery' in sys.orig_argv:\n    os.write(2, b'broken on purpose')\n    os._exit(3)\n"
    (sandbox.work / "sitecustomize.py").write_text(code)
    return sandbox.work


def test_a_worker_that_dies_under_the_command_is_reported_and_the_exit_code_kept(sandbox: Sandbox) -> None:
    with sandbox.start("sh", "-c", "echo ready; read line; exit 5") as dev:
        assert read_line(dev.stdout) == "ready"
        worker = sandbox.find("celery")
        assert worker
        worker.kill()
        psutil.wait_procs([worker], timeout=10)
        _, errors = dev.communicate("\n", timeout=30)
        assert dev.returncode == 5
        assert "ended with exit code -9" in errors
        assert "The logs are kept in" in errors
    assert len(sandbox.files()) == 1


@pytest.mark.acl_role("worker")
def test_an_external_broker_is_used_and_left_alone(sandbox: Sandbox, redis_stack: Stack) -> None:
    done = sandbox.run("sh", "-c", "echo $CELERY_BROKER_URL $CELERY_RESULT_BACKEND", **redis_stack.variables)
    assert done.stdout.split() == [redis_stack.redis_url] * 2
    with redis_stack.connect() as client:
        assert client.ping()
    sandbox.check_clean(0)


def test_up_status_and_down(sandbox: Sandbox) -> None:
    assert sandbox.dev("status").returncode == 1
    up = sandbox.dev("up", "--lane", "cpu=1")
    assert up.returncode == 0, up.stderr
    exported = [line for line in up.stdout.splitlines() if line.startswith("export ")]
    assert [line.partition("=")[0].split()[1] for line in exported] == [
        "CELERY_BROKER_URL",
        "CELERY_RESULT_BACKEND",
        "GRAFT_SIGNING_KEY",
    ]
    assert all(path.stat().st_mode & 0o077 == 0 for path in [*sandbox.files(), *sandbox.runtime.rglob("*")])

    again = sandbox.dev("up")
    assert (again.returncode, again.stdout) == (0, up.stdout)
    assert "already up" in again.stderr
    assert sandbox.dev("up", "--lane", "cpu=1").returncode == 0
    larger = sandbox.dev("up", "--lane", "cpu=4")
    assert larger.returncode == 1
    for part in ("--lane cpu=1", "--lane cpu=4 would change nothing", "down"):
        assert part in larger.stderr

    status = sandbox.dev("status")
    assert status.returncode == 0
    for part in ("guard", "cpu1@", "beat", "flower", "redis", "maintenance"):
        assert part in status.stdout

    url = next(line.split()[-1] for line in up.stdout.splitlines() if line.startswith("# Flower:"))
    login, _, address = url.removeprefix("http://").partition("@")
    assert flower_answers(address, "") == 401
    assert flower_answers(address, login) == 200

    used = sandbox.dev("run", "--lane", "cpu=1", "--", "true", **exported_variables(exported))
    assert used.returncode == 0
    assert sandbox.dev("status").returncode == 0

    assert sandbox.dev("down").returncode == 0
    sandbox.check_clean(0)
    assert sandbox.dev("down").returncode == 0


def exported_variables(lines: list[str]) -> dict[str, str]:
    return dict(line.removeprefix("export ").split("=", 1) for line in lines)


def flower_answers(address: str, login: str) -> int:
    passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
    name, _, password = login.partition(":")
    passwords.add_password(None, f"http://{address}/", name, password, is_authenticated=bool(login))
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords))
    try:
        with opener.open(f"http://{address}/", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.parametrize("victim", ["guard_process.py", "worker", "redis-server"])
def test_a_stack_that_lost_a_part_says_so_and_can_be_put_down_and_up_again(sandbox: Sandbox, victim: str) -> None:
    assert sandbox.dev("up", "--lane", "cpu=1").returncode == 0
    process = sandbox.find(victim)
    assert process
    process.kill()
    psutil.wait_procs([process], timeout=10)
    status = sandbox.dev("status")
    assert status.returncode == 1
    assert "ended" in status.stdout
    assert sandbox.dev("down").returncode == 0
    sandbox.check_clean(0)
