"""The calls of joblib's default backend as they travel: pickled as joblib does, so that large arrays are files.

joblib writes each large array once to a folder of its own, and its processes map it, read-only unless ``mmap_mode``
says otherwise. Guests map the same files (tasks/guests/mapped_files.py says what they do on other machines).
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from multiprocessing.reduction import ForkingPickler
from typing import Any, Final

from graft.tasks.guests.mapped_files import MappedFile

MAPPED: Final = ("load_temporary_memmap", "_strided_from_memmap")  # joblib's functions for an array in a file.
READ_ONLY: Final = ("r", "c")

Reduce = Callable[[Any], tuple[Any, ...]]


class JoblibCalls:
    """How the calls of one executor are pickled.

    Args:
        options: those of ``Parallel`` that say which arrays become files, such as ``max_nbytes``.
    """

    def __init__(self, temp_folder: str | None, options: Mapping[str, Any]) -> None:
        reducer = import_module("joblib._memmapping_reducer")
        self.folders: Any = reducer.TemporaryResourcesManager(temp_folder)
        # Guests have a resource tracker each: the program's own removes the files, when the calls have ended.
        forward, backward = reducer.get_memmapping_reducers(
            unlink_on_gc_collect=False, temp_folder_resolver=self.folders.resolve_temp_folder_name, **options
        )
        self.forward: dict[type, Reduce] = forward
        self._backward: dict[type, Reduce] = backward
        self.backing: Callable[[Any], Any] = reducer._get_backing_memmap
        self._tracker: Any = reducer.resource_tracker

    def initializer(
        self, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
    ) -> tuple[Callable[..., object] | None, tuple[Any, ...]]:
        """*initializer*, and before it that the process pickles arrays in results as joblib's do."""
        loky = import_module("joblib.externals.loky.initializers")
        chained, arguments = loky._chain_initializers([
            *((ForkingPickler.register, (kind, reduce)) for kind, reduce in self._backward.items()),
            (initializer, initargs),
        ])  # fmt: skip
        return chained, tuple(arguments)

    def name_for(self, path: str) -> str:
        """A name among joblib's files for the program's own file at *path*: what is there may be a copy elsewhere."""
        status, folder = os.stat(path), self.folders.resolve_temp_folder_name()
        what = f"{path} {status.st_ino} {status.st_size} {status.st_mtime_ns}".encode()
        name = os.path.join(folder, f"{hashlib.blake2b(what, digest_size=16).hexdigest()}.pkl")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with suppress(FileExistsError):
            os.symlink(os.path.abspath(path), name)
            self._tracker.register(name, "file")
        return name


class JoblibCall:
    """One of joblib's batches on its way to a guest."""

    def __init__(self, batch: Any, calls: JoblibCalls) -> None:
        self._obj = batch  # As joblib's own wrapper has it.
        self._calls = calls
        self.files: tuple[MappedFile, ...] = ()  # Once it is pickled.

    def __reduce__(self) -> tuple[Any, ...]:
        files: dict[str, MappedFile] = {}
        reducers = {
            kind: functools.partial(self._reduce, reduce, files) for kind, reduce in self._calls.forward.items()
        }
        loky = import_module("joblib.externals.loky.backend.reduction")
        pickled = bytes(loky.dumps(self._obj, reducers))
        self.files = tuple(files.values())
        return loky.loads, (pickled,)

    def _reduce(self, reduce: Reduce, files: dict[str, MappedFile], array: Any) -> tuple[Any, ...]:
        reduced = reduce(array)
        if reduced[0].__name__ not in MAPPED:
            return reduced
        path, *rest = reduced[1]
        is_own = reduced[0].__name__ == MAPPED[0]  # joblib's own file.
        if not is_own and self._calls.backing(array).mode in READ_ONLY:
            path, is_own = self._calls.name_for(path), True
        if path not in files:
            files[path] = MappedFile.of(path, may_be_copied=is_own)
        return reduced[0], (path, *rest)
