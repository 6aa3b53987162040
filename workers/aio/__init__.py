"""The parts of the io lane's pool: one event loop that runs thousands of tasks, with Celery's own tracer.

Imports ``tasks`` and ``config``. ``workers/aio_pool.py`` puts them together.
"""
