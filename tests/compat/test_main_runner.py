"""``python -m graft.compat program.py`` beside ``python program.py``: real programs, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import zipfile

import pytest

OLD_STYLE = """
import asyncio
from libs.async_worker_optimization import AsyncWorkerOptimizer

async def double(x):
    return 2 * x

async def fail(x):
    raise ValueError(f"no {x}")

if __name__ == "__main__":
    optimizer = AsyncWorkerOptimizer()
    print(asyncio.run(optimizer.optimize_batch_processing(list(range(25)), double)))
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """``write(name, source)`` puts a file into the folder that the programs run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRAFT_MODE", raising=False)

    def write(name, source):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        return path

    return write


def python(*arguments, **options):
    """What a Python process says and how it ends."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        **options,
    )


def graft(*arguments, **options):
    return python("-m", "graft.compat", *arguments, **options)


def without_report(text):
    return text.partition("Call report:")[0]


def test_an_old_program_runs_unchanged_and_ends_with_its_call_report(write):
    write("old.py", OLD_STYLE)
    ended = graft("--mode", "local", "old.py")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{[2 * x for x in range(25)]}\n"
    assert ended.stderr.startswith("Call report: 1 call, 0 in the cluster and 1 on this machine\n")
    assert "  AsyncWorkerOptimizer.optimize_batch_processing\n  __main__:double [1]\n" in ended.stderr
    assert "[1] GRAFT_MODE is local\n" in ended.stderr


def test_the_report_may_go_to_standard_output_after_what_the_program_says(write):
    write("old.py", OLD_STYLE)
    ended = graft("--mode", "local", "--report", "-", "old.py")
    first, second = ended.stdout.splitlines()[:2]
    assert (first[:7], second[:12]) == ("[0, 2, ", "Call report:")
    assert ended.stderr == ""


def test_the_report_may_go_to_a_file_wherever_the_program_has_gone(write, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    write("old.py", OLD_STYLE + "    import os; os.chdir('elsewhere')\n")
    ended = graft("--mode", "local", "--report", "calls.json", "old.py")
    assert (ended.returncode, ended.stderr) == (0, "")
    (row,) = json.loads((tmp_path / "calls.json").read_text())["calls"]
    assert (row["func"], row["where"], row["items"], row["failures"]) == ("__main__:double", "local", 25, 0)
    assert graft("--mode", "local", "--report", "elsewhere/calls.txt", "old.py").stderr == ""
    assert (tmp_path / "elsewhere" / "calls.txt").read_text().startswith("Call report: 1 call, ")


def test_a_program_that_fails_is_reported_too(write):
    write("old.py", OLD_STYLE.replace("double)))", "fail)))"))
    ended = graft("--mode", "local", "old.py")
    assert ended.returncode == 1
    traceback, _, report = ended.stderr.partition("Call report:")
    assert traceback.startswith('Traceback (most recent call last):\n  File "')
    assert traceback.rstrip().endswith("ValueError: no 0")
    assert "1 call, 0 in the cluster and 1 on this machine" in report


def test_calls_of_exit_callbacks_and_threads_are_in_the_report(write):
    write(
        "old.py",
        OLD_STYLE
        + """
    import atexit, threading, time
    def later():
        time.sleep(0.2)
        asyncio.run(optimizer.optimize_batch_processing([1], double))
    threading.Thread(target=later).start()
    atexit.register(lambda: asyncio.run(optimizer.optimize_batch_processing([1, 2], double)))
""",
    )
    ended = graft("--mode", "local", "--report", "calls.json", "old.py")
    assert (ended.returncode, ended.stderr) == (0, "")
    with open("calls.json", encoding="utf-8") as file:
        (row,) = json.load(file)["calls"]
    assert (row["calls"], row["items"]) == (3, 28)


SELF_PORTRAIT = """
import sys, os, inspect, pickle
def here(): pass
main = sys.modules["__main__"]
print(__name__, __file__, __doc__, __package__, __spec__ and __spec__.name, type(__loader__).__name__)
print(sys.argv, sys.path[0], os.getcwd())
print(main.__dict__ is globals(), here.__module__, here.__code__.co_filename, pickle.loads(pickle.dumps(here)) is here)
print(inspect.getsource(here), "annotations" in str(here.__code__.co_flags), len(inspect.stack()) > 0)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["portrait.py"],
        ["./folder/../portrait.py", "--mode", "x", "-h", "--", "-m", "--report=3"],
        ["folder/inner.py", "--", "a"],
        ["link.py"],
        ["-m", "portrait", "--mode", "cluster", "--", "-h"],
        ["-m", "folder.inner", "a", "b"],
        ["-m", "package", "x"],
        ["folder"],
        ["archive.zip", "--replace"],
    ],
    ids=" ".join,
)
def test_a_program_sees_what_python_shows_it(write, tmp_path, arguments):
    write("portrait.py", SELF_PORTRAIT)
    write("folder/inner.py", '"""Text."""\n' + SELF_PORTRAIT)
    write("folder/__main__.py", SELF_PORTRAIT)
    write("package/__init__.py", "")
    write("package/__main__.py", "from . import part\n" + SELF_PORTRAIT)
    write("package/part.py", "")
    (tmp_path / "link.py").symlink_to("folder/inner.py")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("__main__.py", SELF_PORTRAIT)
    plain, ours = python(*arguments), graft(*arguments)
    assert plain.returncode == 0, plain.stderr
    assert ours.stdout == plain.stdout
    assert ours.returncode == 0


@pytest.mark.parametrize(
    "source",
    [
        "import sys; sys.exit(7)",
        "import sys; sys.exit()",
        "import sys; sys.exit('some text')",
        "raise SystemExit(True)",
        "def inner():\n    raise KeyError('x')\ninner()",
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise ValueError('second') from error",
        "import json\njson.loads('{')",
        "raise ExceptionGroup('two', [ValueError(1), TypeError(2)])",
        "this is no python",
        "x = 1\n  y = 2",
        "import no_such_module_anywhere",
        "import broken",
        "import sys\nsys.excepthook = lambda *a: print('hook', a[0].__name__, a[2].tb_frame.f_code.co_name)\n1 / 0",
        "import atexit, sys\natexit.register(lambda: print(__name__, sys.modules['__main__'].x))\nx = 5",
        "import threading\nx = 5\nthreading.Timer(0.2, lambda: print(x, __import__('__main__').x)).start()",
        "import warnings; warnings.warn('old', DeprecationWarning)",
        "import os; os._exit(9)",
        "import sys; sys.stdout.write('no newline')",
        "raise KeyboardInterrupt",
        "import asyncio\nasync def main():\n    raise KeyboardInterrupt\nasyncio.run(main())",
        "import multiprocessing as m\ndef work(x): return x + 1\nif __name__ == '__main__':\n"
        "    with m.get_context('spawn').Pool(1) as pool: print(pool.map(work, [1, 2]))",
    ],
)
def test_a_program_ends_as_it_does_under_python(write, source):
    write("broken.py", "def f(:")
    path = write("program.py", source)
    plain, ours = python(path), graft("--report", "report.txt", path)
    assert ours.returncode == plain.returncode
    assert ours.stdout == plain.stdout
    assert ours.stderr == plain.stderr


@pytest.mark.parametrize(
    "source",
    ["1 / 0", "raise SystemExit(4)", "from . import sibling", "import broken", "raise KeyboardInterrupt"],
)
def test_a_module_ends_as_it_does_under_python(write, source):
    write("package/__init__.py", "")
    write("package/sibling.py", "print('sibling')")
    write("broken.py", "def f(:")
    write("package/program.py", source)
    plain, ours = python("-m", "package.program"), graft("--report", "report.txt", "-m", "package.program")
    # Python shows the frames of its own runpy; ours are left out, and so are those.
    theirs = [line for line in plain.stderr.splitlines() if "<frozen runpy>" not in line]
    assert (ours.returncode, ours.stdout, ours.stderr.splitlines()) == (plain.returncode, plain.stdout, theirs)


def test_an_interrupted_program_ends_by_the_signal_after_its_report(write):
    write("program.py", "import time\nprint('ready', flush=True)\ntime.sleep(60)")
    with subprocess.Popen(
        [sys.executable, "-m", "graft.compat", "program.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt\nCall report: " in errors
    assert "graft" not in errors.partition("Call report: ")[0]


def test_a_forked_child_that_exits_writes_no_second_report(write):
    write("program.py", "import os, sys\nif not os.fork(): sys.exit(3)\nprint(os.waitstatus_to_exitcode(os.wait()[1]))")
    ended = graft("program.py")
    assert ended.stdout == "3\n"
    assert ended.stderr.count("Call report:") == 1


def test_without_a_safe_path_flag_the_folder_comes_first_and_with_it_it_does_not(write, tmp_path):
    write("program.py", "import sys; print(sys.path[0])")
    assert graft("program.py").stdout == f"{tmp_path}\n"
    plain, ours = python("-P", "program.py"), python("-P", "-m", "graft.compat", "program.py")
    assert ours.stdout == plain.stdout


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["missing.py"], "can't open file '{here}/missing.py': [Errno 2] No such file or directory", 2),
        (["empty"], "can't find '__main__' module in 'empty'", 1),
        (["-m", "no_such_module"], "No module named no_such_module", 1),
        (["-m", "no_such.module"], "Error while finding module specification for 'no_such.module'", 1),
        (["-m"], "argument -m: expected the name of a module", 2),
        ([], "name a program to run, or a module with -m", 2),
        (["--mode", "elsewhere", "ok.py"], "invalid choice: 'elsewhere'", 2),
        (["--report", "missing/calls.txt", "ok.py"], "there is no folder {here}/missing; make it first", 2),
        (["--report", "empty", "ok.py"], "{here}/empty is a folder; name a file in it", 2),
        (
            ["--replace", "acme.pools", "ok.py"],
            "there is no facade named 'pools'; write acme.pools=FACADE with one of",
            2,
        ),
        (["--replace", "acme=nothing", "ok.py"], "there is no facade named 'nothing'; choose one of: async_worker", 2),
        (["--pools=fibres", "ok.py"], "there are no pools called 'fibres'; choose processes, threads, single, or", 2),
        (["--rep=-", "ok.py"], "unrecognized arguments", 2),
        (["--shadow", "2", "ok.py"], "shadow=2 must be a share from 0 to 1", 2),
        (["--shadow", "0.5", "--equal", "a", "ok.py"], "equal='a' must be ==, pickle, or module:function", 2),
        (["--mode", "local", "--canary", "1", "ok.py"], "GRAFT_MODE is local: there is no cluster to compare with", 2),
        (["--verdict", "a.html", "ok.py"], "--verdict says nothing without --shadow or --canary", 2),
        (["--shadow", "1", "--verdict", "missing/a.html", "ok.py"], "missing/a.html: there is no such folder", 2),
        (["--shadow", "1", "--files", "missing", "ok.py"], "there is no folder {here}/missing; make it first", 2),
    ],
)
def test_bad_arguments_are_refused_before_the_program_runs(write, tmp_path, arguments, message, code):
    write("ok.py", "print('ran')")
    (tmp_path / "empty").mkdir()
    ended = graft(*arguments)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert message.format(here=tmp_path) in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Call report" not in ended.stderr


def test_without_redis_the_old_way_answers_and_the_verdict_says_what_was_missed(write, tmp_path):
    write("old.py", OLD_STYLE)
    env = os.environ | {"CELERY_BROKER_URL": "redis://127.0.0.1:1/0", "GRAFT_SIGNING_KEY": "k" * 32}
    env.pop("CELERY_RESULT_BACKEND", None)
    ended = graft("--shadow", "1", "--canary", "0.5", "--json", "--fail-on", "cannot", "old.py", env=env)
    printed, _, verdict = ended.stdout.partition("\n")
    assert printed == str([2 * x for x in range(25)])
    assert "Redis does not answer, so the old way answers every call" in ended.stderr
    (one,) = json.loads(verdict)["callables"]
    assert (one["callable"], one["verdict"], one["missed"]) == ("__main__:double", "cannot", 25)
    assert one["reason"] == "Redis did not answer"
    assert ended.returncode == 3
    write("fails.py", OLD_STYLE + "    raise SystemExit(5)\n")
    assert graft("--shadow", "1", "--fail-on", "cannot", "fails.py", env=env).returncode == 5


def test_other_modules_are_replaced_on_request(write):
    write("old.py", OLD_STYLE.replace("libs.async_worker_optimization", "acme.pools"))
    ended = graft("--mode", "local", "--replace", "acme.pools=async_worker_optimization", "old.py")
    assert (ended.returncode, without_report(ended.stderr)) == (0, "")
    assert ended.stdout.startswith("[0, 2, 4")


def test_replacing_a_module_that_nobody_imports_is_an_error_after_the_run(write):
    write("old.py", OLD_STYLE)
    replace = ["--replace", "acme.async_worker_optimization", "--replace", "libs.async_worker_optimization"]
    ended = graft("--mode", "local", *replace, "old.py")
    assert ended.returncode == 2
    assert ended.stdout.startswith("[0, 2, 4")
    assert without_report(ended.stderr) == (
        "python -m graft.compat: --replace acme.async_worker_optimization: the program never imported that; check the "
        "name in its import lines\n"
    )
    write("fails.py", "raise SystemExit(5)")
    ended = graft("--replace", "acme.async_worker_optimization", "fails.py")
    assert ended.returncode == 5
    assert "never imported" in ended.stderr
    write("exits.py", "raise SystemExit(0)")
    assert graft("--replace", "acme.async_worker_optimization", "exits.py").returncode == 2


def test_the_mode_is_set_before_settings_are_read(write):
    write(
        "program.py",
        "import os\nfrom graft.config.deployment import settings\nprint(settings().mode, os.environ['GRAFT_MODE'])",
    )
    for mode in ("local", "cluster"):
        other = {"local": "cluster", "cluster": "local"}[mode]
        assert graft("--mode", mode, "program.py", env=os.environ | {"GRAFT_MODE": other}).stdout == f"{mode} {mode}\n"
    assert graft("program.py", env=os.environ | {"GRAFT_MODE": "local"}).stdout == "local local\n"


def test_functions_of_the_program_travel_by_value(write):
    write(
        "program.py",
        """
        import atexit
        from graft.tasks.callables.references import refer, resolve
        BASE = 40
        def add(x): return BASE + x
        def show():
            ref = refer(add)
            print(ref.how, ref.name, resolve(ref)(2))
        show()
        atexit.register(show)
        """,
    )
    assert graft("program.py").stdout == "value __main__:add 42\n" * 2


def test_a_program_that_closes_its_streams_still_ends_in_peace(write):
    write("program.py", "import sys\nprint('x')\nsys.stdout.close()")
    plain, ours = python("program.py"), graft("program.py")
    assert (ours.returncode, ours.stdout) == (plain.returncode, plain.stdout) == (0, "x\n")
    assert "Traceback" not in ours.stderr


def test_a_program_that_captures_its_output_does_not_catch_the_report(write):
    write("program.py", "import io, sys\nsys.stdout = sys.stderr = io.StringIO()\nprint('caught')")
    ended = graft("--report", "-", "program.py")
    assert ended.stdout == "Call report: no call went through the old interfaces.\n"


def test_help_shows_the_forms_and_examples():
    ended = graft("--help")
    assert ended.returncode == 0
    for words in ("--replace OLD[=NEW]", "-m module", "examples:", "python -m graft.scripts.dev run --", "exit code"):
        assert words in ended.stdout
