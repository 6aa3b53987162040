"""What grows and does not stop: in worker processes, and in Redis.

worker processes ── a sample each tick (workers/bootsteps/leak_sampler.py) ──► Redis: the last SERIES of each process
Beat ─► queue maintenance ─► periodic.check ─┬─ keyspace: a sample of Redis itself
                                             ├─ slope, judge: series -> clean, suspect, leaking (pure)
                                             ├─ blame: growth -> the callables that ran meanwhile (pure)
                                             └─ findings ─► health, `celery -A graft leaks`, recycling
"""
