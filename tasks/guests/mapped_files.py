"""Files that calls map into memory, such as the large arrays of joblib's calls: written once, mapped by all guests.

    the program writes a file ─► guests on its machine, or with that folder shared, map it
                              └► Redis, in pieces ─► one copy on another machine, under the same path

A guest's host that finds neither the file nor its pieces says so, and the program stores them then (values.py).
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from graft.tasks.errors import GuestRefusedError
from graft.tasks.guests import guest_program, values

MARKER: Final = ".graft-pool"  # Beside a folder of copies: the pool that they belong to.


@dataclass(frozen=True)
class MappedFile:
    """A file of *size* bytes that a call maps.

    Attributes:
        inode: of a file that calls write into, so that a copy will not do; 0 where one will.
    """

    path: str
    size: int
    inode: int = 0

    @classmethod
    def of(cls, path: str, *, may_be_copied: bool) -> MappedFile:
        """The file at *path*, as it is now."""
        status = os.stat(path)
        return cls(path, status.st_size, 0 if may_be_copied else status.st_ino)

    def is_here(self) -> bool:
        """Whether this machine has it."""
        try:
            status = os.stat(self.path)
        except OSError:
            return False
        return status.st_size == self.size and self.inode in (0, status.st_ino)


class Copies:
    """The files that guests of *pool* map on this machine, and those of them that were copied here."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._folders: set[Path] = set()

    def fetch(self, files: tuple[MappedFile, ...]) -> tuple[str, ...]:
        """Have *files* here; the paths of those that nobody has stored in Redis yet.

        Raises:
            GuestRefusedError: calls write into a file that this machine does not have.
        """
        return tuple(file.path for file in files if not (file.is_here() or self._copy(file)))

    def clear(self) -> None:
        """The pool has ended."""
        for folder in self._folders:
            _remove(folder)
        self._folders.clear()

    def _copy(self, file: MappedFile) -> bool:
        if file.inode:
            raise GuestRefusedError(
                f"the worker on {os.uname().nodename} has no {file.path} as the program has it, and calls write into "
                "that; share its folder, or have the calls return what they compute"
            )
        folder = Path(file.path).parent
        try:
            if not folder.exists():
                folder.parent.mkdir(parents=True, exist_ok=True)
                _sweep(folder.parent)
            with open(f"{folder}{MARKER}", "a+", encoding="ascii") as marker:
                fcntl.flock(marker, fcntl.LOCK_EX)  # One guest of this machine fetches it, and the others wait.
                if marker.tell() == 0:
                    marker.write(self._pool)
                    marker.flush()
                self._folders.add(folder)
                folder.mkdir(mode=0o700, exist_ok=True)
                return file.is_here() or self._write(file)
        except OSError as error:
            raise GuestRefusedError(
                f"the worker on {os.uname().nodename} cannot keep {file.size} bytes at {file.path}, which a call maps: "
                f"{error}; make room there, or set JOBLIB_TEMP_FOLDER to a folder that all machines have"
            ) from error

    def _write(self, file: MappedFile) -> bool:
        partial = f"{file.path}.partial"
        try:
            with open(partial, "wb") as target:
                for piece in values.pieces_of_file(self._pool, file.path, file.size):
                    target.write(piece)
        except values.NotInRedisError:
            os.unlink(partial)
            return False
        os.replace(partial, file.path)
        return True


def _sweep(folder: Path) -> None:
    """Remove the copies in *folder* whose pool has ended, and whose hosts could not: they were killed."""
    with suppress(OSError):
        markers = list(folder.glob(f"*{MARKER}"))
        pools = [marker.read_text(encoding="ascii") for marker in markers]
        for marker, lives in zip(markers, guest_program.alive(pools), strict=True):
            if not lives:
                _remove(folder / marker.name.removesuffix(MARKER))


def _remove(copies: Path) -> None:
    shutil.rmtree(copies, ignore_errors=True)
    with suppress(OSError):
        os.unlink(f"{copies}{MARKER}")
