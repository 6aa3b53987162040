"""What is shown of a comparison: a table for people, a page for the documentation, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any, Final

from rich.table import Table

from graft.config.words import several
from graft.scripts.ecosystem.outcomes import Comparison
from graft.scripts.ecosystem.projects import PROJECTS
from graft.scripts.ecosystem.runs import Row

HEADS: Final = ("project", "version", "tests", "passed stock", "passed hardened", "lost", "gained")
PAGE: Final = """\
# Other projects' tests, hardened

`graft.harden(app)` promises to change nothing that an app relies on. Here that is put to the test: the test suites of
public projects that build on Celery run twice on a private Redis. The first run is stock Celery; in the second, every
Celery app that the tests make is hardened. Both use celery {celery}, kombu {kombu} and redis-py {redis}.

{table}

*Lost* is what matters: tests that pass in stock Celery and not hardened. *Gained* are those that pass hardened alone.

{notes}

To repeat it (a package index must be reachable; the whole takes about {minutes} minutes on two cores):

```sh
python -m graft.scripts.ecosystem
```

`--only NAME` runs one project, `--list` names them, `--everything` runs all of Celery's own integration suite,
`--quick` forty of its tests of tasks and canvas, as CI does.
`--markdown docs/ecosystem.md` writes this page.
"""


def as_table(rows: Sequence[Row]) -> Table:
    table = Table(title="Tests of other projects, as stock Celery and hardened", title_justify="left")
    for head in HEADS:
        table.add_column(head, justify="left" if head in HEADS[:2] else "right")
    for row in rows:
        table.add_row(*cells(row))
    return table


def cells(row: Row) -> tuple[str, ...]:
    compared = row.compared
    counts = (compared.tests, compared.passed_stock, compared.passed_hardened, len(row.lost), len(compared.gained))
    return (row.project.name, row.project.version, *map(str, counts))


def notes(rows: Iterable[Row]) -> list[str]:
    """What a reader of the table has to know."""
    found = []
    for row in rows:
        said = [row.project.note] if row.project.note else []
        made = several(row.apps["made"], "app")
        said += [f"of the {made} that the tests make, {row.apps['on_redis']} got as far as the broker"]
        said += [
            f"{test} is not counted: {why}" for test, why in row.project.excused.items() if test in row.compared.lost
        ]
        said += [f"{test} passed only when it ran again" for test in row.unsteady]
        said += [f"{test} is lost" for test in row.lost]
        said += [f"{test} is gained" for test in row.compared.gained]
        found.append(f"{row.project.name}: {'; '.join(said)}.")
    return found


def as_page(rows: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(HEADS) + " |", "|---|---|" + "---:|" * (len(HEADS) - 2)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    minutes = sum(sum(row.seconds.values()) for row in rows) / 60 + len(rows)  # An environment takes about a minute.
    return PAGE.format(
        table="\n".join(lines), notes="\n".join(f"- {note}" for note in notes(rows)), minutes=f"{minutes:.0f}",
        **{name: version(name) for name in ("celery", "kombu", "redis")},
    )  # fmt: skip


def as_json(rows: Sequence[Row]) -> str:
    found: list[dict[str, Any]] = [
        {
            **dict(zip(HEADS[:2], cells(row), strict=False)),
            "stock": row.compared.stock,
            "hardened": row.compared.hardened,
            "lost": row.lost,
            "gained": row.compared.gained,
            "unsteady": row.unsteady,
            "apps": row.apps,
            "seconds": row.seconds,
        }
        for row in rows
    ]
    return json.dumps(found, indent=2) + "\n"


def from_json(text: str) -> list[Row]:
    """The rows that :func:`as_json` wrote; KeyError where it had a project at another version than ours."""
    known = {(project.name, project.version): project for project in PROJECTS}
    return [
        Row(
            known[one["project"], one["version"]],
            Comparison(one["stock"], one["hardened"]),
            tuple(one["unsteady"]),
            one["apps"],
            one["seconds"],
        )
        for one in json.loads(text)
    ]
