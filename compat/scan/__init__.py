"""Reads a source tree, without running any of it, and says which of its pools and executors can move to workers.

Stands beside the facades and imports none of them: from ``tasks`` it has the rules of placement, which it applies to
compiled code. Only ``python -m graft.compat scan`` uses it.

    files.py      which files, and those that cannot be read
    scopes.py     one file: its scopes, the names that they bind, its calls
    names.py      what a name stands for, across files
    values.py     what an expression is worth: fixed, state, one that cannot travel, large
    kinds.py      the pools and methods that are known
    coroutines.py coroutines that are awaited together
    calls.py      the calls that give work away, each with its verdict
    callables.py  what stands in the way of one callable
    obstacles.py  the rules by name
    report.py     the table, the JSON, the exit code
"""
