"""What the frames of a pool's own queues say without being opened: whose call it is, and of what function.

A frame is opened where it runs, and nowhere else: opening may import modules, and run their code.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

# The standard library's and joblib's own functions around the caller's.
WRAPPERS: Final = frozenset({
    "_process_chunk", "mapstar", "starmapstar", "partial", "_CallItem", "_reduce_partial", "getattr", "BatchedCalls",
    "_rebuild_partial", "_create_type", "_load_type",
})  # fmt: skip
COPIERS: Final = ("dill.", "joblib.externals.")  # Their functions make a copy of the caller's, which has no name here.
COPIED: Final = "?:copied"
OPCODES: Final = 400  # The function's name is near the beginning.


@dataclass(frozen=True)
class CallFrame:
    """One call of an executor, which has a ``work_id``, or of a pool, which has a ``job`` and an index."""

    function: str
    work_id: int | None = None
    job: int | None = None
    index: int | None = None


def read(frame: bytes, kind: str) -> CallFrame:
    """What *frame* says, of a pool of *kind*."""
    names: list[str] = []
    numbers: list[int | None] = []
    work_id: int | None = None
    is_work_id = False
    try:
        for opcode, value, strings in _opcodes(frame):
            if opcode == "STACK_GLOBAL" and len(strings) > 1 and strings[-1] not in WRAPPERS:
                is_copy = str(strings[-2]).startswith(COPIERS)
                names.append(COPIED if is_copy else f"{strings[-2]}:{strings[-1]}")
            elif opcode == "GLOBAL":
                module, _, name = str(value).partition(" ")
                if name not in WRAPPERS:
                    names.append(f"{module}:{name}")
            elif isinstance(value, int) and "INT" in opcode and "GET" not in opcode:
                numbers.append(value)
                if is_work_id and work_id is None:
                    work_id = value
            elif opcode == "NONE":
                numbers.append(None)
            if "UNICODE" in opcode:
                is_work_id = value == "work_id"
    except Exception:  # Another pickler's frame: it runs all the same.
        names = names or [COPIED]
    function = names[0] if names else COPIED
    if kind == "executor":
        return CallFrame(function, work_id=work_id)
    return CallFrame(function, job=numbers[0] if numbers else None, index=numbers[1] if len(numbers) > 1 else None)


def _opcodes(frame: bytes) -> Iterator[tuple[str, Any, list[str]]]:
    memo: list[Any] = []
    strings: list[Any] = []
    for number, (opcode, value, _) in enumerate(pickletools.genops(frame)):
        if number > OPCODES:
            return
        if opcode.name == "MEMOIZE":
            memo.append(strings[-1] if strings else None)
        elif opcode.name in ("BINGET", "LONG_BINGET") and isinstance(value, int) and value < len(memo):
            strings.append(memo[value])
        elif "UNICODE" in opcode.name:
            strings.append(value)
        yield opcode.name, value, strings
        if opcode.name == "STACK_GLOBAL":
            strings.append(None)
