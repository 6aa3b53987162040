"""Which files are scanned, and which cannot be read."""

from __future__ import annotations

import ast
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Final

SKIPPED: Final = frozenset({"__pycache__", "node_modules", "site-packages"})


@dataclass(frozen=True)
class Unreadable:
    """A file, or a folder, that was not scanned."""

    path: str
    reason: str
    line: int | None = None


def python_files(root: Path, unreadable: list[Unreadable]) -> Iterator[Path]:
    """*root* itself, or every ``*.py`` below it, sorted.

    Left out: hidden folders, virtual environments, ``node_modules``, ``site-packages``. Links to folders are not
    followed. Folders that cannot be listed are added to *unreadable*.
    """
    if not root.is_dir():
        yield root
        return

    def refuse(error: OSError) -> None:
        unreadable.append(Unreadable(str(error.filename), error.strerror or str(error)))

    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and name not in SKIPPED and not Path(folder, name, "pyvenv.cfg").exists()
        )
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


def parse(path: Path) -> tuple[ast.Module, CodeType] | Unreadable:
    """The syntax tree and the code of a file, which is compiled and not run; or why not."""
    try:
        source = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of the scanned program; not ours to repeat.
            # Bytes, so that Python itself finds the file's encoding.
            tree = compile(source, str(path), "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
            assert isinstance(tree, ast.Module)
            code: CodeType = compile(tree, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        return Unreadable(str(path), f"is not Python {_version()}: {error.msg}", error.lineno)
    except OSError as error:
        return Unreadable(str(path), error.strerror or str(error))
    except (ValueError, RecursionError, MemoryError) as error:  # Null bytes; expressions nested too deeply.
        return Unreadable(str(path), f"cannot be compiled: {error or type(error).__name__}")
    return tree, code


def _version() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"
