"""Breaks a private deployment on purpose, ours and stock Celery beside it, and counts what was lost."""
