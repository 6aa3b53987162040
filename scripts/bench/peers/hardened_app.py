"""The stock app with every guarantee of ours: what they cost."""

from __future__ import annotations

import graft
from graft.scripts.bench.peers.stock_app import TASKS, app

graft.harden(app)

__all__ = ["TASKS", "app"]
