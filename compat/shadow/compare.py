"""Compares what two runs of one call did. Pure: both are given as they were recorded."""

from __future__ import annotations

import math
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Final

from graft.compat.shadow.plan import Kind, Plan

SHOWN: Final = 300  # Characters of a value in a verdict.


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of a call did.

    Attributes:
        seconds: how long the callable itself took.
        value: its pickle; None where it raised.
        error: type and text of what it raised.
        changed: pickle of ``(args, kwargs)`` after the run, where they were another before.
        files: what it wrote below the folders that are looked at: path -> digest, empty for a file that it removed.
    """

    seconds: float
    value: bytes | None = None
    error: tuple[str, str] | None = None
    changed: bytes | None = None
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that the runs did not do alike, both sides as texts."""

    kind: Kind
    old: str
    new: str
    remark: str = ""


class Comparison:
    """The rules of a plan, applied to pairs of runs."""

    def __init__(self, plan: Plan) -> None:
        self._tolerance, self._ignore = plan.tolerance, plan.ignore
        self._equal: Callable[[Any, Any], object] = plan.equality() or self._same
        if plan.equal == "pickle":
            self._equal = _pickled_alike

    def differences(self, frame: bytes, old: Run, new: Run) -> list[Difference]:
        """What the runs did not do alike, the most telling first; what a comparing function raises is raised.

        *frame* is the pickle of ``(args, kwargs)`` before both.
        """
        changed = [self._changed(frame, run) for run in (old, new)]
        found = [*self._outcome(old, new), *_arguments(*changed), *_files(old.files, new.files)]
        return [each for each in found if each.kind not in self._ignore]

    def _changed(self, frame: bytes, run: Run) -> bytes | None:
        """The arguments after *run*, where they are others: some objects are pickled differently each time."""
        if run.changed is None or self._same(pickle.loads(frame), pickle.loads(run.changed)):
            return None
        return run.changed

    def _outcome(self, old: Run, new: Run) -> list[Difference]:
        if old.error is None and new.error is None:
            assert old.value is not None
            assert new.value is not None
            return self._values(pickle.loads(old.value), pickle.loads(new.value))
        if old.error == new.error:
            return []
        if old.error and new.error and old.error[0] == new.error[0]:
            remark = "the same type, another text"
        else:
            remark = "another type" if old.error and new.error else "only one of them raised"
        return [Difference("error", _ended(old), _ended(new), remark)]

    def _values(self, old: Any, new: Any) -> list[Difference]:
        if self._equal(old, new):
            return []
        if _is_reordered(old, new):
            return [Difference("order", shown(old), shown(new), "the same elements in another order")]
        return [Difference("value", shown(old), shown(new))]

    def _same(self, old: Any, new: Any) -> bool:
        if old is new:
            return True
        if isinstance(old, float) or isinstance(new, float):
            return _close(old, new, self._tolerance)
        if type(old) is type(new):
            if isinstance(old, list | tuple):
                return len(old) == len(new) and all(map(self._same, old, new))
            if isinstance(old, dict):
                return old.keys() == new.keys() and all(self._same(old[key], new[key]) for key in old)
            if is_dataclass(old):
                return all(self._same(getattr(old, one.name), getattr(new, one.name)) for one in fields(old))
            if getattr(type(old), "__eq__", None) is object.__eq__:
                return self._same(vars(old), vars(new)) if hasattr(old, "__dict__") else _pickled_alike(old, new)
        return self._of_arrays(old, new) if hasattr(old, "__array__") else _true(old == new)

    def _of_arrays(self, old: Any, new: Any) -> bool:
        numpy = sys.modules.get("numpy")
        if numpy is None or not hasattr(new, "__array__"):
            return False
        if hasattr(old, "equals"):  # pandas and the like, which know what is missing, and have labels.
            if type(old) is not type(new) or old.equals(new) or not self._tolerance:
                return type(old) is type(new) and bool(old.equals(new))
            if not all(
                one.equals(other) for one, other in zip(getattr(old, "axes", ()), getattr(new, "axes", ()), strict=True)
            ):
                return False
        a, b = numpy.asarray(old), numpy.asarray(new)
        if a.shape != b.shape or a.dtype.kind not in "fc" or b.dtype.kind not in "fc":
            return bool(numpy.array_equal(a, b))
        return bool(numpy.allclose(a, b, rtol=self._tolerance, atol=0.0, equal_nan=True))


def shown(value: Any) -> str:
    """*value* for people, cut in the middle where it is long."""
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__}, whose repr() raises {type(error).__name__}>"
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} … {text[-SHOWN // 3 :]} ({len(text):,} characters)"


def error_of(error: BaseException) -> tuple[str, str]:
    """Type and text of *error*, as they are compared."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        return name, str(error)
    except Exception as refusal:
        return name, f"<str() raises {type(refusal).__name__}>"


def _close(old: Any, new: Any, tolerance: float) -> bool:
    if not isinstance(old, int | float) or not isinstance(new, int | float):
        return _true(old == new)
    if math.isnan(old) or math.isnan(new):
        return math.isnan(old) and math.isnan(new)
    return math.isclose(old, new, rel_tol=tolerance) if tolerance else old == new


def _true(answer: Any) -> bool:
    return answer is True or (answer is not False and answer is not NotImplemented and bool(answer))


def _pickled_alike(old: Any, new: Any) -> bool:
    return pickle.dumps(old) == pickle.dumps(new)


def _is_reordered(old: Any, new: Any) -> bool:
    if type(old) is not type(new) or not isinstance(old, list | tuple) or len(old) != len(new):
        return False
    return sorted(map(repr, old)) == sorted(map(repr, new))


def _ended(run: Run) -> str:
    if run.error is not None:
        return f"{run.error[0]}: {run.error[1]}"[:SHOWN]
    return shown(pickle.loads(run.value or b"N."))


def _arguments(old: bytes | None, new: bytes | None) -> list[Difference]:
    if old is None and new is None:
        return []
    texts = ["unchanged" if each is None else _called_with(each) for each in (old, new)]
    if old is None:
        remark = "only the cluster's run changes its arguments"
    else:
        remark = "it changes its arguments; in the cluster it changes copies, and the caller's stay as they were"
    return [Difference("arguments", texts[0], texts[1], remark)]


def _called_with(frame: bytes) -> str:
    return arguments_shown(*pickle.loads(frame))


def arguments_shown(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The arguments of a call, as they are written."""
    return ", ".join([*map(shown, args), *(f"{name}={shown(value)}" for name, value in kwargs.items())])


def _files(old: Mapping[str, str], new: Mapping[str, str]) -> list[Difference]:
    paths = [path for path in sorted({*old, *new}) if old.get(path) != new.get(path)]
    if not paths:
        return []
    path = paths[0]
    more = f"; {len(paths)} files differ" if len(paths) > 1 else ""
    first, second = (f"{path}: {_written(each, path)}" for each in (old, new))
    return [Difference("files", first, second, f"written files{more}")]


def _written(files: Mapping[str, str], path: str) -> str:
    if path not in files:
        return "not written"
    return f"written, digest {files[path][:12]}" if files[path] else "removed"
