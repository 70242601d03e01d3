"""What the report counts: refused, by calendar minute, outside."""

from __future__ import annotations

import collections
import math
from typing import Any

from .constants import OUTSIDE_STEPS, RATIOS, REPORT_EVERY, WINDOW


class Denied:
    """What was refused in the last 60 s, each request (Calls.key) once however often it was tried."""

    queue: collections.deque[tuple[float, object]]
    by_id: dict[object, float]

    def __init__(self) -> None:
        self.total, self.queue, self.by_id = 0.0, collections.deque(), {}

    def advance(self, now: float) -> None:
        while self.queue and self.queue[0][0] + WINDOW <= now:
            self.forget(self.queue.popleft()[1])

    def add(self, key: object, amount: float, now: float) -> None:
        self.advance(now)
        if key not in self.by_id:
            self.queue.append((now, key))
            self.by_id[key] = amount
            self.total += amount

    def forget(self, key: object) -> None:
        self.total -= self.by_id.pop(key, 0.0)
        if not self.by_id:
            self.total = 0.0


class ByMinute:
    """Counts of the calendar minute that runs, and of the one before it."""

    def __init__(self, *names: str) -> None:
        self.since: int | None = None  # the first minute is not whole
        self.at: int | None = None
        self.none = dict.fromkeys(names, 0)
        self.now, self.last = self.none.copy(), self.none

    def add(self, minute: int, **counts: int) -> None:
        self.roll(minute)
        for name, count in counts.items():
            self.now[name] += count

    def roll(self, minute: int) -> None:
        if self.at is None:
            self.since = self.at = minute
        elif minute != self.at:
            self.last = self.now if minute == self.at + 1 else self.none
            self.at, self.now = minute, self.none.copy()

    def figures(self, minute: int) -> dict[str, int] | None:
        """Of the last whole minute; None until there is one."""
        self.roll(minute)
        known = self.since is not None and minute - 1 > self.since
        return {"at": minute - 1, **self.last} if known else None


class Tally:
    """What became of the calls of one limit: for the report, nothing is decided by it."""

    def __init__(self) -> None:
        self.ratios: collections.deque[float] = collections.deque(maxlen=RATIOS)  # reserved / used
        self.counts = ByMinute("tokens", "requests", "waited")

    def figures(self, minute: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.ratios:
            ratios, most = sorted(self.ratios), len(self.ratios) - 1
            p50, p99 = (round(100 * ratios[math.ceil(part * most)]) for part in (0.5, 0.99))
            found["reserved"] = {"calls": len(ratios), "p50": p50, "p99": p99}
        counts = self.counts.figures(minute)
        if counts:
            found["minute"] = counts
        return found


class Outside:
    """What this process sent to a provider without asking the router, in the last five minutes."""

    def __init__(self) -> None:
        self.steps: collections.deque[tuple[int, str, int, int]] = collections.deque(maxlen=10_000)

    def add(self, kind: str, now: float, requests: int = 0, tokens: int = 0) -> None:
        step = int(now / REPORT_EVERY)
        if self.steps and self.steps[-1][:2] == (step, kind):
            _, _, r, t = self.steps.pop()
            requests, tokens = requests + r, tokens + t
        self.steps.append((step, kind, requests, tokens))

    def figures(self, now: float) -> list[dict[str, Any]]:
        while self.steps and self.steps[0][0] <= int(now / REPORT_EVERY) - OUTSIDE_STEPS:
            self.steps.popleft()
        found: dict[str, list[int]] = {}
        for _, kind, requests, tokens in self.steps:
            row = found.setdefault(kind, [0, 0])
            row[0], row[1] = row[0] + requests, row[1] + tokens
        return [{"kind": kind, "requests": r, "tokens": t} for kind, (r, t) in sorted(found.items())]
