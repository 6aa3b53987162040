"""A package with ``celery -A tests.projects.shop``, as Celery's own documentation lays one out."""

from tests.projects.shop.celery import app as celery_app

__all__ = ["celery_app"]
