"""Which worker processes the supervisor of this one has: one that was killed says nothing any more."""

from __future__ import annotations

import os
from typing import Any


def siblings(me: int, supervisor: int) -> dict[str, Any]:
    """The supervisor and its children, this process among them; nothing where the kernel does not tell (no
    CONFIG_PROC_CHILDREN, gVisor) or where this process has no supervisor in its container."""
    children: set[int] = set()
    try:
        # Each thread has its own, and any of them may have forked a worker.
        for thread in os.listdir(f"/proc/{supervisor}/task"):
            with open(f"/proc/{supervisor}/task/{thread}/children", encoding="ascii") as file:
                children.update(map(int, file.read().split()))
    except (OSError, ValueError):
        return {}
    if me not in children or len(children) > 1000:
        return {}
    return {"supervisor": supervisor, "workers": sorted(children)}
