"""The functions that stdlib_index.py applies to every file: outline, measure, count words, and merge the results.

The functions that are applied to items are ``async`` because the old optimizer takes nothing else. Each catches what a
bad file does, so that one unreadable file costs one line of the result and not the run.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BLOCKS = ("body", "orelse", "handlers", "finalbody", "cases")
NAMED_BY: dict[type[ast.AST], str] = {
    ast.Name: "id",
    ast.Attribute: "attr",
    ast.FunctionDef: "name",
    ast.AsyncFunctionDef: "name",
    ast.ClassDef: "name",
    ast.arg: "arg",
    ast.keyword: "arg",
}
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # HTTPServer_for -> HTTP, Server, for
SHORTEST_WORD = 3


@dataclass(frozen=True)
class Outline:
    """The facts of a file that pass from the first stage to the second: a syntax tree is a hundred times as large."""

    path: str
    lines: int = 0
    classes: int = 0
    top_branches: int = 0  # Branches outside of any function.
    functions: list[tuple[str, int, int]] = field(default_factory=list)  # name, lines, branches of its own
    skipped: str = ""  # Why the file could not be read or parsed.


@dataclass(frozen=True)
class Measure:
    """The figures of one file. ``branches`` counts if, for, while, except and case."""

    path: str
    lines: int
    functions: int
    classes: int
    branches: int
    longest: str
    longest_lines: int
    skipped: str


class UnreadableFileError(Exception):
    """The file cannot be read or is not Python; the text says why, without the path."""


def find_files(root: Path) -> list[str]:
    """Every ``.py`` file below *root*, sorted, without what was installed into ``site-packages``."""
    found = (path for path in root.rglob("*.py") if path.is_file())
    return sorted(str(path) for path in found if not {"site-packages", "dist-packages"} & set(path.parts))


def count_of_files(text: str) -> int:
    """A number of files to take, from the command line."""
    number = int(text)
    if number < 1:
        raise ValueError(f"{text}: take at least one file")
    return number


def read_tree(path: str) -> tuple[ast.Module, int]:
    """The file's syntax tree and its number of lines; decoded as its own encoding line says.

    Raises:
        UnreadableFileError: whatever is wrong with the file.
    """
    try:
        content = Path(path).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Odd escapes in the files are not this program's to report.
            return ast.parse(content), len(content.splitlines())
    except OSError as error:
        raise UnreadableFileError(f"{type(error).__name__}: {error.strerror}") from error
    except SyntaxError as error:
        raise UnreadableFileError(f"{type(error).__name__}: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # Null bytes; nesting deeper than the parser goes.
        raise UnreadableFileError(f"{type(error).__name__}: {error}") from error


# ---- applied to every file ----------------------------------------------------------------------------------------


async def outline(path: str) -> Outline:
    """Stage one: read, decode and parse *path*, and keep what the second stage needs."""
    try:
        tree, lines = read_tree(path)
    except UnreadableFileError as error:
        return Outline(path, skipped=str(error))
    classes = 0
    names, lengths, branches = [""], [0], [0]  # Place 0 stands for the module itself.
    waiting: list[tuple[ast.AST, str, int]] = [(tree, "", 0)]
    while waiting:
        node, prefix, owner = waiting.pop()
        for child in _statements(node):
            if isinstance(child, FUNCTIONS):
                names.append(prefix + child.name)
                lengths.append((child.end_lineno or child.lineno) - child.lineno + 1)
                branches.append(0)
                waiting.append((child, f"{prefix}{child.name}.", len(names) - 1))
            elif isinstance(child, ast.ClassDef):
                classes += 1
                waiting.append((child, f"{prefix}{child.name}.", owner))
            else:
                branches[owner] += isinstance(child, BRANCHES)
                waiting.append((child, prefix, owner))
    functions = list(zip(names[1:], lengths[1:], branches[1:], strict=True))
    return Outline(path, lines, classes, branches[0], functions)


async def measure(outlined: Outline) -> Measure:
    """Stage two: the figures of one outlined file."""
    functions = outlined.functions
    longest, longest_lines, _ = max(functions, key=lambda function: (function[1], function[0]), default=("", 0, 0))
    return Measure(
        outlined.path,
        outlined.lines,
        len(functions),
        outlined.classes,
        outlined.top_branches + sum(branches for _, _, branches in functions),
        longest,
        longest_lines,
        outlined.skipped,
    )


async def count_words(path: str) -> dict[str, int]:
    """Words in the identifiers of *path*, with their counts; nothing for a file that cannot be parsed."""
    try:
        tree, _ = read_tree(path)
    except UnreadableFileError:
        return {}
    words: Counter[str] = Counter()
    for identifier, times in Counter(_identifiers(tree)).items():
        for word in WORD.findall(identifier):
            if len(word) >= SHORTEST_WORD:
                words[word.lower()] += times
    return dict(words)


def _statements(node: ast.AST) -> Iterator[Any]:
    """The statements, handlers and cases directly inside *node*; expressions hold none."""
    blocks = (getattr(node, block, ()) for block in BLOCKS)
    return chain.from_iterable(block for block in blocks if isinstance(block, list))


def _identifiers(tree: ast.AST) -> Iterator[str]:
    """Every identifier that *tree* defines or uses, as often as it does."""
    for node in ast.walk(tree):
        attribute = NAMED_BY.get(type(node))
        if attribute and (identifier := getattr(node, attribute)):  # ``f(**options)`` has a keyword without a name.
            yield identifier


# ---- putting the answers together ---------------------------------------------------------------------------------


def merge_counts(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """The counts of all files in one, the most frequent word first, equals by the alphabet."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items(), key=lambda entry: (-entry[1], entry[0])))


def module_name(path: str, root: Path) -> str:
    """``…/email/mime/__init__.py`` below *root* -> ``email.mime``."""
    parts = Path(path).relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def rank(measures: Sequence[Measure], words: dict[str, int], root: Path) -> dict[str, Any]:
    """The whole result: totals, modules by branches, words by frequency, and what was skipped with its reason."""
    read = [measured for measured in measures if not measured.skipped]
    read.sort(key=lambda measured: (-measured.branches, measured.path))
    longest = max(read, key=lambda measured: (measured.longest_lines, measured.path), default=None)
    return {
        "files": len(measures),
        "totals": {
            "lines": sum(measured.lines for measured in read),
            "functions": sum(measured.functions for measured in read),
            "classes": sum(measured.classes for measured in read),
            "branches": sum(measured.branches for measured in read),
            "identifier_words": sum(words.values()),
        },
        "longest_function": {
            "name": f"{module_name(longest.path, root)}.{longest.longest}" if longest else "",
            "lines": longest.longest_lines if longest else 0,
        },
        "modules": [
            {
                "module": module_name(measured.path, root),
                "lines": measured.lines,
                "functions": measured.functions,
                "classes": measured.classes,
                "branches": measured.branches,
                "longest_function": measured.longest,
                "longest_lines": measured.longest_lines,
            }
            for measured in read
        ],
        "words": [[word, times] for word, times in words.items()],
        "skipped": {
            Path(measured.path).relative_to(root).as_posix(): measured.skipped
            for measured in measures
            if measured.skipped
        },
    }
