"""How much faster than the ledger's clock this process's clock runs."""

from __future__ import annotations

from .constants import DELAY, SPAN, STEP, UNKNOWN, WINDOW


class Drift:
    """How much faster than the ledger's clock this process's runs: a fast clock forgets too early."""

    anchor: tuple[float, float] | None
    gains: tuple[float | None, float | None]

    def __init__(self) -> None:
        self.anchor = None  # boot time of a call when it was sent, and the ledger's time in its answer
        self.gains = (None, None)  # what the clock gains in a window: in the last span, and in the one before

    def note(self, sent: float, received: float, ledger: float) -> None:
        if self.anchor is None:
            self.anchor = (sent, ledger)
            return
        own, theirs = received - self.anchor[0], ledger - self.anchor[1]
        if own < SPAN and 0 < theirs < 2 * SPAN:
            return
        self.anchor = (sent, ledger)
        rate = own / (theirs - 0.001)  # the ledger's time is cut to milliseconds
        if theirs > SPAN / 2 and abs(rate - 1) < STEP:
            self.gains = (WINDOW * max(0.0, rate - 1), self.gains[0])

    def guard(self) -> float:
        """How long a charge stays in the ring beyond its window, in seconds."""
        last, before = self.gains
        return DELAY + (UNKNOWN if last is None else max(last, before or 0.0))
