"""The program's main module, as guests get it.

Guests of the start method *spawn* run it again, as that does. A fork inherits it: there guests run its definitions
alone, whatever else it does, and get the values of its globals (program.py).
"""

from __future__ import annotations

import ast
import dis
import functools
import os
import sys
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final, TypedDict

from graft.compat.guests.staying import StaysHomeError

# What an assignment may call and still be run again: it makes a value, and does nothing else.
MAKERS: Final = frozenset({
    "Counter", "Decimal", "Enum", "Fraction", "Lock", "NewType", "OrderedDict", "ParamSpec", "Path", "PurePath",
    "RLock", "TypeVar", "abspath", "basename", "bool", "bytes", "compile", "defaultdict", "deque", "dict", "dirname",
    "enumerate", "field", "float", "format", "frozenset", "get", "getLogger", "getenv", "int", "items", "join",
    "itemgetter", "attrgetter", "keys", "len", "list", "lower", "make_dataclass", "max", "min", "namedtuple", "object",
    "partial", "range", "realpath", "repr", "resolve", "round", "set", "sorted", "split", "str", "strip", "sum",
    "tuple", "upper", "values", "zip",
})  # fmt: skip
# What no assignment may call, not even one that a definition needs.
ACTS: Final = frozenset({
    "Executor", "Manager", "Pool", "Popen", "Process", "ProcessPoolExecutor", "ThreadPoolExecutor", "call", "connect",
    "input", "main", "mkdtemp", "open", "parse_args", "run", "submit", "system", "write",
})  # fmt: skip
Position = tuple[int, int]


class Main(TypedDict):
    """How guests get the main module: run again by name or path, or by path the statements at ``main_kept`` alone."""

    main_name: str | None
    main_path: str | None
    main_file: str
    main_package: str | None
    main_kept: list[Position] | None


def for_guests(method: str, package: str) -> Main:
    """How guests started by *method* of *package* get the main module.

    Raises:
        StaysHomeError: calls may need it, and its source cannot be read.
    """
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    file = os.path.abspath(file) if isinstance(file, str) else ""
    name = getattr(getattr(main, "__spec__", None), "name", None)
    found = Main(main_name=None, main_path=None, main_file=file, main_package=getattr(main, "__package__", None),
                 main_kept=None)  # fmt: skip
    if method == "fork":
        if _defines(main) or package != "multiprocessing":  # dill copies what is nameless, and refers to its globals.
            found["main_path"], found["main_kept"] = file, _definitions(file)
    elif name is None:
        found["main_path"] = file or None
    elif name.rpartition(".")[2] != "__main__":
        found["main_name"] = name
    return found


def is_read(name: str) -> bool:
    """Whether a call may read the global *name* of the main module.

    Calls begin in functions that pickle can name, other than those that are running now.
    """
    main = sys.modules["__main__"]
    running = _running(main)
    held = vars(main)
    found: set[FunctionType] = set()
    left = [each for key, value in list(held.items()) for each in _functions(value, main) if _is_named(key, value)]
    while left:
        function = left.pop()
        if function in found or function.__code__ in running:
            continue
        found.add(function)
        names = _names(function.__code__)
        if name in names:
            return True
        left += [each for key in names if key in held for each in _functions(held[key], main)]
    return False


def _is_named(key: str, value: Any) -> bool:
    return getattr(value, "__qualname__", None) == key


def _functions(value: Any, main: ModuleType) -> list[FunctionType]:
    if isinstance(value, FunctionType):
        return [value] if value.__globals__ is vars(main) else []
    if isinstance(value, type) and value.__module__ == main.__name__:
        found = [getattr(each, "__func__", getattr(each, "fget", each)) for each in vars(value).values()]
        return [each for each in found if isinstance(each, FunctionType)]
    return []


@functools.cache
def _names(code: CodeType) -> frozenset[str]:
    """The globals that *code* reads, the functions in it included."""
    own = {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = (_names(each) for each in code.co_consts if isinstance(each, CodeType))
    return frozenset(own).union(*inner)


def _running(main: ModuleType) -> set[CodeType]:
    found = set()
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals is vars(main):
            found.add(frame.f_code)
        frame = frame.f_back  # type: ignore[assignment]
    return found


def _defines(main: ModuleType) -> bool:
    """Whether the main module has functions or classes of its own, which calls may name."""
    return any(
        isinstance(value, type | FunctionType) and value.__module__ in ("__main__", "__mp_main__")
        for value in list(vars(main).values())
    )


def _definitions(file: str) -> list[Position]:
    """Where the statements are that define something, those below ``if __name__ == "__main__":`` included."""
    try:
        with open(file, "rb") as source:
            tree = ast.parse(source.read())
    except (OSError, SyntaxError, ValueError) as error:
        raise StaysHomeError(f"the source of the main module cannot be read, and calls may need it: {error}") from error
    return _with_needed(tree.body, _kept(tree.body))


def _kept(body: list[ast.stmt], *, is_inner: bool = False) -> list[Position]:
    found: list[Position] = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom) or (
            not is_inner and _defines_only(node)
        ):
            found.append((node.lineno, node.col_offset))
        else:
            found += _kept(inner_statements(node), is_inner=True)
    return found


def _with_needed(body: list[ast.stmt], kept: list[Position]) -> list[Position]:
    """*kept*, with the assignments that definitions need when they are made: default values, decorators, bases."""
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    while True:
        needed: set[str] = set()
        for node in body:
            if _position(node) in kept:
                needed |= _read_at_once(node)
        needed |= {name for each in needed & functions.keys() for name in _read_in(functions[each])}
        more = [
            _position(node) for node in body
            if isinstance(node, ast.Assign | ast.AnnAssign) and _position(node) not in kept
            and any(isinstance(each, ast.Name) and each.id in needed for each in _targets(node))
            and not any(isinstance(each, ast.Call) and _called(each) in ACTS for each in ast.walk(node))
        ]  # fmt: skip
        if not more:
            return kept
        kept = [*kept, *more]


def _position(node: ast.stmt) -> Position:
    return node.lineno, node.col_offset


def _read_at_once(node: ast.AST) -> set[str]:
    """The names that are read while *node* is executed, the bodies of its functions left out."""
    found = {node.id} if isinstance(node, ast.Name) else set()
    is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for name, held in ast.iter_fields(node):
        if not (is_function and name == "body"):
            for each in held if isinstance(held, list) else [held]:
                if isinstance(each, ast.AST):
                    found |= _read_at_once(each)
    return found


def _read_in(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func).rpartition(".")[2]


def inner_statements(node: ast.stmt) -> list[ast.stmt]:
    """The statements inside *node*, such as those below an ``if``."""
    handled = [each for handler in getattr(node, "handlers", ()) for each in handler.body]
    inner = [each for name in ("body", "orelse", "finalbody") for each in getattr(node, name, ())]
    return [*inner, *handled]


def _defines_only(node: ast.stmt) -> bool:
    if isinstance(node, ast.If):
        return "__name__" not in ast.unparse(node.test) and all(map(_defines_only, [*node.body, *node.orelse]))
    if isinstance(node, ast.Try):
        handled = [each for handler in node.handlers for each in handler.body]
        return all(map(_defines_only, [*node.body, *handled, *node.orelse, *node.finalbody]))
    if isinstance(node, ast.Assign | ast.AnnAssign):
        made = node.value is None or all(_makes(each) for each in ast.walk(node.value))
        return made and all(isinstance(each, ast.Name | ast.Tuple) for each in _targets(node))
    return isinstance(
        node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Pass
    )


def _targets(node: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]


def _makes(node: ast.AST) -> bool:
    """Whether *node* is no call, or one of those that make a value and do nothing else."""
    if isinstance(node, ast.Await | ast.Yield | ast.NamedExpr):
        return False
    return not isinstance(node, ast.Call) or _called(node) in MAKERS
