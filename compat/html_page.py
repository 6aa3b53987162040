"""What the HTML pages of this package begin with: each needs no other file, and follows the reader's light or dark."""

from __future__ import annotations

from html import escape
from typing import Final

STYLE: Final = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1f2430; --soft: #5b6472; --faint: #d9dde5; --good: #00694b;
  --bad: #b3261e; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171d; --ink: #e6e9ef; --soft: #a3acba; --faint: #333a46;
  --good: #4cc38a; --bad: #ff8a80; --warn: #ffc35c; } }
body { background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 60rem; padding: 0 1rem; }
h2 { margin: 2rem 0 .3rem; border-bottom: 1px solid var(--faint); font-size: 1.1rem; } p { color: var(--soft); }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid var(--faint); padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; }
code { white-space: pre-wrap; overflow-wrap: anywhere; }
.safe, .cluster { color: var(--good); } .differs { color: var(--bad); } .cannot, .local { color: var(--warn); }
td.figure, th.figure { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
@media (max-width: 40rem) { h1 { font-size: 1.4rem; }
  .calls tr { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 0 .3rem;
    border-bottom: 1px solid var(--faint); font-size: .8rem; }
  .calls tbody { display: block; }
  .calls tr > * { border: 0; padding-right: 0; } .calls tr > :first-child { grid-column: 1 / -1; } }
"""


def head(title: str) -> str:
    """The beginning of a page."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\n"
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
