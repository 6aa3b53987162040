"""The demo's old program: its functions on small files, good and bad, and the whole of it in one process."""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from graft.scripts.old_program import stdlib_survey as survey
from tests.stack import ROOT

SOURCE = '''\
"""A module."""
import os

if os.name == "posix":
    pass


class Server:
    def serve(self, request):
        for part in request:
            if part:
                continue
            elif not part:
                break
        try:
            pass
        except OSError:
            pass

        def answer():
            while True:
                pass

    class Inner:
        async def wait(self):
            match self:
                case 1:
                    pass
                case _:
                    pass


def parseHTTPHeader(raw_header): return dict(encoding=raw_header, **{})
'''

BROKEN = {
    "syntax": (b"print 'hello'\n", "SyntaxError: Missing parentheses"),
    "indentation": (b"if True:\npass\n", "IndentationError: expected an indented block"),
    "null bytes": (b"x = 1\0\n", "null bytes"),
    "unknown encoding": (b"# coding: uft-8\n", "SyntaxError: unknown encoding: uft-8"),
    "wrong encoding": (b"# coding: ascii\nx = '\xff'\n", "SyntaxError:"),
    "deep": (b"(" * 5000 + b")" * 5000, "Error"),
    "long": (b"x" + b".x" * 100_000, "Error"),
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes], str]:
    def write(name: str, content: bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path)

    return write


def measured(path: str) -> survey.Measure:
    async def both() -> survey.Measure:
        return await survey.measure(await survey.outline(path))

    return asyncio.run(both())


def words(path: str) -> dict[str, int]:
    return asyncio.run(survey.count_words(path))


def test_a_file_is_measured_with_what_is_nested_in_it(write):
    found = measured(write("server.py", SOURCE.encode()))
    assert (found.lines, found.functions, found.classes) == (33, 4, 2)
    assert found.branches == 8  # if; for, if, elif, except; while; two cases.
    assert (found.longest, found.longest_lines) == ("Server.serve", 14)
    assert not found.skipped


def test_branches_belong_to_the_function_that_holds_them(write):
    outlined = asyncio.run(survey.outline(write("server.py", SOURCE.encode())))
    assert outlined.top_branches == 1
    assert {name: branches for name, _, branches in outlined.functions} == {
        "Server.serve": 4,
        "Server.serve.answer": 1,
        "Server.Inner.wait": 2,
        "parseHTTPHeader": 0,
    }


def test_words_are_the_parts_of_identifiers(write):
    path = write("words.py", b"def parseHTTPHeader(raw_header, x=1): return raw_header.splitLines(keepends=x)\n")
    assert words(path) == {"parse": 1, "http": 1, "header": 3, "raw": 2, "split": 1, "lines": 1, "keepends": 1}


def test_an_empty_file_is_a_module_without_anything(write):
    path = write("empty.py", b"")
    assert measured(path) == survey.Measure(path, 0, 0, 0, 0, "", 0, "")
    assert words(path) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"# coding: latin-1\ndef caf\xe9(): pass\n",
        "\ufeffdef café(): pass\n".encode(),
        "def café():\r\n  pass\r\n".encode(),
    ],
    ids=["encoding line", "byte order mark", "carriage returns"],
)
def test_a_file_is_decoded_as_it_says(write, content):
    found = measured(write("cafe.py", content))
    assert (found.longest, found.skipped) == ("café", "")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_skipped_with_its_reason(write, name):
    content, reason = BROKEN[name]
    path = write("broken.py", content)
    found = measured(path)
    assert reason in found.skipped
    assert path not in found.skipped
    assert (found.lines, found.functions) == (0, 0)
    assert words(path) == {}


def test_a_file_that_has_gone_is_skipped(tmp_path):
    assert measured(str(tmp_path / "gone.py")).skipped == "FileNotFoundError: No such file or directory"


def test_odd_escapes_are_no_warning(write):
    assert not measured(write("escape.py", b"x = '\\d'\n")).skipped  # Warnings are errors here.


def test_what_goes_from_stage_to_stage_is_smaller_than_the_file(write):
    path = write("server.py", SOURCE.encode())
    assert len(pickle.dumps(asyncio.run(survey.outline(path)))) < len(SOURCE)


def test_files_are_found_in_order_and_without_what_was_installed(write, tmp_path):
    for name in ("b.py", "a/z.py", "site-packages/pip.py", "a/dist-packages/six.py", "a/notes.txt"):
        write(name, b"")
    (tmp_path / "folder.py").mkdir()
    assert survey.find_files(tmp_path) == [str(tmp_path / "a" / "z.py"), str(tmp_path / "b.py")]


def test_counts_are_merged_into_a_ranking():
    merged = survey.merge_counts([{"self": 2, "name": 1}, {}, {"value": 1, "self": 3, "name": 3}])
    assert list(merged.items()) == [("self", 5), ("name", 4), ("value", 1)]


def test_equals_are_ranked_by_the_alphabet_whatever_comes_first():
    assert (
        list(survey.merge_counts([{"b": 1}, {"a": 1}])) == list(survey.merge_counts([{"a": 1}, {"b": 1}])) == ["a", "b"]
    )


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("os.py", "os"),
        ("email/mime/text.py", "email.mime.text"),
        ("email/__init__.py", "email"),
        ("__init__.py", "__init__"),
    ],
)
def test_a_module_is_named_as_it_is_imported(path, name):
    assert survey.module_name(f"/lib/{path}", Path("/lib")) == name


def test_the_index_ranks_modules_and_names_what_was_skipped(write, tmp_path):
    paths = [
        write("plain.py", b"x = 1\n"),
        write("pkg/__init__.py", SOURCE.encode()),
        write("pkg/bad.py", b"print 'hello'\n"),
    ]
    index = survey.rank([measured(path) for path in paths], {"server": 1}, tmp_path)
    assert index["files"] == 3
    assert [entry["module"] for entry in index["modules"]] == ["pkg", "plain"]
    assert index["longest_function"] == {"name": "pkg.Server.serve", "lines": 14}
    assert list(index["skipped"]) == ["pkg/bad.py"]
    assert index["totals"]["branches"] == 8


def test_an_index_of_nothing_but_broken_files_is_an_index(write, tmp_path):
    index = survey.rank([measured(write("bad.py", b"print 'hello'\n"))], {}, tmp_path)
    assert (index["files"], index["modules"], index["longest_function"]["name"]) == (1, [], "")


@pytest.mark.parametrize("text", ["0", "-3", "many"])
def test_a_number_of_files_is_at_least_one(text):
    with pytest.raises(ValueError, match=text):
        survey.count_of_files(text)


def test_nothing_beside_the_program_hides_a_standard_module():
    beside = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    assert not beside & sys.stdlib_module_names  # Program and workers import from that folder first.


def test_the_program_gives_the_same_index_whatever_its_batches(tmp_path):
    program = ROOT / "scripts" / "old_program" / "stdlib_index.py"
    indexes = []
    for batch_size, max_concurrent in ((1, 1), (7, 3)):
        out = tmp_path / f"{batch_size}.json"
        own = ["--files", "40", "--out", str(out), "--batch-size", str(batch_size)]
        own += ["--max-concurrent", str(max_concurrent)]
        done = subprocess.run(
            [sys.executable, "-m", "graft.compat", "--mode", "local", str(program), *own],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout.startswith("40 files below ")
        indexes.append(out.read_text())
    assert indexes[0] == indexes[1]
    index = json.loads(indexes[0])
    assert (index["files"], len(index["modules"])) == (40, 40)
    times = [count for _, count in index["words"]]
    assert times == sorted(times, reverse=True)
