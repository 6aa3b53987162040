"""The pool ``direct``: its processes take their messages from Redis themselves.

May import tasks, config, and other modules of ``workers`` but bootsteps. Celery makes it
where ``GRAFT_POOL=direct`` says so; the bootstep ``direct_taking`` introduces it to the worker's consumer.
"""
