"""Measures and compacts values, and finds memory that only grows, in this process and on the workers."""

from __future__ import annotations

import gc
import operator
import sys
import tracemalloc
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, Protocol

import psutil

from graft.compat import worker_admin
from graft.compat.async_worker_optimization import redis_records
from graft.tasks.leaks import gc_types

LONG_LIST: Final = 10_000
LONG_STRING: Final = 1_000_000
# A program's busy start stays well below these limits; a leak reaches them sooner or later.
OBJECT_GROWTH: Final = 500_000
TRACED_GROWTH: Final = 256 << 20
WORKER_GROWTH: Final = 512 << 20
LOOK_FOR: Final = 0.25  # Seconds that a check waits for the workers' memory, which old code does not expect.


class _Items(Protocol):
    def items(self) -> Any: ...


class MemoryOptimizer:
    """Source: ``async_worker_optimization.MemoryOptimizer``."""

    def __init__(self) -> None:
        self._start: _Usage | None = None
        self._let_go: list[tuple[str, weakref.ref[Any]]] = []

    def analyze_memory_usage(self, data: _Items) -> dict[str, Any]:
        """``total_size`` and ``breakdown`` (shallow bytes by key), and ``optimization_suggestions`` as texts.

        Raises:
            AttributeError: *data* has no ``items()``.
        """
        breakdown: dict[Any, int] = {}
        suggestions = []
        for key, value in data.items():
            breakdown[key] = sys.getsizeof(value)
            if isinstance(value, list) and len(value) > LONG_LIST:
                suggestions.append(f"Consider using generator for '{key}'")
            elif isinstance(value, str) and len(value) > LONG_STRING:
                suggestions.append(f"Consider streaming or chunking for '{key}'")
        return {
            "total_size": sum(breakdown.values()),
            "breakdown": breakdown,
            "optimization_suggestions": suggestions,
        }

    def optimize_data_structures(self, data: Mapping[Any, Any]) -> dict[str, Any]:
        """``optimized_data``, the same keys in the same order, and ``memory_saved`` in shallow bytes.

        A list under ``duplicated_strings`` with one distinct element becomes a :class:`_RepeatedString`, a list under
        ``sparse_list`` with less than half of its entries other than None a :class:`_SparseList`. Every other value is
        passed on as the same object.

        Raises:
            TypeError: an element under ``duplicated_strings`` is not hashable.
        """
        optimized = {key: _compact(key, value) for key, value in data.items()}
        before = sum(map(sys.getsizeof, data.values()))
        after = sum(map(sys.getsizeof, optimized.values()))
        return {"optimized_data": optimized, "memory_saved": max(0, before - after)}

    def setup_memory_pool(self, size: int) -> MemoryPool:
        """A new :class:`MemoryPool` of *size*."""
        return MemoryPool(size)

    def start_leak_detection(self) -> None:
        """Collect garbage and remember the present usage; from here on :meth:`detect_memory_leaks` reports."""
        gc.collect()
        self._start = _Usage.now()

    def expect_release(self, value: object, label: str = "") -> None:
        """Say that *value* is no longer needed: if it still lives at the next detection, that is reported as a leak.

        Only a weak reference to *value* is kept, so this prolongs nothing.

        Args:
            value: an object that can be weakly referenced: an instance, a set, an array; no list, dict, str or tuple.
            label: the ``location`` in the report. Default: the name of its type.

        Raises:
            TypeError: *value* cannot be weakly referenced.
        """
        try:
            reference = weakref.ref(value)
        except TypeError:
            raise TypeError(
                f"a {type(value).__name__} cannot be weakly referenced; pass the object that holds it, or a subclass "
                f"of {type(value).__name__}"
            ) from None
        self._let_go.append((label or type(value).__name__, reference))

    def detect_memory_leaks(self) -> list[dict[str, Any]]:
        """Suspected leaks since :meth:`start_leak_detection`; ``[]`` before it.

        First every non-empty list that a caller holds in a local variable named ``leak_storage``, innermost frame
        first, then one of that name in this package's own namespace: ``location``, ``type`` "global_accumulation",
        ``size`` in shallow bytes, ``severity`` "high" above 100 elements, else "medium".

        Differences: growth since the start is reported as well, if it is far above that of ordinary work. ``type`` is
        "object_growth" (``size`` is the number of new objects), "traced_memory_growth" (bytes, while ``tracemalloc``
        traces) or "worker_memory_growth" (resident bytes of a worker and its pool; ``location`` is its node name). An
        object of :meth:`expect_release` that still lives is "still_referenced" (``size`` in shallow bytes).
        """
        if self._start is None:
            return []
        return [*_leak_storages(sys._getframe(1)), *self._still_referenced(), *_growth(self._start)]

    def _still_referenced(self) -> list[dict[str, Any]]:
        if any(reference() is not None for _, reference in self._let_go):
            gc.collect()  # An object in a reference cycle is garbage, not a leak.
        self._let_go = [(label, reference) for label, reference in self._let_go if reference() is not None]
        return [
            {"location": label, "type": "still_referenced", "size": sys.getsizeof(reference()), "severity": "medium"}
            for label, reference in self._let_go
        ]

    detect_leaks = detect_memory_leaks

    def profile_memory(self, data: _Items | None = None) -> dict[str, Any]:
        """The same as :meth:`analyze_memory_usage`; without *data* the same keys for this process as a whole."""
        if data is not None:
            return self.analyze_memory_usage(data)
        usage = psutil.Process().memory_info()
        shared = getattr(usage, "shared", 0)  # Linux only.
        return {
            "total_size": usage.rss,
            "breakdown": {"private": usage.rss - shared, "shared": shared},
            "optimization_suggestions": [],
        }


class _Compact:
    """Base of the compact forms: ``len``, indexing from 0, iteration. Neither equals the list it stands for."""

    def __len__(self) -> int:
        raise NotImplementedError

    def _at(self, index: int) -> Any:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Any:
        position = operator.index(index)  # A slice is a TypeError.
        if not 0 <= position < len(self):
            raise IndexError(f"index {position} is not within 0 to {len(self) - 1}")
        return self._at(position)

    def __iter__(self) -> Iterator[Any]:
        return map(self._at, range(len(self)))


@dataclass(eq=False, repr=False)
class _RepeatedString(_Compact):
    """*count* times the same *string*. Source: ``async_worker_optimization._RepeatedString``."""

    string: Any
    count: int

    def __len__(self) -> int:
        return self.count

    def _at(self, index: int) -> Any:
        return self.string


@dataclass(eq=False, repr=False)
class _SparseList(_Compact):
    """*size* entries, None except those in *data*. Source: ``async_worker_optimization._SparseList``."""

    size: int
    data: dict[int, Any]

    def __len__(self) -> int:
        return self.size

    def _at(self, index: int) -> Any:
        return self.data.get(index)


class MemoryPool:
    """Hands out zeroed memory; ``size`` is stored and bounds nothing.

    Source: ``async_worker_optimization.MemoryPool``.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def allocate(self, size: int) -> bytearray:
        """A new ``bytearray`` of *size* zeros; a negative size is a ValueError."""
        return bytearray(size)


def _compact(key: Any, value: Any) -> Any:
    if not isinstance(value, list):
        return value
    if key == "duplicated_strings" and len(set(value)) == 1:
        return _RepeatedString(value[0], len(value))
    if key == "sparse_list":
        data = {index: entry for index, entry in enumerate(value) if entry is not None}
        if len(data) < len(value) / 2:
            return _SparseList(len(value), data)
    return value


def _leak_storages(frame: FrameType | None) -> Iterator[dict[str, Any]]:
    while frame is not None:
        yield from _accumulated(frame.f_locals.get("leak_storage"))
        frame = frame.f_back
    # The legacy module's own globals are this package's: programs hang their lists there under either name.
    yield from _accumulated(vars(sys.modules[__name__.rpartition(".")[0]]).get("leak_storage"))


def _accumulated(storage: object) -> Iterator[dict[str, Any]]:
    if isinstance(storage, list) and storage:
        yield {
            "location": "leak_storage",
            "type": "global_accumulation",
            "size": sys.getsizeof(storage),
            "severity": "high" if len(storage) > 100 else "medium",
        }


@dataclass(frozen=True)
class _Usage:
    """Objects the collector knows, bytes that tracemalloc traces (0 if it is off), resident bytes of each worker."""

    objects: int
    traced: int
    workers: Mapping[str, int]

    @classmethod
    def now(cls) -> _Usage:
        traced = tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else 0
        nobody: dict[str, int] = {}
        workers = redis_records.soon(worker_admin.worker_memory, nobody, within=LOOK_FOR)
        return cls(len(gc_types.types()), traced, workers)

    def growth(self, start: _Usage) -> list[dict[str, Any]]:
        """Growth beyond the limits since *start*. A worker that has started since then is not compared."""
        grown = [
            ("process", "object_growth", self.objects - start.objects, OBJECT_GROWTH),
            ("process", "traced_memory_growth", self.traced - start.traced, TRACED_GROWTH),
        ]
        grown += [
            (name, "worker_memory_growth", size - start.workers.get(name, size), WORKER_GROWTH)
            for name, size in self.workers.items()
        ]
        return [
            {"location": where, "type": kind, "size": growth, "severity": "high" if growth > 2 * limit else "medium"}
            for where, kind, growth, limit in grown
            if growth > limit
        ]


def _growth(start: _Usage) -> list[dict[str, Any]]:
    if not _Usage.now().growth(start):
        return []
    gc.collect()  # Garbage is no leak; a collection is slow, so only a suspicion causes one.
    return _Usage.now().growth(start)
