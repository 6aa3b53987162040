"""Runs the tests of other people's Celery projects twice, stock and hardened, and compares them test by test.

Imports ``config`` and the private stack; nothing imports it. ``plugin`` is loaded by the projects' own pytest.
"""
