"""Work in chunks, by key and in batches: every chunk, input and key is one task, and the caller's coroutine joins them.

No task waits for another. The functions at the end of this module are what workers import.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, Unpack

from graft.compat import bridge
from graft.compat.async_patterns.remote import Limit, on_workers
from graft.compat.async_patterns.streams import Stream
from graft.compat.local import awaited
from graft.compat.placement import CallOptions, Where
from graft.config.validation import at_least_one
from graft.tasks.shared.turns import refuse_limits

PER_ENVELOPE: Final = 10  # Items of one envelope that run at once, if the function is async …
ENVELOPES: Final = 100  # … and envelopes at once: at most 1000 inputs or keys in the whole cluster.


async def fan_out_fan_in(
    items: Iterable[Any],
    num_workers: int,
    func: Callable[[Any], Any] | None = None,
    *,
    limit: Limit | None = None,
    **options: Unpack[CallOptions],
) -> list[Any]:
    """*func* of every item: consecutive chunks of ceil(items / workers), one task for each, in sequence inside it.

    Results come in the order in which chunks arrive, inside a chunk in that of its items. Without *func* they are
    ``Worker<w>: processed item <i>``, 50 ms each. *limit* and the *options* (see :class:`CallOptions`) apply to chunks.

    Source: the chapter's ``fan_out_fan_in``. Difference: no items give [].
    """
    at_least_one("num_workers", num_workers)
    values = list(items)
    size = -(-len(values) // num_workers) or 1
    runner = describe_chunk if func is None else _chunk_runner(func)
    chunks = Stream(values[start : start + size] for start in range(0, len(values), size))
    return await _join(chunks, on_workers(runner, limit=limit, call="fan_out_fan_in", **options), num_workers)


async def batch_process(
    items: Iterable[Any],
    batch_size: int,
    max_concurrent_batches: int,
    func: Callable[[Any], Any] | None = None,
    *,
    limit: Limit | None = None,
    **options: Unpack[CallOptions],
) -> list[Any]:
    """*func* of every item, in batches that are one task each, at most *max_concurrent_batches* at once.

    Inside a batch the order is kept; batches come in order of completion. Without *func* the results are
    ``processed_<i>``, 100 ms for a batch. *limit* and the *options* (see :class:`CallOptions`) apply to batches.

    Source: the chapter's ``batch_process``.
    """
    at_least_one("batch_size", batch_size)
    at_least_one("max_concurrent_batches", max_concurrent_batches)
    runner = process_batch if func is None else _chunk_runner(func)
    call = on_workers(runner, limit=limit, call="batch_process", **options)
    return await _join(Stream(items).chunks(batch_size), call, max_concurrent_batches)


async def map_reduce(
    inputs: Iterable[Any],
    map_fn: Callable[[Any], Iterable[tuple[Any, Any]]],
    reduce_fn: Callable[[Any, list[Any]], Any],
    *,
    combine_fn: Callable[[Any, list[Any]], Any] | None = None,
    **options: Unpack[CallOptions],
) -> dict[Any, Any]:
    """Key to ``reduce_fn(key, values)``, keys in the order of their first appearance, values in that of the inputs.

    Args:
        map_fn: gives the (key, value) pairs of one input, plain or async; all inputs are mapped before any key is
            reduced.
        reduce_fn: called once for each key.
        combine_fn: merges the values that one input has for a key, before they leave the worker.
        options: for each input and each key, see :class:`CallOptions`.
    """
    for func in (map_fn, reduce_fn):
        refuse_limits(func, "map_reduce")
    mapper = functools.partial(_either(map_fn, map_one, map_one_async), map_fn, combine_fn)
    groups: dict[Any, list[Any]] = {}
    for mapped in await _map_all(mapper, list(inputs), "map_reduce: map", options):
        for key, values in mapped.items():
            groups.setdefault(key, []).extend(values)
    reducer = functools.partial(_either(reduce_fn, reduce_one, reduce_one_async), reduce_fn)
    reduced = await _map_all(reducer, list(groups.items()), "map_reduce: reduce", options)
    return dict(zip(groups, reduced, strict=True))


async def word_count(texts: Iterable[str], *, place: Where | None = None) -> list[tuple[str, int]]:
    """Words of all *texts*, split at white space, in lower case: with their counts, largest first, then by alphabet."""
    counts = await map_reduce(texts, words, add_up, combine_fn=add_up, place=place)
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))


async def _join(chunks: Stream, call: Callable[..., Any], at_once: int) -> list[Any]:
    calls = chunks.enumerate().map(lambda chunk: call(chunk[1], chunk[0]))
    return [value async for values in calls.buffer_unordered(at_once) for value in values]


async def _map_all(func: Callable[[Any], Any], items: Sequence[Any], call: str, options: CallOptions) -> list[Any]:
    if not items:
        return []
    return await bridge.map_async(func, items, call=call, concurrency=PER_ENVELOPE, in_flight=ENVELOPES, **options)


def _either(func: Callable[..., Any], plain: Callable[..., Any], awaiting: Callable[..., Any]) -> Callable[..., Any]:
    return awaiting if inspect.iscoroutinefunction(func) else plain


def _chunk_runner(func: Callable[[Any], Any]) -> Callable[..., Any]:
    refuse_limits(func, "a call with chunks")
    return functools.partial(_either(func, run_chunk, run_chunk_async), func)


def run_chunk(func: Callable[[Any], Any], chunk: Sequence[Any], number: int) -> Any:
    """*func* of each, one after the other; an awaitable where *func* gives those."""
    values: list[Any] = []
    for index, item in enumerate(chunk):
        value = func(item)
        if inspect.isawaitable(value):
            return _run_rest(func, values, value, chunk[index + 1 :])
        values.append(value)
    return values


async def run_chunk_async(func: Callable[[Any], Awaitable[Any]], chunk: Sequence[Any], number: int) -> list[Any]:
    return [await func(item) for item in chunk]


async def _run_rest(
    func: Callable[[Any], Any], values: list[Any], first: Awaitable[Any], rest: Sequence[Any]
) -> list[Any]:
    return [*values, await first, *[await awaited(func(item)) for item in rest]]


async def describe_chunk(chunk: Sequence[Any], number: int) -> list[str]:
    """The work of the chapter's workers."""
    lines = []
    for item in chunk:
        await asyncio.sleep(0.05)
        lines.append(f"Worker{number}: processed item {item}")
    return lines


async def process_batch(batch: Sequence[Any], number: int) -> list[str]:
    """The work of the chapter's batches."""
    await asyncio.sleep(0.1)
    return [f"processed_{item}" for item in batch]


def map_one(map_fn: Callable[[Any], Any], combine: Callable[[Any, list[Any]], Any] | None, item: Any) -> Any:
    """One input's values by key."""
    return _grouped(map_fn(item), combine)


async def map_one_async(
    map_fn: Callable[[Any], Awaitable[Any]], combine: Callable[[Any, list[Any]], Any] | None, item: Any
) -> dict[Any, list[Any]]:
    return _grouped(await map_fn(item), combine)


def reduce_one(reduce_fn: Callable[[Any, list[Any]], Any], group: tuple[Any, list[Any]]) -> Any:
    return reduce_fn(*group)


async def reduce_one_async(reduce_fn: Callable[[Any, list[Any]], Awaitable[Any]], group: tuple[Any, list[Any]]) -> Any:
    return await reduce_fn(*group)


def words(text: str) -> list[tuple[str, int]]:
    return [(word, 1) for word in text.lower().split()]


def add_up(key: Any, values: list[Any]) -> Any:
    return sum(values)


def _grouped(pairs: Iterable[tuple[Any, Any]], combine: Callable[[Any, list[Any]], Any] | None) -> dict[Any, list[Any]]:
    groups: defaultdict[Any, list[Any]] = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    if combine is not None:
        return {key: [combine(key, values)] for key, values in groups.items()}
    return dict(groups)
