"""The initializer of a Pool, in worker processes that outlive it and that many pools share."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from graft.tasks.shared.limit import ATTRIBUTE
from graft.tasks.shared.turns import OfArgument

INITIALISED: Final = 256  # Pools whose initializer one process remembers having run.

_initialising = threading.Lock()
_initialised: OrderedDict[str, None] = OrderedDict()


def run_initialised(
    pool_id: str,
    initializer: Callable[..., object],
    initargs: tuple[Any, ...],
    func: Callable[..., Any],
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Call *func* in a process in which *initializer* has run once for this pool."""
    with _initialising:
        if pool_id in _initialised:
            _initialised.move_to_end(pool_id)
        else:
            initializer(*initargs)
            _initialised[pool_id] = None
            if len(_initialised) > INITIALISED:
                _initialised.popitem(last=False)
    return func(*args, **kwargs)


setattr(run_initialised, ATTRIBUTE, OfArgument(3))
