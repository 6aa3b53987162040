"""What we lean on in Celery, kombu and billiard beyond their public interface is asked for at start, by name."""

from __future__ import annotations

import dis
from types import FunctionType, ModuleType

import celery
import kombu


class UnknownVersionError(RuntimeError):
    """Celery or kombu lacks a private name that the message path leans on."""


def require(owner: type | ModuleType, *names: str) -> None:
    """Refuse to start on a Celery or kombu whose *owner* lacks one of *names*, and does not set it when made."""
    made_by = [vars(base).get("__init__") for base in getattr(owner, "__mro__", ())]
    steps = [step for maker in made_by if isinstance(maker, FunctionType) for step in dis.get_instructions(maker)]
    known = {step.argval for step in steps if step.opname == "STORE_ATTR"}
    missing = [name for name in names if name not in known and not hasattr(owner, name)]
    if missing:
        raise UnknownVersionError(
            f"{owner!r} has no {', '.join(missing)}: celery {celery.__version__} with kombu {kombu.__version__} is not "
            "known to us; install celery==5.7.0 kombu==5.7.0 redis==8.1.0, or teach the module that asks for it the "
            "new version"
        )
