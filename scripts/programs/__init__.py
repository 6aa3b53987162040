"""Real programs, unchanged, run plainly and with ``--pools``, and compared byte for byte (docs/unchanged-programs.md).

    python -m graft.scripts.programs            all of them: makes an environment with pinned versions, and a stack
    python -m graft.scripts.programs --quick    the third that CI runs

Imports the stack; the programs run in processes of their own.
"""
