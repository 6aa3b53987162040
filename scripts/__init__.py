"""Programs for people: the sub-commands of ``celery -A graft``, the private stack, demo, gate, benchmark and drill.

May import every other room; nothing imports it but ``graft/celery.py``, for the command line.
"""
