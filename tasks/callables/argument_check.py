"""Whether a function can be called with the items of a batch, checked before anything is sent.

The number of arguments is always checked, where the function says what it takes; their types where the caller asks
(``validate=True``), by pydantic and the function's type hints.
"""

from __future__ import annotations

import functools
import inspect
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any, Final

from graft.tasks.callables.importable import name_of

ONE: Final[tuple[tuple[None], dict[str, Any]]] = ((None,), {})  # The arguments of a call with one item.


class ArgumentCheck:
    """Checks the items that *func* is to be called with; ``(args, kwargs)`` pairs if *unpack*."""

    def __init__(self, func: Callable[..., Any], *, unpack: bool = False, validate: bool = False) -> None:
        self._func, self._unpack = func, unpack
        self._signature: inspect.Signature | None = None
        self._is_read = False
        self._shapes: set[tuple[int, frozenset[str]]] = set()
        self._validated = _validator(func) if validate else None

    def items(self, items: Iterable[Any]) -> Iterable[Any]:
        """*items* as they are to be sent. Those of a sequence are checked now, others when they are given.

        Raises:
            TypeError: *func* takes another number of arguments, or an item is no pair where it is to be one.
            ValidationError: pydantic's; an item does not fit the type hints of *func*.
        """
        if not self._unpack and self._validated is None:
            self._check_shape("an item", *ONE)
            return items
        checked = (self._checked(number, item) for number, item in enumerate(items))
        return list(checked) if isinstance(items, Sequence) else checked

    def _checked(self, number: int, item: Any) -> Any:
        args, kwargs = _pair(number, item) if self._unpack else ((item,), {})
        self._check_shape(f"item {number}", args, kwargs)
        if self._validated is None:
            return item
        try:
            args, kwargs = self._validated(args, kwargs)
        except ValueError as error:
            error.add_note(f"It is item {number} of {name_of(self._func)}; nothing of it was sent.")
            raise
        return (args, kwargs) if self._unpack else args[0]

    def _check_shape(self, what: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        shape = (len(args), frozenset(kwargs))
        if shape in self._shapes or (not kwargs and _takes(self._func, len(args))):
            return
        signature = self._read_signature()
        if signature is not None:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{name_of(self._func)} cannot be called with {what}: {error}") from None
        self._shapes.add(shape)

    def _read_signature(self) -> inspect.Signature | None:
        if not self._is_read:
            self._is_read = True
            try:
                # A decorator's own function is called, and may add arguments to those of the one that it wraps.
                self._signature = inspect.signature(self._func, follow_wrapped=False)
            except (TypeError, ValueError):  # Of C, or too strange: its worker will see.
                self._signature = None
        return self._signature


def _takes(func: Callable[..., Any], number: int) -> bool:
    """Whether *func* certainly takes so many arguments: without the cost of a signature."""
    if type(func) is not FunctionType:
        return False
    code = func.__code__
    if code.co_kwonlyargcount > len(func.__kwdefaults__ or ()):
        return False
    return code.co_argcount - len(func.__defaults__ or ()) <= number <= code.co_argcount


def _pair(number: int, item: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(item, Sequence) and len(item) == 2 and not isinstance(item, str | bytes):
        args, kwargs = item
        if isinstance(args, Iterable) and not isinstance(args, str | bytes) and isinstance(kwargs, Mapping):
            return tuple(args), kwargs
    raise TypeError(
        f"unpack=True takes (args, kwargs) pairs, and item {number} is {reprlib.repr(item)}: write ((2, 3), {{}}) to "
        "call func(2, 3)"
    )


Validated = Callable[[Sequence[Any], Mapping[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]


def _validator(func: Callable[..., Any]) -> Validated:
    """The arguments of a call of *func* as its type hints make them."""
    from pydantic import validate_call

    if not inspect.isroutine(func):
        raise TypeError(f"validate=True takes a function with type hints, not {func!r:.100}")

    @functools.wraps(func)
    def taken(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs

    validated = validate_call(taken)

    def arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        found, named = validated(*args, **kwargs)
        # Without the defaults, which the function has itself.
        return found[: len(args)], {name: named[name] for name in kwargs}

    return arguments
