"""``python -m graft harden -- celery -A shop worker``: runs a command with its Celery app hardened, without an edit."""

from __future__ import annotations

import sys

from graft.scripts.harden_command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
