"""What binds a pool to this machine although its processes could be described: seen before any of them is made."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import import_module
from operator import attrgetter
from typing import Any, Final

from graft.compat import worker_admin
from graft.compat.guests.staying import StaysHomeError
from graft.config.queues import table

# What processes of pools run; forked ones run it as the program has changed it.
RUN_BY_PROCESSES: Final = {
    "{package}.process": ("BaseProcess._bootstrap", "BaseProcess.run"),
    "{package}.pool": ("worker", "mapstar", "starmapstar"),
    "concurrent.futures.process": ("_process_worker", "_process_chunk"),
}


def refuse_patched(package: str) -> None:
    """Refuse where the program has replaced what a forked process of *package* runs.

    Raises:
        StaysHomeError: it has.
    """
    for home, names in RUN_BY_PROCESSES.items():
        module = import_module(home.format(package=package))
        for name in names:
            function = attrgetter(name)(module)
            code = getattr(function, "__code__", None)
            if code is None or code.co_name != name.rpartition(".")[2] or function.__module__ != module.__name__:
                raise StaysHomeError(
                    f"{module.__name__}.{name} has been replaced, which forked processes would inherit; "
                    "replace it where a fresh process does it too, and use the start method spawn"
                )


def refuse_manager(package: str) -> None:
    """Refuse where calls may use a manager of the program, and a worker is on a machine that does not reach it.

    Raises:
        StaysHomeError: it is so.
    """
    address = next(filter(_is_local, _manager_addresses(package)), None)
    if address is None:
        return
    elsewhere = sorted(worker_admin.hosts(table().batch) - {os.uname().nodename})
    if elsewhere:
        raise StaysHomeError(
            f"the program has a manager at {address}, whose proxies reach no other machine, and a worker of the queue "
            f"{table().batch} runs on {elsewhere[0]}; give the manager an address of the network, or keep all workers "
            "on this machine"
        )


def _manager_addresses(package: str) -> Iterator[Any]:
    """Where the managers are that this process has started, or has proxies of."""
    managers: Any = sys.modules.get(f"{package}.managers")
    if managers is None:
        return
    yield from list(managers.BaseProxy._address_to_local)
    for finalizer in list(import_module(f"{package}.util")._finalizer_registry.values()):
        if getattr(finalizer, "_callback", None) is managers.BaseManager._finalize_manager:
            yield finalizer._args[1]


def _is_local(address: Any) -> bool:
    """Whether *address* is a socket in the file system, or one of this machine alone."""
    return not isinstance(address, tuple) or str(address[0]).startswith(("127.", "localhost", "::1"))
