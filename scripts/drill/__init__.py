"""``celery -A graft drill``: breaks a private deployment on purpose, ours and then stock Celery, and counts losses.

Imports every other room. Nothing imports it but its command.
"""
