"""The process that runs tasks: Celery's consumer and pools, hardened, and the bootsteps beside them.

Imports ``tasks`` and ``config``, never ``compat``. ``celery -A graft worker`` starts it.
"""
