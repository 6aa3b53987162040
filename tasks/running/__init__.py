"""Inside the pool process: opens an envelope, runs its items, reports their outcomes.

Imports delivery, results and callables, never sending's side of a caller. Celery calls it, through the tasks
``graft.batch`` and ``graft.call``.
"""
