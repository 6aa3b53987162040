"""The sample tasks of the integration framework: plain functions, and registered under the old module's name."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from graft.config.own_task import own_task
from graft.tasks.base import ReliableTask
from graft.tasks.legacy.migration_poc import now

OLD_MODULE: Final = "celery_integration_framework"


def data_processing(data: Sequence[Any]) -> dict[str, Any]:
    """``processed_count``, ``errors`` (texts) and ``total_items``: an item is in order when JSON can hold it."""
    errors = []
    for index, item in enumerate(data):
        try:
            json.dumps(item)
        except (TypeError, ValueError) as error:
            errors.append(f"item {index}: {error}")
    return {"processed_count": len(data) - len(errors), "errors": errors, "total_items": len(data)}


def report_generation(report_type: str, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``report_type``, ``generated_at``, ``status`` and ``file_path``: a JSON file on the worker's own machine."""
    report = {"report_type": report_type, "generated_at": now(), "status": "completed"}
    prefix = re.sub(r"[^A-Za-z0-9-]+", "_", report_type)[:64]
    with tempfile.NamedTemporaryFile("w", prefix=f"{prefix}_", suffix=".json", delete=False) as file:
        json.dump({**report, "parameters": dict(parameters or {})}, file, default=str)
    return {**report, "file_path": str(Path(file.name))}


for _func in (data_processing, report_generation):
    own_task(f"{OLD_MODULE}.{_func.__name__}", base=ReliableTask)(_func)
