"""``python -m graft.scripts.api_reference``: writes docs/api.md from public docstrings; ``--check`` only compares.

griffe, mkdocstrings' own reader, takes signatures and docstrings from the source; nothing is imported.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import griffe

ROOT: Final = Path(__file__).resolve().parent.parent
PATH: Final = ROOT / "docs" / "api.md"
LINE: Final = 110
HEAD: Final = """# API reference

Generated from docstrings by `python -m graft.scripts.api_reference`. Every name here is imported from `graft`:
`graft.submit`, `graft.Batch` and so on. The facades for old code are in [migration.md](migration.md). Durations are
seconds, sizes bytes.
"""

# Where each name is defined, and the methods that are for callers.
SECTIONS: Final[dict[str, list[tuple[str, tuple[str, ...]]]]] = {
    "Submitting": [
        ("tasks.submit.submit", ()),
        ("tasks.durable.sources.JsonLines", ()),
        ("tasks.durable.sources.Pages", ()),
    ],
    "Results": [
        (
            "tasks.batch.Batch",
            ("collect", "__iter__", "as_completed", "as_completed_async", "progress", "done", "cancel", "detach"),
        ),
        ("tasks.durable_batch.batch", ()),
        (
            "tasks.durable_batch.DurableBatch",
            (
                *("wait", "collect", "__iter__", "pages", "as_completed", "as_completed_async", "errors"),
                *("state", "progress", "done", "pause", "resume", "cancel", "forget"),
            ),
        ),
        ("tasks.durable_batch.BatchSummary", ()),
        ("tasks.envelope.Outcome", ("unwrap",)),
        ("tasks.results.outcomes.Progress", ()),
        ("tasks.results.call_status.status_of", ()),
        ("tasks.local_run.local_letters", ()),
    ],
    "Retry policies": [
        ("tasks.policy.RetryPolicy", ("retries", "wait_after")),
        ("tasks.policy.ExactWaits", ()),
        ("tasks.policy.FailedRun", ()),
    ],
    "Limits": [
        ("tasks.shared.limit.limit", ()),
        ("tasks.shared.circuit_breaker.BreakerRules", ()),
        ("tasks.shared.limit_events.LimitEvent", ()),
        ("tasks.shared.primitive.DifferentLimitsError", ()),
    ],
    "Any Celery app": [
        ("config.harden.harden", ()),
        ("config.harden.undo", ()),
        ("config.harden.HardenError", ()),
        ("config.settings.SettingsError", ()),
        ("tasks.base.ReliableTask", ()),
    ],
    "Executors and pools": [
        ("compat.executor.CeleryExecutor", ("submit", "map", "shutdown")),
        ("compat.futures.BrokenClusterError", ()),
        ("compat.pool.Pool", ("imap", "imap_unordered")),
        ("compat.pool.register_joblib", ()),
    ],
}


def page() -> str:
    """The whole page."""
    package = griffe.load("graft", search_paths=[ROOT], docstring_parser="google", allow_inspection=False)
    lines = [HEAD]
    for title, entries in SECTIONS.items():
        lines.append(f"## {title}\n")
        for name, methods in entries:
            found = package[name]
            lines += _entry(found, "###", "graft.")
            for method in methods:
                lines += _entry(found[method], "####", f"{found.name}.")
    lines += ["## Errors\n", *_errors(package["tasks.errors"], package.exports or [])]
    return "\n".join(lines)


def _entry(found: griffe.Object, level: str, prefix: str) -> Iterator[str]:
    name = {"__iter__": f"for value in {found.parent.name.lower() if found.parent else ''}"}.get(
        found.name, f"{prefix}{found.name}"
    )
    yield f"{level} `{name}`\n"
    if isinstance(found, griffe.Function) and not found.name.startswith("__"):
        yield f"```python\n{_signature(found)}\n```\n"
    elif isinstance(found, griffe.Class) and found.has_labels("dataclass"):
        fields = "\n".join(f"    {_declared(each)}" for each in found.parameters if each.name != "self")
        yield f"```python\nclass {found.name}:\n{fields}\n```\n"
    if found.docstring is None:
        raise LookupError(f"{found.path} is in the API reference and has no docstring")
    for section in found.docstring.parsed:
        yield from _section(section)


def _section(section: griffe.DocstringSection) -> Iterator[str]:
    match section:
        case griffe.DocstringSectionText():
            yield f"{_markdown(section.value)}\n"
        case griffe.DocstringSectionParameters() | griffe.DocstringSectionAttributes():
            yield f"**{section.kind.value.capitalize()}:**\n"
            yield from (f"- **`{each.name}`**: {_line(each.description)}" for each in section.value)
            yield ""
        case griffe.DocstringSectionReturns():
            yield f"**Returns:** {_line(section.value[0].description)}\n"
        case griffe.DocstringSectionRaises():
            yield "**Raises:**\n"
            yield from (f"- `{each.annotation}`: {_line(each.description)}" for each in section.value)
            yield ""
        case _:
            raise LookupError(f"the API reference cannot show a section of {section.kind.value}")


def _signature(function: griffe.Function) -> str:
    """The signature as it is defined, a parameter a line where there are many."""
    words: list[str] = []
    for each in function.parameters:
        if each.kind is griffe.ParameterKind.keyword_only and "*" not in words:
            words.append("*")
        words.append(_declared(each))
    start, end = f"def {function.name}(", f") -> {function.returns}: ..."
    line = f"{start}{', '.join(words)}{end}"
    return line if len(line) <= LINE else "\n    ".join([start, *(f"{word}," for word in words)]) + f"\n{end}"


def _declared(each: griffe.Parameter) -> str:
    annotation = "" if each.annotation is None else f": {each.annotation}"
    # As the formatter, which also looks into Markdown, writes texts.
    default = re.sub(r"^'([^'\"]*)'$", r'"\1"', str(each.default))
    return f"{each.name}{annotation}" + ("" if each.default is None else f" = {default}")


def _errors(module: griffe.Object, exported: list[str | griffe.ExprName]) -> Iterator[str]:
    """A table of the exported errors, each after the error it derives from."""
    yield "| error | is also | when |\n|---|---|---|"
    names = {str(name) for name in exported}
    for error in module.classes.values():
        if error.name in names:
            bases = ", ".join(f"`{base}`" for base in error.bases)
            text = error.docstring.parsed[0].value if error.docstring else ""
            yield f"| `{error.name}` | {bases} | {_line(text)} |"
    yield ""


def _markdown(text: str) -> str:
    """A docstring's marks as Markdown has them: ``code`` and *parameter* become `code` and `parameter`."""
    return re.sub(r"(?<![\w*`])\*(\w+)\*(?![\w*])", r"`\1`", text.replace("``", "`"))


def _line(text: str) -> str:
    return _markdown(" ".join(text.split()))


def main() -> int:
    """Write the page, or with ``--check`` say whether it is up to date."""
    text = page()
    if "--check" in sys.argv[1:]:
        if PATH.exists() and PATH.read_text(encoding="utf-8") == text:
            return 0
        print(f"{PATH.name} is not up to date; run: python -m graft.scripts.api_reference", file=sys.stderr)
        return 1
    PATH.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
