"""Ctrl-C and ``kill -9``: what runs on workers ends with the program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stack import wait_until

WRITES = """
    import asyncio, multiprocessing, sys, time
    from concurrent.futures import ProcessPoolExecutor
    async def write_both():
        loop = asyncio.get_running_loop()
        with ProcessPoolExecutor(2) as executor:
            await asyncio.gather(*(loop.run_in_executor(executor, write, n) for n in range(2)))
    def write(n):
        while True:
            with open(f"written{n}", "a") as file:
                file.write("x")
            time.sleep(0.01)
    if __name__ == "__main__":
        try:
            print("ready", flush=True)
            if sys.argv[1] == "asyncio":
                asyncio.run(write_both())
            if sys.argv[1] == "executor":
                with ProcessPoolExecutor(2) as executor:
                    list(executor.map(write, range(2)))
            with multiprocessing.Pool(2) as pool:
                pool.map(write, range(2), 1)
        except KeyboardInterrupt:
            if sys.argv[1] != "caught":
                raise
            sys.exit(5)
"""


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("written*")}


@pytest.mark.parametrize(("how", "code"), [("pool", -2), ("executor", -2), ("asyncio", -2), ("caught", 5)])
def test_after_ctrl_c_no_call_writes_once_the_prompt_is_back(write, stack, tmp_path, how, code):
    write("program.py", WRITES)
    for is_running in (True, False):  # Or its guests are still being made.
        program = subprocess.Popen(
            [sys.executable, "-m", "graft.compat", "--pools", "--report", "report.txt", "program.py", how],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        assert program.stdout.readline() == b"ready\n"
        if is_running:
            wait_until(lambda: len(sizes(tmp_path)) == 2, what="both calls run")
        os.killpg(program.pid, signal.SIGINT)  # As a terminal does.
        program.communicate(timeout=30)
        after = sizes(tmp_path)
        assert program.returncode == code
        with pytest.raises(AssertionError):
            wait_until(lambda after=after: sizes(tmp_path) != after, timeout=1.0)
        for name in after:
            (tmp_path / name).unlink()


LONG = """
    import os, sys, time
    from concurrent.futures import ProcessPoolExecutor
    def write_late(n):
        open(f"began{n}", "w").close()
        time.sleep(40)
        open(f"ended{n}", "w").close()
    if __name__ == "__main__":
        print(os.getpid(), flush=True)
        with ProcessPoolExecutor(2) as executor:
            list(executor.map(write_late, range(2)))
"""


def test_after_ctrl_c_and_after_kill_nothing_goes_on(write, stack, tmp_path):
    write("program.py", LONG)
    began = [tmp_path / "began0", tmp_path / "began1"]
    for number in (signal.SIGINT, signal.SIGKILL):
        program = subprocess.Popen(
            [sys.executable, "-m", "graft.compat", "--pools", "--report", "report.txt", "program.py"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, "GRAFT_GUEST_LEASE": "1"},
        )  # fmt: skip
        wait_until(lambda: all(path.exists() for path in began), what="both calls run")
        program.send_signal(number)
        program.communicate(timeout=30)
        assert program.returncode == -number
        wait_until(lambda: not _guests_in(tmp_path), timeout=20, what="the guests have ended")
        assert not list(tmp_path.glob("ended*"))
        for path in began:
            path.unlink()


def _guests_in(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"guest_process.py" in (process / "cmdline").read_bytes() and os.readlink(process / "cwd") == str(
                folder
            ):
                found.append(process.name)
        except OSError:
            continue
    return found
