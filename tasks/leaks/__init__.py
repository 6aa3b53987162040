"""Finds memory, files, connections and keys that grow and do not stop, in worker processes and in Redis.

Imports monitoring and the rooms below it. Workers write samples; Beat's task judges; health and ``celery -A graft
leaks`` read the findings.

worker processes ── a sample each tick (workers/bootsteps/leak_sampler.py) ──► Redis: the last SERIES of each process
Beat ─► queue maintenance ─► periodic.check ─┬─ keyspace: a sample of Redis itself
                                             ├─ theil_sen, trend: series -> clean, suspect, leaking (pure)
                                             ├─ correlation: growth -> the callables that ran meanwhile (pure)
                                             └─ findings ─► health, `celery -A graft leaks`, recycling
"""
