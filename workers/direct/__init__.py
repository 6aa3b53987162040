"""The pool ``direct``: its processes take their messages from Redis themselves.

May import tasks, config, and other modules of ``workers`` but bootsteps. It takes prefork's
place, but for ``GRAFT_POOL=prefork``; the bootstep ``direct_taking`` introduces it to the worker's consumer.
"""
