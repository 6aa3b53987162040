"""Source trees are read and never run; each use is judged as the running program would be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from graft.compat.placement import place_calls
from graft.compat.scan import command
from graft.compat.scan.obstacles import RULES
from tests.stack import ROOT

WORK = """
import os
DB = None
CACHE = {}

def setup(url):
    global DB
    DB = url

def total(x):
    return x * 2

def query(x):
    return DB, x

def remember(x):
    CACHE[x] = 1

def counted(x):
    global COUNT
    COUNT = x

def printing(x):
    print("row", x)

def reading(x):
    with open("rows.txt") as file:
        return file.read()

def absolute(x):
    with open("/srv/rows.txt") as file:
        return file.read()

def indirect(x):
    return printing(x)

def ending(x):
    os._exit(1)

def changing(xs):
    xs.append(1)

async def fetch(x):
    return x
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with the module ``work``."""
    (tmp_path / "work.py").write_text(WORK)
    return tmp_path


def run(folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "graft.compat", "scan", "--json", *options, str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert not done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def calls(folder: Path, source: str, name: str = "main.py") -> list[dict[str, Any]]:
    """The calls that a scan of *folder* finds in a file with *source*."""
    (folder / name).write_text(dedent(source))
    report = command.scan([folder], {"libs.async_worker_optimization": "graft.compat.async_worker_optimization"})
    found = json.loads(report.as_json())
    assert found["not_read"] == []
    return [call for call in found["calls"] if call["path"].endswith(name)]


def judged(folder: Path, source: str) -> tuple[str, list[str]]:
    """The verdict on the only call of *source*, and the rules that speak against it."""
    (call,) = calls(folder, source)
    return call["verdict"], [obstacle["rule"] for obstacle in call["obstacles"]]


POOL = """
from concurrent.futures import ProcessPoolExecutor
import work

def main():
    with ProcessPoolExecutor() as executor:
        executor.{call}
"""


# ---- what stands in the way ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "verdict", "rules"),
    [
        ("map(work.total, range(10))", "moves", []),
        ("submit(pow, 2, 3)", "moves", []),
        ("submit(work.absolute, 1)", "moves", []),
        ("submit(work.unknown_to_us, 1)", "moves", []),
        ("submit(work.query, 1)", "not as it is", ["global"]),
        ("submit(work.counted, 1)", "with care", ["global"]),
        ("submit(work.remember, 1)", "moves", []),  # Processes had a dict each before, too.
        ("submit(work.printing, 1)", "with care", ["output"]),
        ("submit(work.indirect, 1)", "with care", ["output"]),
        ("submit(work.reading, 1)", "with care", ["cwd"]),
        ("submit(work.ending, 1)", "with care", ["exits"]),
        ("submit(work.total, open('/x'))", "not as it is", ["handle"]),
        ("submit(work.total, [0] * 10_000_000)", "with care", ["large"]),
        ("submit(work.total, [0] * 10)", "moves", []),
        ("submit(work.total, (x for x in 'ab'))", "not as it is", ["handle"]),
        ("map(work.total, (x for x in 'ab'))", "moves", []),
        ("map(work.total, [lambda: 1])", "not as it is", ["handle"]),
        ("submit(lambda: 1)", "moves", []),
    ],
)
def test_each_rule_speaks_where_it_should_and_nowhere_else(tree, call, verdict, rules):
    assert judged(tree, POOL.format(call=call)) == (verdict, rules)


NESTED = """
import threading
from concurrent.futures import ThreadPoolExecutor

def main(given, self=None):
    factor, rows, lock = 3, [], threading.Lock()
    def work(x):
        return {expression}
    ThreadPoolExecutor().submit(work, 1)
"""


@pytest.mark.parametrize(
    ("expression", "verdict", "rules"),
    [
        ("x", "moves", []),
        ("factor * x", "moves", []),
        ("len(str(x))", "moves", []),
        ("rows", "not as it is", ["state"]),
        ("lock", "not as it is", ["handle"]),
        ("given * x", "unknown", ["unknown"]),
        ("self.price(x)", "not as it is", ["state"]),
        ("eval('x')", "not as it is", ["state"]),
        ("threading.get_ident()", "moves", []),
    ],
)
def test_a_nested_function_is_judged_by_what_it_captures(tree, expression, verdict, rules):
    assert judged(tree, NESTED.format(expression=expression)) == (verdict, rules)


def test_a_lambda_over_state_and_one_that_assigns_to_its_surroundings_stay(tree):
    found = calls(
        tree,
        """
        from concurrent.futures import ProcessPoolExecutor
        def main(executor: ProcessPoolExecutor):
            seen, count = {}, 0
            def counting():
                nonlocal count
                count += 1
            executor.submit(lambda x: seen.get(x), 1); executor.submit(lambda x: x, 1)
            executor.submit(counting)
        """,
    )
    assert [call["verdict"] for call in found] == ["not as it is", "moves", "not as it is"]
    assert "captures 'seen' (dict), which is the caller's own state" in found[0]["obstacles"][0]["text"]
    assert "assigns to 'count'" in found[2]["obstacles"][0]["text"]


@pytest.mark.parametrize("code", ["factor * 2", "rows", "len", "json.dumps(1)", "helper()", "changing()", "Local()"])
def test_the_verdict_on_a_copy_is_that_of_the_running_program(tree, code):
    """The same source, once read and once run: placement decides on the live function."""
    source = f"""
import json
from concurrent.futures import ProcessPoolExecutor

factor, rows = 3, [1]

class Local:
    pass

def helper():
    return factor

def changing():
    rows.append(1)

def work():
    return {code}

if __name__ == "__main__":
    ProcessPoolExecutor().submit(work)
"""
    (tree / "main.py").write_text(source)
    (call,) = json.loads(command.scan([tree / "main.py"], {}).as_json())["calls"]
    space: dict[str, Any] = {"__name__": "not imported by anybody"}
    exec(compile(source, "main.py", "exec"), space)
    assert (call["verdict"] == "moves") == (place_calls(space["work"]).where == "cluster"), call


def test_globals_are_seen_where_the_pools_own_initializer_sets_them(tree):
    source = """
    import multiprocessing, work
    def main():
        with multiprocessing.Pool(2, initializer=work.setup, initargs=("url",)) as pool:
            pool.map(work.query, [1])
        with multiprocessing.get_context("spawn").Pool(2) as other:
            other.map(work.query, [1])
    """
    found = calls(tree, source)
    assert [call["verdict"] for call in found] == ["moves", "not as it is"]
    (obstacle,) = found[1]["obstacles"]
    assert obstacle["path"].endswith("work.py")
    assert "'DB', which setup() sets" in obstacle["text"]
    assert "initializer=" in obstacle["change"]


def test_what_the_main_guard_sets_is_not_seen_by_importers(tree):
    (tree / "jobs.py").write_text(
        "LIMIT = 1\ndef job(x):\n    return LIMIT\nif __name__ == '__main__':\n    LIMIT = 2\n"
    )
    source = "from multiprocessing import Pool\nimport jobs\nPool().map(jobs.job, [1])\n"
    (call,) = calls(tree, source)
    assert "which the main guard sets (line 5)" in call["obstacles"][0]["text"]


def test_a_lock_on_its_way_is_found_behind_names_and_in_tuples(tree):
    source = """
    import threading, work
    from concurrent.futures import ProcessPoolExecutor
    lock = threading.Lock()
    def main(executor: ProcessPoolExecutor, xs):
        executor.map(work.total, [(lock, x) for x in xs])
    """
    (call,) = calls(tree, source)
    (obstacle,) = call["obstacles"]
    assert obstacle["text"] == "'lock' is passed (threading.Lock), which cannot be pickled"
    assert "async_patterns.Semaphore" in obstacle["change"]


def test_a_pool_inside_a_task_is_named(tree):
    (tree / "nesting.py").write_text(POOL.format(call="submit(work.total, 1)"))
    assert judged(tree, POOL.format(call="submit(nesting.main)").replace("import work", "import nesting")) == (
        "with care", ["nested"] * 2,
    )  # fmt: skip


def test_threads_share_what_processes_copied(tree):
    source = """
    from concurrent.futures import {executor}
    import work
    {executor}().submit(work.{name}, [])
    """
    for name, rules in (("changing", ["argument"]), ("remember", ["global"])):
        assert judged(tree, dedent(source).format(executor="ThreadPoolExecutor", name=name)) == ("with care", rules)
        assert judged(tree, dedent(source).format(executor="ProcessPoolExecutor", name=name)) == ("moves", [])


# ---- what is found ---------------------------------------------------------------------------------------------------


def test_pools_are_followed_through_attributes_aliases_and_contexts(tree):
    source = """
    import multiprocessing as mp
    from concurrent import futures
    from multiprocessing.pool import ThreadPool as TP
    import work as w
    class Shop:
        def __init__(self):
            self.pool = futures.ThreadPoolExecutor(4)
        def run(self, xs):
            self.pool.submit(w.total, 1)
            self.pool.map(self.price, xs)
        def price(self, x):
            return x
    def main():
        pool = TP(3)
        pool.imap_unordered(w.total, [1])
        mp.Pool().apply_async(w.total, args=(1,))
    """
    found = [(call["call"], call["callable"], call["verdict"]) for call in calls(tree, source)]
    assert found == [
        ("ThreadPoolExecutor.submit", "total", "moves"),
        ("ThreadPoolExecutor.map", "self.price", "not as it is"),
        ("ThreadPool.imap_unordered", "total", "moves"),
        ("multiprocessing.Pool.apply_async", "total", "moves"),
    ]


def test_joblib_and_event_loops_are_read(tree):
    source = """
    import asyncio
    from joblib import Parallel, delayed
    import work
    def batch(xs):
        return Parallel(n_jobs=4)(delayed(work.total)(x) for x in xs)
    async def main(xs, session):
        limit = asyncio.Semaphore(10)
        async def bounded(x):
            async with limit:
                return await work.fetch(x)
        coroutines = [work.fetch(x) for x in xs]
        await asyncio.gather(*coroutines)
        await asyncio.gather(*map(work.fetch, xs))
        await asyncio.gather(*(asyncio.create_task(bounded(x)) for x in xs), work.fetch(1))
        async with asyncio.TaskGroup() as group:
            group.create_task(work.fetch(2))
        await asyncio.to_thread(work.printing, 1)
        await asyncio.get_running_loop().run_in_executor(None, work.total, 1)
    """
    found = [(call["call"], call["callable"], call["verdict"]) for call in calls(tree, source)]
    assert found == [
        ("joblib.Parallel", "total", "moves"),
        ("asyncio.Semaphore", "", "with care"),
        ("asyncio.gather", "fetch", "moves"),
        ("asyncio.gather", "fetch", "moves"),
        ("asyncio.gather", "main.<locals>.bounded", "not as it is"),
        ("asyncio.gather", "fetch", "moves"),
        ("asyncio.TaskGroup.create_task", "fetch", "moves"),
        ("asyncio.to_thread", "printing", "with care"),
        ("loop.run_in_executor", "total", "moves"),
    ]


def test_old_modules_move_by_themselves_and_their_calls_are_judged(tree):
    source = """
    from libs.async_worker_optimization import AsyncWorkerOptimizer, AsyncTaskScheduler
    import work
    async def main(items):
        optimizer, seen = AsyncWorkerOptimizer(), []
        await optimizer.optimize_batch_processing(items, work.total, batch_size=10)
        await optimizer.optimize_batch_processing(items, lambda x: seen.append(x))
        await AsyncTaskScheduler().schedule_task("a", work.total)
    """
    found = calls(tree, source)
    assert [(call["call"].rpartition(".")[2], call["verdict"]) for call in found] == [
        ("AsyncWorkerOptimizer", "moves"), ("AsyncTaskScheduler", "moves"), ("optimize_batch_processing", "moves"),
        ("optimize_batch_processing", "not as it is"), ("schedule_task", "moves"),
    ]  # fmt: skip
    assert {call["kind"] for call in found} == {"async_worker_optimization"}


def test_a_pool_whose_calls_are_elsewhere_is_not_forgotten(tree):
    verdict, rules = judged(tree, "from multiprocessing import Pool\ndef make():\n    return Pool(3)\n")
    assert (verdict, rules) == ("unknown", ["unknown"])


def test_packages_and_relative_imports_are_followed(tmp_path):
    package = tmp_path / "src" / "shop"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "work.py").write_text("def loud(x):\n    print(x)\n")
    (package / "run.py").write_text(
        "from concurrent.futures import ProcessPoolExecutor\nfrom .work import loud\nimport shop.work\n"
        "def main(e: ProcessPoolExecutor):\n    e.submit(loud)\n    e.submit(shop.work.loud)\n"
    )
    for root in (tmp_path, tmp_path / "src", package):
        found = json.loads(command.scan([root], {}).as_json())["calls"]
        assert [[each["rule"] for each in call["obstacles"]] for call in found] == [["output"], ["output"]], root


# ---- the command -----------------------------------------------------------------------------------------------------


def test_nothing_that_is_scanned_is_run(tree):
    (tree / "main.py").write_text("import pathlib\npathlib.Path(__file__ + '.ran').touch()\nraise SystemExit(7)\n")
    code, found = run(tree)
    assert (code, found["files"], found["calls"]) == (0, 2, [])
    assert not (tree / "main.py.ran").exists()


@pytest.mark.parametrize(
    ("call", "codes"),
    [
        ("submit(work.total, 1)", {"never": 0, "blocked": 0, "unknown": 0, "care": 0}),
        ("submit(work.printing, 1)", {"never": 0, "blocked": 0, "unknown": 0, "care": 1}),
        ("submit(given, 1)", {"never": 0, "blocked": 0, "unknown": 1, "care": 1}),
        ("submit(work.query, 1)", {"never": 0, "blocked": 1, "unknown": 1, "care": 1}),
    ],
)
def test_the_exit_code_says_what_stands_in_the_way(tree, call, codes):
    (tree / "main.py").write_text(POOL.format(call=call).replace("main()", "main(given)"))
    report = command.scan([tree], {})
    assert {fail_on: report.exit_code(fail_on) for fail_on in codes} == codes


def test_files_that_cannot_be_read_are_named_and_the_rest_is_scanned(tree):
    (tree / "main.py").write_text(POOL.format(call="submit(work.total, 1)"))
    (tree / "old.py").write_text("x = 1\nprint 'two'\n")
    (tree / "outside.py").write_text("return 1\n")
    (tree / "nulls.py").write_bytes(b"x = 'a\0b'\n")
    (tree / "latin.py").write_bytes(b"x = '\xe9'\n")
    (tree / "declared.py").write_bytes(b"# coding: latin-1\nx = '\xe9'\n")
    (tree / "deep.py").write_text("x = " + "(" * 5000 + ")" * 5000 + "\n")
    (tree / "gone.py").symlink_to(tree / "nowhere.py")
    (tree / ".hidden").mkdir()
    (tree / ".hidden" / "bad.py").write_text("(")
    (tree / "env").mkdir()
    (tree / "env" / "pyvenv.cfg").touch()
    (tree / "env" / "bad.py").write_text("(")
    code, found = run(tree)
    assert code == 3
    assert [call["verdict"] for call in found["calls"]] == ["moves"]
    named = {Path(each["path"]).name: each for each in found["not_read"]}
    assert named.keys() == {"old.py", "outside.py", "nulls.py", "latin.py", "deep.py", "gone.py"}
    assert named["old.py"]["line"] == 2
    assert named["old.py"]["reason"].startswith("is not Python 3.")
    assert "'return' outside function" in named["outside.py"]["reason"]
    assert named["gone.py"]["reason"] == "No such file or directory"


def test_the_report_for_people_has_lines_changes_and_a_table(tree, capsys):
    (tree / "main.py").write_text(POOL.format(call="submit(work.query, 1)") + "        executor.map(work.total, [1])\n")
    assert command.main([str(tree)]) == 1
    shown = capsys.readouterr().out
    for part in (
        "7  ProcessPoolExecutor.submit  query: not as it is", "work.py, line 13)", "change: pass it as an argument",
        "to move it: from graft.compat.executor import CeleryExecutor as ProcessPoolExecutor",
        "2 files: 1 of 2 calls can move, 50 %.",
    ):  # fmt: skip
        assert part in shown
    (row,) = [line for line in shown.splitlines() if line.startswith("all ")]
    assert row.split() == ["all", "2", "1", "0", "0", "1"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "the following arguments are required: PATH"),
        (["nowhere"], "there is no file or folder nowhere"),
        (["--replace", "a/b", "."], "argument --replace: 'a/b' does not name a module"),
        (["--fail-on", "all", "."], "invalid choice: 'all'"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as refused:
        command.main(arguments)
    assert refused.value.code == 2
    assert complaint in capsys.readouterr().err


def test_the_guide_has_every_rule_and_every_exit_code():
    page = (ROOT / "docs" / "migration.md").read_text()
    for rule in RULES:
        assert f"| `{rule}` |" in page


def test_our_own_examples_and_samples_are_scanned_without_an_error():
    report = command.scan([ROOT / "docs", ROOT / "tests", ROOT / "compat"], {})
    assert report.unreadable == []
    assert report.files > 200
