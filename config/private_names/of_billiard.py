"""Of billiard 4.3: what its pool processes ask of the operating system."""

from __future__ import annotations

from typing import Final

from graft.config.private_names import Names

WORKER: Final[Names] = {
    "billiard.pool": (
        # A process is replaced by the memory that it holds now, not by its highest ever (workers/recycling.py).
        *("mem_rss", "MAXMEM_USED_FMT"),
        # How often one that leaves looks whether its last result was read (workers/prefork_patch.py).
        *("GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT", "GUARANTEE_MESSAGE_CONSUMPTION_RETRY_INTERVAL"),
    ),
    # Which process has acknowledged its task (workers/prefork_patch.py).
    "billiard.pool:ApplyResult": ("_write_to", "_accepted"),
    "billiard.process:BaseProcess": ("_is_alive",),
}
