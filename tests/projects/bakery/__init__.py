"""A Django project, laid out as Celery's documentation says, with the line for ``graft.harden``."""

from tests.projects.bakery.celery import app as celery_app

__all__ = ["celery_app"]
