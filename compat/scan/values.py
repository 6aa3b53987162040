"""What an expression is worth to a worker: fixed, the caller's state, one that cannot travel, or large. Pure."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from graft.compat.scan.names import Tree
from graft.compat.scan.scopes import Binding, Scope
from graft.config.settings import Settings
from graft.tasks.callables.closure_check import CLOCKS, IMMUTABLE

ITEM_LIMIT: Final[int] = Settings.model_fields["item_limit"].default
FIXED: Final = frozenset(f"{kind.__module__}.{kind.__qualname__}" for kind in IMMUTABLE | CLOCKS) | {"re.compile"}
DISPLAYS: Final[dict[type[ast.expr], str]] = {
    ast.List: "list", ast.ListComp: "list", ast.Dict: "dict", ast.DictComp: "dict", ast.Set: "set", ast.SetComp: "set",
}  # fmt: skip
STATEFUL: Final = frozenset({"list", "dict", "set", "bytearray"})

_BY_NAME: Final = "bound it for all workers with graft.compat.async_patterns.Semaphore(…, name=…)"
_CHANNEL: Final = "return the values, or use graft.compat.async_patterns.channel(…, name=…)"
_THERE: Final = "open it in the function, on the worker"
_RETURN: Final = "return the part of each call, and add up what comes back"
# What holds a handle of this process or machine: the class, and what to do instead.
HANDLES: Final[dict[str, str]] = {
    **dict.fromkeys(
        [
            f"{module}.{name}"
            for module in ("threading", "multiprocessing", "asyncio")
            for name in ("Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Event", "Barrier")
        ],
        _BY_NAME,
    ),
    **dict.fromkeys(
        [f"queue.{name}" for name in ("Queue", "LifoQueue", "PriorityQueue", "SimpleQueue")]
        + [f"multiprocessing.{name}" for name in ("Queue", "SimpleQueue", "JoinableQueue", "Pipe", "Manager.Queue")]
        + ["asyncio.Queue"],
        _CHANNEL,
    ),
    **dict.fromkeys(["builtins.open", "io.open", "socket.socket", "sqlite3.connect"], _THERE),
    **dict.fromkeys(
        [f"multiprocessing.{name}" for name in ("Value", "Array", "Manager.dict", "Manager.list", "Manager.Value")],
        _RETURN,
    ),
    "threading.local": "make the value in the function",
    "threading.Thread": "give the function what the thread works on",
    "subprocess.Popen": "start the program in the function, on the worker",
}
LARGE_MAKERS: Final = ("numpy.", "pandas.", "torch.", "polars.", "pyarrow.")
READERS: Final = frozenset({"read", "read_bytes", "read_text", "readlines"})


@dataclass(frozen=True)
class Value:
    """*kind* and, for people, *what* it is and what to do about it.

    ``fixed``: a copy is as good. ``state``: changes to a copy would be lost. ``handle``: cannot be pickled.
    ``large``: may be above the limit of one item. ``unknown``: only the running program can tell.
    """

    kind: Literal["fixed", "state", "handle", "large", "unknown"]
    what: str = ""
    change: str = ""


def worth(tree: Tree, expr: ast.expr, scope: Scope, depth: int = 10) -> Value:
    """What *expr*, used in *scope*, is worth."""
    if isinstance(expr, ast.Constant):
        return Value("fixed")
    if what := DISPLAYS.get(type(expr)):
        return Value("state", what)
    if isinstance(expr, ast.GeneratorExp):
        return Value("handle", "generator", "pass a list")
    if isinstance(expr, ast.Tuple):
        parts = [worth(tree, part, scope, depth - 1) for part in expr.elts] if depth else []
        return next((part for part in parts if part.kind != "fixed"), Value("fixed"))
    if isinstance(expr, ast.UnaryOp):
        return worth(tree, expr.operand, scope, depth)
    if isinstance(expr, ast.BinOp):
        if (size := _repeated(expr)) > ITEM_LIMIT:
            return Value("large", f"about {size >> 20} MiB")
        sides = [worth(tree, side, scope, depth - 1) for side in (expr.left, expr.right)] if depth else []
        return next((side for side in sides if side.kind != "fixed"), Value("fixed") if sides else Value("unknown"))
    if isinstance(expr, ast.Name) and depth and (found := scope.lookup(expr.id)):
        where, bindings = found
        return bound(tree, bindings[-1], where, depth - 1)
    return _made(tree, expr, scope)


def bound(tree: Tree, binding: Binding, scope: Scope, depth: int = 10) -> Value:
    """What the name behind *binding* is worth; functions and modules are fixed here, and looked at by callables.py."""
    if binding.how in ("import", "def"):
        return Value("fixed")
    if binding.how == "class":
        return Value("state", "class")
    if binding.how in ("assign", "with") and binding.value is not None:
        return worth(tree, binding.value, scope, depth)
    return Value("unknown")


def _made(tree: Tree, expr: ast.expr, scope: Scope) -> Value:
    if isinstance(expr, ast.Call) and isinstance(expr.func, ast.Attribute) and expr.func.attr in READERS:
        return Value("large", "the content of a file")
    reference = tree.resolve(expr, scope)
    if reference is None:
        return Value("unknown")
    dotted = reference.dotted
    if reference.is_instance:
        if dotted in HANDLES:
            return Value("handle", dotted.removeprefix("builtins."), HANDLES[dotted])
        if dotted.startswith(LARGE_MAKERS):
            return Value("large", dotted)
        if dotted in FIXED:
            return Value("fixed")
        name = dotted.rpartition(".")[2]
        if name in STATEFUL or dotted.startswith("collections.") or name[:1].isupper():
            return Value("state", name)
    return Value("unknown")


def _repeated(expr: ast.BinOp) -> int:
    """Bytes of ``[0] * 10_000_000`` and ``b"x" * 10_000_000``, roughly; 0 of anything else."""
    match expr:
        case ast.BinOp(op=ast.Mult(), left=left, right=ast.Constant(value=int(times))):
            if isinstance(left, ast.List):
                return 8 * len(left.elts) * times
            if isinstance(left, ast.Constant) and isinstance(left.value, str | bytes):
                return len(left.value) * times
    return 0


def names_in(expr: ast.expr) -> Iterator[ast.expr]:
    """The expression and the names in it, those of nested functions left out."""
    todo: list[ast.AST] = [expr]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.expr):
            yield node
        if not isinstance(node, ast.Lambda):
            todo += ast.iter_child_nodes(node)
