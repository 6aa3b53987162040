"""The duties of a worker beside running tasks: heartbeats, leases, metrics, pauses, leak samples, pool upkeep.

Each module is a Celery bootstep; imports ``tasks`` and ``config``. ``workers/app.py`` adds them to the worker.
"""
