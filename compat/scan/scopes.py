"""One file of the tree: its scopes, the names that they bind, and its calls."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import CodeType
from typing import Literal

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
How = Literal["import", "def", "class", "assign", "with", "parameter", "loop", "other"]
ScopeNode = ast.Module | ast.ClassDef | FunctionNode


@dataclass(frozen=True)
class Binding:
    """One place that gives a name its value.

    ``value`` is the expression behind it, where there is one; of an import, ``dotted`` is what is imported. ``setter``
    says who assigns to a global name after the module has been imported: a function, or the main guard.
    """

    how: How
    node: ast.AST
    line: int
    value: ast.expr | None = None
    dotted: str = ""
    setter: str = ""


@dataclass(eq=False)
class Scope:
    """A module, class or function, with the names that it binds."""

    node: ScopeNode
    module: Module
    parent: Scope | None = None
    qualname: str = ""
    names: dict[str, list[Binding]] = field(default_factory=dict)
    attributes: dict[str, tuple[ast.expr, Scope]] = field(default_factory=dict)  # Of a class: what its methods assign.
    global_names: set[str] = field(default_factory=set)  # Of a function: those that it declares as global.

    def lookup(self, name: str) -> tuple[Scope, list[Binding]] | None:
        """The scope that a use of *name* in this one refers to, and the name's bindings there."""
        scope: Scope | None = self
        while scope is not None:
            is_seen = scope is self or not isinstance(scope.node, ast.ClassDef)
            if is_seen and name in scope.names:
                return scope, scope.names[name]
            scope = scope.parent
        return None

    def enclosing_class(self) -> Scope | None:
        scope: Scope | None = self
        while scope is not None and not isinstance(scope.node, ast.ClassDef):
            scope = scope.parent
        return scope


class Module:
    """A parsed file. ``names`` are those under which it may be imported."""

    def __init__(self, path: Path, shown: str, names: tuple[str, ...], tree: ast.Module, code: CodeType) -> None:
        self.path, self.shown, self.names, self.tree, self.code = path, shown, names, tree, code
        self.calls: list[tuple[ast.Call, Scope]] = []
        self.has_main_guard = False
        self.top = Scope(tree, self)
        self.scopes: dict[ast.AST, Scope] = {tree: self.top}
        _Builder(self).visit(tree)

    def own_code(self, node: FunctionNode) -> CodeType | None:
        """The code object of a function in this file."""
        name = "<lambda>" if isinstance(node, ast.Lambda) else node.name
        found = [self.code]
        for code in found:  # Which grows meanwhile; outer code comes before what is nested in it.
            for constant in code.co_consts:
                if isinstance(constant, CodeType):
                    if constant.co_name == name and _is_within(constant, node):
                        return constant
                    found.append(constant)
        return None


def _is_within(code: CodeType, node: FunctionNode) -> bool:
    """Whether *code* is that of *node*: its instructions stand where the node's body does."""
    start, end = (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)
    # What opens a code object (RESUME, COPY_FREE_VARS) stands at column 0, and is 0 wide.
    places = [(line, column) for line, _, column, stop in code.co_positions() if line and column is not None and stop]
    return bool(places) and all(start <= place <= end for place in places)


class _Builder(ast.NodeVisitor):
    """Fills the scopes of a module."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.scope = module.top
        self.is_in_main_guard = False

    def bind(self, name: str, binding: Binding) -> None:
        scope, setter = self.scope, ""
        if name in scope.global_names:
            scope, setter = self.module.top, f"{scope.qualname}()"
        elif scope is self.module.top and self.is_in_main_guard:
            setter = "the main guard"
        scope.names.setdefault(name, []).append(replace(binding, setter=setter))

    def bind_target(self, target: ast.expr, how: How, value: ast.expr | None) -> None:
        match target:
            case ast.Name():
                self.bind(target.id, Binding(how, target, target.lineno, value))
            case ast.Tuple() | ast.List():
                parts = value.elts if isinstance(value, ast.Tuple | ast.List) else []
                is_alike = len(parts) == len(target.elts)
                for index, element in enumerate(target.elts):
                    self.bind_target(element, how if is_alike else "other", parts[index] if is_alike else None)
            case ast.Starred():
                self.bind_target(target.value, "other", None)
            case ast.Attribute(value=ast.Name(id="self")) if value is not None:
                owner = self.scope.enclosing_class()
                if owner is not None:
                    owner.attributes.setdefault(target.attr, (value, self.scope))

    # ---- what binds names ---------------------------------------------------------------------------------------

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            dotted = alias.name if alias.asname else alias.name.partition(".")[0]
            self.bind(alias.asname or dotted, Binding("import", node, node.lineno, dotted=dotted))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            package = (self.module.names[0] if self.module.names else "").split(".")
            is_package = self.module.path.name == "__init__.py"
            kept = package[: len(package) - node.level + is_package]
            base = ".".join([*kept, *filter(None, [node.module])])
        for alias in node.names:
            self.bind(alias.asname or alias.name, Binding("import", node, node.lineno, dotted=f"{base}.{alias.name}"))

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self.bind_target(target, "assign", node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.bind_target(node.target, "assign", node.value)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name) and node.target.id in self.scope.global_names:
            self.bind(node.target.id, Binding("other", node, node.lineno))
        self.generic_visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.bind_target(node.target, "assign", node.value)
        self.generic_visit(node)

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.bind_target(node.target, "loop", node.iter)
        self.generic_visit(node)

    visit_AsyncFor = visit_For

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self.bind_target(node.target, "loop", node.iter)
        self.generic_visit(node)

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            if item.optional_vars is not None:
                self.bind_target(item.optional_vars, "with", item.context_expr)
        self.generic_visit(node)

    visit_AsyncWith = visit_With

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self.bind(node.name, Binding("other", node, node.lineno))
        self.generic_visit(node)

    def visit_Global(self, node: ast.Global) -> None:
        self.scope.global_names.update(node.names)

    def visit_If(self, node: ast.If) -> None:
        is_guard = self.scope is self.module.top and "__name__" in ast.unparse(node.test)
        self.module.has_main_guard |= is_guard
        before, self.is_in_main_guard = self.is_in_main_guard, self.is_in_main_guard or is_guard
        self.generic_visit(node)
        self.is_in_main_guard = before

    # ---- what opens scopes --------------------------------------------------------------------------------------

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.bind(node.name, Binding("class", node, node.lineno))
        for part in [*node.decorator_list, *node.bases, *node.keywords]:
            self.visit(part)
        self.within(node, node.name, node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.bind(node.name, Binding("def", node, node.lineno))
        for part in [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self.visit(part)
        self.within(node, node.name, node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for part in [*node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self.visit(part)
        self.within(node, "<lambda>", [node.body])

    def within(self, node: ast.ClassDef | FunctionNode, name: str, body: Sequence[ast.AST]) -> None:
        outer = self.scope
        local = "<locals>." if not isinstance(outer.node, ast.Module | ast.ClassDef) else ""
        qualname = f"{outer.qualname}.{local}{name}".lstrip(".")
        self.scope = self.module.scopes[node] = Scope(node, self.module, outer, qualname)
        if not isinstance(node, ast.ClassDef):
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            for argument in [*every, *filter(None, [arguments.vararg, arguments.kwarg])]:
                self.bind(argument.arg, Binding("parameter", argument, argument.lineno, argument.annotation))
            for each in body:  # Before anything is bound: a name is global in the whole function.
                for inner in ast.walk(each):
                    if isinstance(inner, ast.Global):
                        self.scope.global_names.update(inner.names)
        for each in body:
            self.visit(each)
        self.scope = outer

    def visit_Call(self, node: ast.Call) -> None:
        self.module.calls.append((node, self.scope))
        self.generic_visit(node)
