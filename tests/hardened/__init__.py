"""What ``graft.harden(app)`` gives a Celery project, each with stock Celery as the control."""
