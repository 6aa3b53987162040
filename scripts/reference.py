"""``python -m graft.scripts.reference``: writes docs/configuration.md from the settings; ``--check`` only compares."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic.fields import FieldInfo

from graft.config.queues import QUEUES
from graft.config.settings import Settings, variable

PATH = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
HEAD = """# Configuration

Generated from `config/settings.py` by `python -m graft.scripts.reference`. Everything is read from the environment,
once per process; values that cannot work together are refused at start, each by its variable's name. A variable that
begins with `GRAFT_` and is not known is logged, with the one that was probably meant. Durations are seconds, sizes
bytes.

| variable | default | meaning |
|---|---|---|
"""


def default(field: FieldInfo) -> str:
    value = field.default
    if hasattr(value, "get_secret_value"):
        value = value.get_secret_value()
    if value == "":
        return ""
    return f"`{value:.12g}`" if isinstance(value, float) else f"`{value}`"


def reference() -> str:
    """The whole page."""
    rows = [
        f"| `{variable(name)}` | {default(field)} | {field.description} |\n"
        for name, field in Settings.model_fields.items()
    ]
    queues = [f"| `{queue.name}` | {queue.lane} | {queue.purpose} |\n" for queue in QUEUES]
    return HEAD + "".join(rows) + "\n## Queues\n\n| queue | lane | for |\n|---|---|---|\n" + "".join(queues)


def main() -> int:
    """Write the page, or with ``--check`` say whether it is up to date."""
    if "--check" in sys.argv[1:]:
        if PATH.read_text(encoding="utf-8") == reference():
            return 0
        print(f"{PATH.name} is not up to date; run: python -m graft.scripts.reference", file=sys.stderr)
        return 1
    PATH.write_text(reference(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
