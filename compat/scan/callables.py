"""What stands in the way of one callable and its arguments: the rules of placement, on code that was compiled only.

A function that workers can import goes by its name, any other as a copy: then what it captures counts (rule R2 of the
contract, ``tasks/callables/closure_check.py``). Beyond that rule stand differences that the program itself would only
notice on a worker: globals set later, files relative to the current folder, output.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from graft.compat.scan.names import Tree
from graft.compat.scan.obstacles import Level, Obstacle
from graft.compat.scan.scopes import Binding, Module, Scope
from graft.compat.scan.values import ITEM_LIMIT, Value, bound, names_in, worth
from graft.tasks.callables.closure_check import OPAQUE, used_names
from graft.tasks.callables.importable import HERE

ADVICE: Final = "pass it as an argument, or define it at the top level of an installed module"
OPENERS: Final = frozenset(
    {"builtins.open", "io.open", "pathlib.Path", "os.listdir", "os.scandir", "os.walk", "os.remove", "os.makedirs"}
    | {"glob.glob", "glob.iglob", "shutil.copy", "shutil.move", "pandas.read_csv", "numpy.load", "sqlite3.connect"}
)
HERE_FOLDER: Final = frozenset({"os.getcwd", "pathlib.Path.cwd"})
WRITERS: Final = frozenset({"sys.stdout.write", "sys.stderr.write"})
POOLS: Final = ("concurrent.futures.", "multiprocessing.Pool", "multiprocessing.pool.", "joblib.Parallel")
EXITS: Final = frozenset({"sys.exit", "os._exit", "os.abort", "builtins.exit", "builtins.quit"})
CHANGERS: Final = frozenset(
    {"append", "extend", "insert", "add", "update", "setdefault", "pop", "remove", "discard", "clear", "sort"}
)


@dataclass(frozen=True)
class Pool:
    """What counts of a pool: whether its workers are threads or coroutines, whose arguments are no copies, and which
    function it calls in each worker first.
    """

    shares_memory: bool = False
    initializer: Scope | None = None


@dataclass
class Judge:
    """Judges the callables of a tree. ``scripts`` are the modules that are run, whose own functions nobody imports."""

    tree: Tree
    scripts: set[Module] = field(default_factory=set)

    def callable(self, expr: ast.expr, scope: Scope, pool: Pool) -> tuple[str, list[Obstacle]]:
        """A name for *expr*, which *pool* calls, and what stands in its way."""
        if isinstance(expr, ast.Lambda):
            inner = scope.module.scopes[expr]
            return f"<lambda>, line {expr.lineno}", self._function(inner, scope, pool)
        if isinstance(expr, ast.Call):
            made = self.tree.resolve(expr.func, scope)
            if made is not None and made.dotted in ("functools.partial", "joblib.delayed") and expr.args:
                name, found = self.callable(expr.args[0], scope, pool)
                bound_values = [*expr.args[1:], *(keyword.value for keyword in expr.keywords)]
                return name, [*found, *self.arguments(bound_values, scope)]
            if made is not None and made.definition is not None and _is_async(made.definition):
                return self.callable(expr.func, scope, pool)  # A coroutine that was made.
        reference = self.tree.resolve(expr, scope)
        shown = ast.unparse(expr)
        if reference is None or isinstance(expr, ast.Call):
            text = f"{_shortened(shown)} is not known before the program runs"
            change = "see the call report of python -m graft.compat, or log graft.compat.placement at debug level"
            return shown, [self._obstacle("unknown", "unknown", scope, expr, text, change)]
        if reference.is_bound or (shown.startswith("self.") and reference.definition is None):
            text = f"{shown} is bound to an object, which is the caller's own state"
            change = "make it a function at the top level of a module, and pass what it needs of the object"
            return shown, [self._obstacle("method", "blocks", scope, expr, text, change)]
        if reference.is_instance:
            text = f"{shown} is an object ({reference.dotted.rpartition('.')[2]}), which is the caller's own state"
            return shown, [self._obstacle("state", "blocks", scope, expr, text, ADVICE)]
        definition = reference.definition
        if definition is None or isinstance(definition.node, ast.ClassDef):
            return reference.dotted.removeprefix("builtins."), []
        return _name(definition), self._function(definition, scope, pool)

    def arguments(self, exprs: Iterable[ast.expr], scope: Scope, *, are_items: bool = False) -> list[Obstacle]:
        """What cannot travel among the arguments of a call, or, *are_items*, in the iterables of its items."""
        found = []
        for expr in exprs:
            for each in names_in(expr):
                if are_items and each is expr and not isinstance(each, ast.Name):
                    continue
                if isinstance(each, ast.Lambda):
                    text, change = "a lambda is passed, which cannot be pickled", "pass a function of a module"
                    found.append(self._obstacle("handle", "blocks", scope, each, text, change))
                elif isinstance(each, ast.Name | ast.Call | ast.GeneratorExp | ast.BinOp | ast.Attribute):
                    value = worth(self.tree, each, scope)
                    if not (are_items and each is expr and value.kind == "large"):
                        found += self._value(value, f"{_shortened(ast.unparse(each))!r} is passed", scope, each)
        return found

    # ---- one function -------------------------------------------------------------------------------------------

    def _function(self, definition: Scope, scope: Scope, pool: Pool) -> list[Obstacle]:
        by_name = self._goes_by_name(definition, scope)
        found = [*self._globals(definition, pool)] if by_name else self._captures(definition)
        if pool.shares_memory:
            found += self._changed(definition, by_name)
        for each in self._reached(definition):
            found += self._body(each)
        return sorted(set(found))

    def _goes_by_name(self, definition: Scope, scope: Scope) -> bool:
        if "<" in definition.qualname:  # <locals>, <lambda>
            return False
        return not (definition.module is scope.module and definition.module in self.scripts)

    def _captures(self, definition: Scope, seen: frozenset[Scope] = frozenset()) -> list[Obstacle]:
        """What makes a copy of the function another thing than the function: rule R2 b."""
        code = definition.module.own_code(definition.node)  # type: ignore[arg-type]
        if code is None or definition in seen:
            return []
        names, node = used_names(code), definition.node
        if names.assigns:
            text = f"{_name(definition)} assigns to {min(names.assigns)!r}, which is the caller's own state"
            return [self._obstacle("state", "blocks", definition, node, text, "return the value instead")]
        if hidden := (names.reads & OPAQUE) | (names.imports & HERE):
            text = f"{_name(definition)} uses {min(hidden)}, which reaches all of the caller's own state"
            return [self._obstacle("state", "blocks", definition, node, text, ADVICE)]
        found: list[Obstacle] = []
        for name in sorted(names.reads | set(code.co_freevars)):
            where = definition.parent.lookup(name) if definition.parent else None
            if where is None:
                continue
            home, bindings = where
            inner = home.module.scopes.get(bindings[-1].node)
            if bindings[-1].how == "def" and inner is not None:
                found += self._captures(inner, seen | {definition})
                continue
            said = f"{_name(definition)} captures {name!r}"
            if name in ("self", "cls"):
                text = f"{said}, an object of the caller's"
                found.append(self._obstacle("state", "blocks", definition, node, text, ADVICE))
                continue
            found += self._value(bound(self.tree, bindings[-1], home), said, definition, node, captured=True)
        return found

    def _globals(self, definition: Scope, pool: Pool) -> Iterator[Obstacle]:
        """Global names that the program sets after the import, and what the function assigns to itself."""
        code = definition.module.own_code(definition.node)  # type: ignore[arg-type]
        names = None if code is None else used_names(code)
        if names is None:
            return
        own = f"{definition.qualname}()"
        for name in sorted(names.reads | names.assigns):
            bindings = definition.module.top.names.get(name, ())
            late = [binding for binding in bindings if _is_late(binding, definition, pool)]
            if late and name not in names.assigns:
                text = (
                    f"{_name(definition)} reads {name!r}, which {late[0].setter} sets (line {late[0].line}): a worker "
                    "imports the module, and does not see that"
                )
                change = "pass it as an argument, or set it in the pool's initializer="
                yield self._obstacle("global", "blocks", definition, definition.node, text, change)
            elif name in names.assigns and any(binding.setter == own for binding in bindings):
                text = f"{_name(definition)} assigns to the global {name!r}: each worker process has its own"
                change = "return the value, and put the values together in the caller"
                yield self._obstacle("global", "care", definition, definition.node, text, change)

    def _changed(self, definition: Scope, by_name: bool) -> list[Obstacle]:
        """Arguments, and global names of an imported module, that the function changes in place."""
        parameters = {name for name, bindings in definition.names.items() if bindings[0].how == "parameter"}
        shared = {name for name in definition.module.top.names if by_name and name not in definition.names}
        found = []
        for node in ast.walk(definition.node):
            target: ast.expr | None = None
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGERS:
                target = node.func.value
            elif isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store):
                target = node.value
            if not isinstance(target, ast.Name):
                continue
            if target.id in shared and worth(self.tree, target, definition).kind == "state":
                text = f"{_name(definition)} changes the global {target.id!r}: each worker process has its own"
                change = "return the value, and put the values together in the caller"
                found.append(self._obstacle("global", "care", definition, node, text, change))
            if target.id in parameters - {"self", "cls"}:
                text = f"{_name(definition)} changes its argument {target.id!r}: a worker changes a copy"
                found.append(self._obstacle("argument", "care", definition, node, text, "return what has changed"))
        return found

    # ---- what it does -------------------------------------------------------------------------------------------

    def _reached(self, definition: Scope) -> list[Scope]:
        """The function, and the functions of the tree that it calls."""
        reached = [definition]
        for each in reached:  # Which grows meanwhile.
            for call, where in each.module.calls:
                if _is_inside(where, each):
                    called = self.tree.resolve(call.func, where)
                    inner = called.definition if called else None
                    if inner is not None and not isinstance(inner.node, ast.ClassDef) and inner not in reached:
                        reached.append(inner)
        return reached

    def _body(self, definition: Scope) -> Iterator[Obstacle]:
        for call, where in definition.module.calls:
            if not _is_inside(where, definition):
                continue
            called = self.tree.resolve(call.func, where)
            name, dotted = _name(definition), called.dotted if called else ""
            if dotted in WRITERS or (dotted == "builtins.print" and not any(k.arg == "file" for k in call.keywords)):
                text, change = f"{name} prints", "return the text, or use logging"
                yield self._obstacle("output", "care", where, call, text, change)
            elif dotted in HERE_FOLDER or (dotted in OPENERS and _is_relative(call)):
                text = f"{name} uses a path relative to the current folder: {_shortened(ast.unparse(call))}"
                change = "pass an absolute path, in a folder that the workers have too"
                yield self._obstacle("cwd", "care", where, call, text, change)
            elif dotted.startswith(POOLS):
                text, change = f"{name} makes or uses a pool", "submit from the caller alone"
                yield self._obstacle("nested", "care", where, call, text, change)
            elif dotted in EXITS:
                text, change = f"{name} calls {dotted.removeprefix('builtins.')}()", "raise an exception instead"
                yield self._obstacle("exits", "care", where, call, text, change)

    # ---- saying it ----------------------------------------------------------------------------------------------

    def _value(
        self, value: Value, said: str, scope: Scope, node: ast.AST, *, captured: bool = False
    ) -> Iterator[Obstacle]:
        if value.kind == "handle":
            text = f"{said} ({value.what}), which cannot be pickled"
            yield self._obstacle("handle", "blocks", scope, node, text, value.change)
        elif value.kind == "large":
            text = f"{said} ({value.what}), which may be above {ITEM_LIMIT >> 20} MiB"
            change = "pass its path or key and load it on the worker, or raise GRAFT_ITEM_LIMIT"
            yield self._obstacle("large", "care", scope, node, text, change)
        elif value.kind == "state" and captured:
            text = f"{said} ({value.what}), which is the caller's own state"
            yield self._obstacle("state", "blocks", scope, node, text, ADVICE)
        elif value.kind == "unknown" and captured:
            text = f"{said}: a number or a text travels with it, a list or an object does not"
            yield self._obstacle("unknown", "unknown", scope, node, text, ADVICE)

    @staticmethod
    def _obstacle(rule: str, level: Level, scope: Scope, node: ast.AST, text: str, change: str) -> Obstacle:
        return Obstacle(scope.module.shown, getattr(node, "lineno", 1), rule, level, text, change)


def _name(definition: Scope) -> str:
    if isinstance(definition.node, ast.Lambda):
        return f"the lambda of line {definition.node.lineno}"
    return definition.qualname


def _is_late(binding: Binding, definition: Scope, pool: Pool) -> bool:
    """Whether *binding* gives a global name its value after the import, elsewhere than where workers see it too."""
    given = {f"{definition.qualname}()"}
    if pool.initializer is not None and pool.initializer.module is definition.module:
        given.add(f"{pool.initializer.qualname}()")
    return bool(binding.setter) and binding.setter not in given


def _is_async(definition: Scope) -> bool:
    return isinstance(definition.node, ast.AsyncFunctionDef)


def _is_inside(scope: Scope | None, definition: Scope) -> bool:
    while scope is not None and scope is not definition:
        scope = scope.parent
    return scope is definition


def _is_relative(call: ast.Call) -> bool:
    """Whether the first argument is a path that does not begin at the root, or, of ``Path()``, missing."""
    if not call.args:
        return not call.keywords
    first: ast.AST = call.args[0]
    if isinstance(first, ast.JoinedStr) and first.values:
        first = first.values[0]
    return isinstance(first, ast.Constant) and isinstance(first.value, str) and not first.value.startswith(("/", "~"))


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"
