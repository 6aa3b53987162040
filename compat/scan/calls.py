"""The calls of a tree that give work to executors, pools, joblib, event loops and the old modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from graft.compat.scan.callables import Judge, Pool
from graft.compat.scan.coroutines import coroutines
from graft.compat.scan.kinds import (
    BATCH,
    DELAYED,
    FACADES,
    GATHERS,
    JOBLIB,
    LOOP,
    METHODS,
    OLD,
    OLD_METHODS,
    PARALLEL,
    POOLS,
    SEMAPHORES,
    Kind,
    Shape,
)  # fmt: skip
from graft.compat.scan.names import Tree
from graft.compat.scan.obstacles import Obstacle
from graft.compat.scan.scopes import Module, Scope

Verdict = Literal["moves", "with care", "unknown", "not as it is"]
VERDICTS: Final[tuple[Verdict, ...]] = ("moves", "with care", "unknown", "not as it is")


@dataclass(frozen=True)
class Site:
    """One call: where it is, what it gives away, and what stands in the way."""

    path: str
    line: int
    kind: str
    call: str
    callable: str
    change: str
    obstacles: tuple[Obstacle, ...] = ()

    @property
    def verdict(self) -> Verdict:
        levels = {obstacle.level for obstacle in self.obstacles}
        if "blocks" in levels:
            return "not as it is"
        return "unknown" if "unknown" in levels else "with care" if levels else "moves"


@dataclass
class Work:
    """A call found, before it is judged: the callables in it, and the arguments that go along."""

    call: ast.Call
    scope: Scope
    kind: Kind
    name: str
    callables: list[ast.expr] = field(default_factory=list)
    arguments: list[ast.expr] = field(default_factory=list)
    items: list[ast.expr] = field(default_factory=list)
    obstacles: list[Obstacle] = field(default_factory=list)
    initializer: Scope | None = None


def sites(tree: Tree) -> list[Site]:
    """Every call of the tree that gives work away, by file and line."""
    judge = Judge(tree)
    works: list[Work] = []
    for module in tree.modules:
        found = [work for call, scope in module.calls for work in _works(tree, call, scope)]
        found += _unused(tree, module, {work.kind for work in found})
        if module.has_main_guard or any(work.scope is module.top for work in found):
            judge.scripts.add(module)
        works += found
    found_sites = [*_imports(tree), *(site for work in works for site in _judged(judge, work))]
    return sorted(found_sites, key=lambda site: (site.path, site.line))


def _imports(tree: Tree) -> Iterator[Site]:
    """Where the old modules are imported: that moves by itself."""
    for module in tree.modules:
        for scope in module.scopes.values():
            for bindings in scope.names.values():
                for binding in bindings:
                    new = tree.named(binding.dotted).dotted if binding.how == "import" else ""
                    if new.startswith(FACADES) and not binding.dotted.startswith(FACADES):
                        home = ".".join(new.split(".")[:3])
                        name = home.rpartition(".")[2]
                        yield Site(module.shown, binding.line, name, f"import {binding.dotted}", "", OLD.format(home))


def _judged(judge: Judge, work: Work) -> Iterator[Site]:
    scope, kind = work.scope, work.kind
    carried = [*judge.arguments(work.arguments, scope), *judge.arguments(work.items, scope, are_items=True)]
    if not work.callables:
        yield _site(work, "", [*work.obstacles, *carried])
    for each in work.callables:
        name, found = judge.callable(each, scope, Pool(kind.shares_memory, work.initializer))
        yield _site(work, name, [*work.obstacles, *found, *carried])


def _site(work: Work, callable_name: str, obstacles: list[Obstacle]) -> Site:
    shown = callable_name if callable_name and "<" not in callable_name else "func"
    change = work.kind.change.format(shown.rpartition(":")[2])
    path = work.scope.module.shown
    return Site(path, work.call.lineno, work.kind.name, work.name, callable_name, change, tuple(sorted(set(obstacles))))


def _works(tree: Tree, call: ast.Call, scope: Scope) -> Iterator[Work]:
    made = tree.resolve(call.func, scope)
    dotted = made.dotted if made else ""
    owner, _, method = dotted.rpartition(".")
    if made is not None and made.is_instance and dotted in PARALLEL:
        yield _joblib(tree, call, scope)
    elif owner in POOLS and method in METHODS:
        work = _shaped(call, scope, POOLS[owner], f"{POOLS[owner].name}.{method}", METHODS[method])
        work.initializer = _initializer(tree, call.func, scope)
        yield work
    elif dotted.startswith(FACADES) and method in OLD_METHODS:
        home = ".".join(dotted.split(".")[:3])
        kind = Kind(home.rpartition(".")[2], OLD.format(home), shares_memory=True)
        yield _shaped(call, scope, kind, ".".join(dotted.split(".")[3:]), OLD_METHODS[method])
    elif isinstance(call.func, ast.Attribute) and call.func.attr == "run_in_executor":
        given = tree.resolve(call.args[0], scope) if call.args else None
        kind = POOLS.get(given.dotted, LOOP) if given else LOOP
        yield Work(call, scope, kind, "loop.run_in_executor", call.args[1:2], call.args[2:])
    elif dotted == "asyncio.to_thread":
        values = [keyword.value for keyword in call.keywords]
        yield Work(call, scope, LOOP, dotted, call.args[:1], [*call.args[1:], *values])
    elif dotted in GATHERS or dotted == "asyncio.TaskGroup.create_task":
        yield from _gathered(tree, call, scope, dotted)
    elif dotted in SEMAPHORES:
        yield _semaphore(call, scope, dotted)


def _shaped(call: ast.Call, scope: Scope, kind: Kind, name: str, shape: Shape) -> Work:
    work = Work(call, scope, kind, name)
    given = [keyword.value for keyword in call.keywords if keyword.arg == shape.name]
    if len(call.args) > shape.at:
        given = [call.args[shape.at]]
    for each in given:
        work.callables += each.elts if isinstance(each, ast.List | ast.Tuple) else [each]
    others = [arg for arg in call.args if arg not in given]
    if shape.rest == "items":
        work.items = others
        return work
    others += [k.value for k in call.keywords if (k.value not in given and not k.arg) or k.arg in ("args", "kwds")]
    for each in others:
        parts = each.elts if shape.rest == "tuple" and isinstance(each, ast.Tuple | ast.List) else [each]
        work.arguments += parts
    if name.endswith(".submit"):
        work.arguments += [keyword.value for keyword in call.keywords if keyword.value not in given]
    return work


def _joblib(tree: Tree, call: ast.Call, scope: Scope) -> Work:
    work = Work(call, scope, JOBLIB, "joblib.Parallel")
    for node in (inner for arg in call.args for inner in ast.walk(arg)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Call):
            made = tree.resolve(node.func.func, scope)
            if made is not None and made.dotted in DELAYED:
                work.callables += node.func.args[:1]
                work.arguments += [*node.args, *(keyword.value for keyword in node.keywords)]
    return work


def _gathered(tree: Tree, call: ast.Call, scope: Scope, dotted: str) -> Iterator[Work]:
    """One work for each coroutine function whose coroutines are awaited together."""
    kind = Kind(dotted.removesuffix(".create_task"), BATCH, shares_memory=True)
    found: dict[str, Work] = {}
    for each in call.args:
        for made in coroutines(tree, each.value if isinstance(each, ast.Starred) else each, scope):
            shown = ast.unparse(made.func)
            work = found.setdefault(shown, Work(call, scope, kind, dotted, [made.func]))
            work.arguments += [*made.args, *(keyword.value for keyword in made.keywords)]
    yield from found.values()


def _semaphore(call: ast.Call, scope: Scope, dotted: str) -> Work:
    limit = ast.unparse(call.args[0]) if call.args else "1"
    change = f"graft.compat.async_patterns.Semaphore({limit}, name=…); for one batch, in_flight= of graft.submit"
    kind = Kind(dotted, change)
    text = "it bounds this process alone: two callers have two bounds"
    change = "give the bound a name that all processes share"
    work = Work(call, scope, kind, dotted)
    work.obstacles = [Obstacle(scope.module.shown, call.lineno, "bound", "care", text, change)]
    return work


def _initializer(tree: Tree, method: ast.expr, scope: Scope) -> Scope | None:
    """The function that the pool behind ``pool.method`` calls in each worker first, where the tree has it."""
    made = tree.maker(method.value, scope) if isinstance(method, ast.Attribute) else None
    if made is None:
        return None
    call, where = made
    for each in [keyword.value for keyword in call.keywords if keyword.arg == "initializer"] or call.args[1:2]:
        found = tree.resolve(each, where)
        if found is not None:
            return found.definition
    return None


def _unused(tree: Tree, module: Module, used: set[Kind]) -> Iterator[Work]:
    """Pools that are made in *module*, of a kind that it never calls: they are called elsewhere, or by a library."""
    for call, scope in module.calls:
        made = tree.resolve(call, scope)
        if made is None or not made.is_instance or made.dotted not in POOLS or POOLS[made.dotted] in used:
            continue
        kind = POOLS[made.dotted]
        work = Work(call, scope, kind, kind.name)
        text = "it is made here, and what it calls was not found"
        change = "look for where it is used; the call report of python -m graft.compat names its calls"
        work.obstacles = [Obstacle(scope.module.shown, call.lineno, "unknown", "unknown", text, change)]
        yield work
