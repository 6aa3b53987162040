"""The framework's two sample tasks, and an app made from a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graft.compat.celery_integration_framework.client import FrameworkTask
from graft.compat.celery_integration_framework.framework import CeleryIntegrationFramework
from graft.tasks.legacy import integration_framework


def create_sample_tasks(framework: CeleryIntegrationFramework) -> dict[str, FrameworkTask]:
    """``data_processing(data)`` and ``report_generation(report_type, parameters)``, by these names.

    As tasks they are called ``<app_name>.data_processing`` and ``<app_name>.report_generation``.
    """
    functions = (integration_framework.data_processing, integration_framework.report_generation)
    return {func.__name__: framework.create_task(func) for func in functions}


def create_celery_app(config: Mapping[str, str] | None = None) -> Any:
    """The Celery app of a framework that has the sample tasks.

    Args:
        config: ``app_name``, ``broker_url`` and ``result_backend``, each optional.

    Raises:
        TypeError: another key.
    """
    framework = CeleryIntegrationFramework(**(config or {}))
    create_sample_tasks(framework)
    return framework.app
