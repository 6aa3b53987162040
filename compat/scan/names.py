"""What a name in one file stands for, also where another file of the tree defines it."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from graft.compat.scan.scopes import Binding, Module, Scope

DEPTH: Final = 20  # Names that stand for names that stand for names …


@dataclass(frozen=True)
class Reference:
    """What an expression stands for: ``dotted`` is the full name of an object, or of the class of an instance.

    ``definition`` is the scope of a function or class in the tree; ``is_bound`` says that it is a method of an object.
    """

    dotted: str
    is_instance: bool = False
    definition: Scope | None = None
    is_bound: bool = False


class Tree:
    """All modules that were read, and what a name in one of them stands for in another."""

    def __init__(self, renamed: Mapping[str, str]) -> None:
        self.modules: list[Module] = []
        self.by_name: dict[str, Module] = {}
        self._renamed = dict(renamed)  # Old module -> facade.

    def add(self, module: Module) -> None:
        self.modules.append(module)
        for name in module.names:
            self.by_name.setdefault(name, module)

    def resolve(self, expr: ast.expr, scope: Scope, depth: int = DEPTH) -> Reference | None:
        """What *expr*, used in *scope*, stands for; None where that cannot be told."""
        if depth == 0:
            return None
        match expr:
            case ast.Await():
                return self.resolve(expr.value, scope, depth - 1)
            case ast.Call():
                made = self.resolve(expr.func, scope, depth - 1)
                return made and self._made(made)
            case ast.Attribute():
                return self._attribute(expr, scope, depth)
            case ast.Name():
                return self._name(expr.id, scope, depth)
        return None

    def maker(self, expr: ast.expr, scope: Scope, depth: int = DEPTH) -> tuple[ast.Call, Scope] | None:
        """The call that made the object behind *expr*, and the scope that it stands in."""
        match expr:
            case ast.Call():
                return expr, scope
            case ast.Await():
                return self.maker(expr.value, scope, depth - 1)
            case ast.Name(id=name) if depth and (found := scope.lookup(name)):
                where, bindings = found
                value = bindings[-1].value if bindings[-1].how in ("assign", "with") else None
                return None if value is None else self.maker(value, where, depth - 1)
            case ast.Attribute(value=ast.Name(id="self"), attr=name) if depth and (owner := scope.enclosing_class()):
                if name in owner.attributes:
                    value, where = owner.attributes[name]
                    return self.maker(value, where, depth - 1)
        return None

    def _made(self, maker: Reference) -> Reference:
        if maker.dotted == "multiprocessing.get_context":
            return Reference("multiprocessing")
        return Reference(maker.dotted, is_instance=True, definition=maker.definition)

    def _name(self, name: str, scope: Scope, depth: int) -> Reference | None:
        found = scope.lookup(name)
        if found is None:
            return Reference(f"builtins.{name}") if hasattr(builtins, name) else None
        where, bindings = found
        return self._bound(name, bindings[-1], where, depth)

    def _bound(self, name: str, binding: Binding, scope: Scope, depth: int) -> Reference | None:
        match binding.how:
            case "import":
                return self.named(binding.dotted, depth)
            case "def" | "class":
                home = scope.module.names[0] if scope.module.names else scope.module.shown
                inner = scope.module.scopes[binding.node]
                return Reference(f"{home}.{inner.qualname}", definition=inner)
            case "assign" | "with" if binding.value is not None:
                return self.resolve(binding.value, scope, depth - 1)
            case "parameter" if binding.value is not None:  # Its annotation.
                annotated = self.resolve(binding.value, scope, depth - 1)
                return annotated and Reference(annotated.dotted, is_instance=True, definition=annotated.definition)
        return None

    def named(self, dotted: str, depth: int = DEPTH) -> Reference:
        """What *dotted* is: something in a module of the tree, else only its name."""
        for old, facade in self._renamed.items():
            if dotted == old or dotted.startswith(f"{old}."):
                return Reference(facade + dotted[len(old) :])
        module, _, name = dotted.rpartition(".")
        home = self.by_name.get(module)
        if home is not None and name in home.top.names and depth:
            return self._bound(name, home.top.names[name][-1], home.top, depth - 1) or Reference(dotted)
        return Reference(dotted)

    def _attribute(self, expr: ast.Attribute, scope: Scope, depth: int) -> Reference | None:
        if isinstance(expr.value, ast.Name) and expr.value.id in ("self", "cls"):
            owner = scope.enclosing_class()
            if owner is not None and expr.attr in owner.attributes:
                value, where = owner.attributes[expr.attr]
                return self.resolve(value, where, depth - 1)
            if owner is not None:
                return self._member(Reference(owner.qualname, is_instance=True, definition=owner), expr.attr, depth)
        of = self.resolve(expr.value, scope, depth - 1)
        return of and self._member(of, expr.attr, depth)

    def _member(self, of: Reference, name: str, depth: int) -> Reference:
        inner = of.definition
        if inner is not None and isinstance(inner.node, ast.ClassDef) and name in inner.names:
            binding = inner.names[name][-1]
            if binding.how == "def":
                method = inner.module.scopes[binding.node]
                return Reference(f"{of.dotted}.{name}", definition=method, is_bound=of.is_instance)
        return Reference(f"{of.dotted}.{name}") if of.is_instance else self.named(f"{of.dotted}.{name}", depth)
