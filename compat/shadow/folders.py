"""Folders in which calls write: copies for the cluster's runs, what was written, and a guard for the originals.

The cluster's run must not write where the old run wrote. So the caller copies each folder before the old run, beside
it (``FOLDER.graft-shadow/ID``), and in the arguments that are sent, paths below the folder become paths below the copy.
A worker that does not see the copy says so, and a write to the folder itself is refused before it happens: then the
call cannot be compared.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePath
from typing import Any, Final
from uuid import uuid4

MOST_FILES: Final = 1000
MOST_BYTES: Final = 64 << 20
WRITES: Final = frozenset({
    "os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate", "os.utime",
    "sqlite3.connect",
})  # fmt: skip


class CannotCompareError(Exception):
    """Its text says why a call cannot be compared."""


@dataclass(frozen=True)
class Folder:
    """A folder and its copy, as absolute paths, with the files that it had: path below it -> digest."""

    real: str
    copy: str
    before: Mapping[str, str]

    @classmethod
    def copied(cls, real: str) -> Folder:
        """*real*, copied as it is now.

        Raises:
            CannotCompareError: it is too large for a copy at each call, or cannot be read.
        """
        copy = os.path.join(f"{real}.graft-shadow", uuid4().hex)
        try:
            digests(real)  # Refuses what is too large before a byte is copied.
            shutil.copytree(real, copy, symlinks=True)
            return cls(real, copy, digests(copy))
        except OSError as error:
            raise CannotCompareError(f"{real} cannot be copied: {error}") from error

    def remove(self) -> None:
        """Remove the copy, and the folder of copies after the last."""
        shutil.rmtree(self.copy, ignore_errors=True)
        try:
            os.rmdir(os.path.dirname(self.copy))
        except OSError:
            return  # Others have copies there.

    def written(self, folder: str) -> dict[str, str]:
        """What was written below *folder*, the real one or the copy, since the copy was made."""
        after = digests(folder)
        found = {path: digest for path, digest in after.items() if self.before.get(path) != digest}
        return found | dict.fromkeys(self.before.keys() - after.keys(), "")


def digests(folder: str) -> dict[str, str]:
    """The files below *folder*: path below it -> digest of its content.

    Raises:
        CannotCompareError: there are too many, or they are too large, or cannot be read.
    """
    try:
        return _digests(folder)
    except OSError as error:
        raise CannotCompareError(f"{folder} cannot be read: {error}") from error


def _digests(folder: str) -> dict[str, str]:
    found: dict[str, str] = {}
    size = 0
    for path in sorted(Path(folder).rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        size += path.stat().st_size
        if len(found) >= MOST_FILES or size > MOST_BYTES:
            raise CannotCompareError(
                f"{folder} has more than {MOST_FILES:,} files or {MOST_BYTES >> 20} MiB; name a smaller folder"
            )
        found[str(path.relative_to(folder))] = blake2b(path.read_bytes(), digest_size=16).hexdigest()
    return found


def moved(value: Any, moves: Sequence[tuple[str, str]]) -> Any:
    """*value* with each path below the first of a pair put below the second; also in lists, tuples and dicts."""
    if isinstance(value, str):
        for source, target in moves:
            if value == source or value.startswith(source + os.sep):
                return target + value[len(source) :]
        return value
    if isinstance(value, PurePath):
        text = str(value)
        return type(value)(moved(text, moves)) if moved(text, moves) != text else value
    if type(value) in (list, tuple, set):
        return type(value)(moved(item, moves) for item in value)
    if type(value) is dict:
        return {moved(key, moves): moved(item, moves) for key, item in value.items()}
    return value


_guarded: ContextVar[tuple[str, ...]] = ContextVar("graft_shadow_guarded", default=())
_hooked: list[bool] = []  # An audit hook stays for as long as the process lives.


@contextmanager
def guarded(folders: Sequence[str]) -> Iterator[None]:
    """Refuse Python's own ways to write below *folders* while the block runs, with CannotCompareError."""
    if not folders:
        yield
        return
    if not _hooked:
        _hooked.append(True)
        sys.addaudithook(_audit)
    token = _guarded.set(tuple(os.path.realpath(folder) + os.sep for folder in folders))
    try:
        yield
    finally:
        _guarded.reset(token)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not (folders := _guarded.get()):
        return
    if event == "open":
        path, mode, flags = arguments
        is_written = bool(flags & (os.O_WRONLY | os.O_RDWR)) if isinstance(flags, int) else "r" not in (mode or "r")
        paths = (path,) if is_written else ()
    elif event in WRITES:
        paths = arguments[:2]
    else:
        return
    token = _guarded.set(())  # What follows is audited, too.
    try:
        for path in paths:
            if isinstance(path, str | bytes | os.PathLike) and os.path.realpath(os.fsdecode(path)).startswith(folders):
                raise CannotCompareError(
                    f"the cluster's run was stopped before it wrote {os.fsdecode(path)}, where the old run writes: "
                    "that path is not among its arguments"
                )
    finally:
        _guarded.reset(token)
