"""The coroutines that are awaited together: which calls made them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Final

from graft.compat.scan.names import Tree
from graft.compat.scan.scopes import Scope

PASSED_ON: Final = frozenset(
    {"asyncio.create_task", "asyncio.ensure_future", "asyncio.TaskGroup.create_task"}
    | {"builtins.list", "builtins.tuple", "builtins.set"}
)


def coroutines(tree: Tree, expr: ast.expr, scope: Scope, depth: int = 5) -> Iterator[ast.Call]:
    """The calls that make the awaitables of *expr*: a call, a list or a comprehension of calls, or a name for one."""
    if depth == 0:
        return
    match expr:
        case ast.ListComp(elt=inner) | ast.GeneratorExp(elt=inner) | ast.SetComp(elt=inner):
            yield from coroutines(tree, inner, scope, depth - 1)
        case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
            for part in parts:
                yield from coroutines(tree, part, scope, depth - 1)
        case ast.Name(id=name):
            where = scope.lookup(name)
            if where is not None and where[1][-1].how == "assign" and where[1][-1].value is not None:
                yield from coroutines(tree, where[1][-1].value, where[0], depth - 1)
        case ast.Call(func=func, args=args):
            made = tree.resolve(func, scope)
            dotted = made.dotted if made else ""
            if dotted in PASSED_ON and args:
                yield from coroutines(tree, args[0], scope, depth - 1)
            elif dotted == "builtins.map" and args:
                yield ast.copy_location(ast.Call(args[0], args[1:], []), expr)
            elif not dotted.startswith("asyncio."):
                yield expr
