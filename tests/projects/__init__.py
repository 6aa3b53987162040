"""Celery projects of the kinds that people have. Not tests: their processes are started by tests/hardened/."""
