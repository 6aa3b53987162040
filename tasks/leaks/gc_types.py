"""The types of all objects that the garbage collector tracks, counted without disturbing other threads."""

from __future__ import annotations

import gc
from itertools import chain


def types() -> list[type]:
    """The type of each object that the collector tracks.

    ``list`` drives the whole chain in C, so no other thread runs meanwhile. Otherwise another thread could be making a
    tuple from an iterator; while ``gc.get_objects()`` refers to that tuple too, Python raises a SystemError there.
    """
    objects = chain.from_iterable(map(gc.get_objects, (None,)))  # Calls gc.get_objects when it is iterated.
    return list(map(type, objects))
