"""How the keys in Redis are called, for those who read and write them and for the rules of who may (acl.py).

A name that ends in ``:`` begins a key of each batch, call, worker and so on.
"""

from __future__ import annotations

from typing import Final

SHARED: Final = "graft:shared:"  # The shared primitives.
