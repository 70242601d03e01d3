"""The two clocks of a process."""

from __future__ import annotations

import time

BOOT: int | None = getattr(time, "CLOCK_BOOTTIME", None)  # Linux has it


class Clock:
    """Boot time runs on while the machine is suspended; the wall clock is the second opinion on a lease."""

    def boot(self) -> float:
        return time.monotonic() if BOOT is None else time.clock_gettime(BOOT)

    def wall(self) -> float:
        return time.time()
