"""One limit in one unit: its grant and share, and what a call says of it. No I/O: the time is passed in."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .constants import BUFFER, DAMP, EMPTY, FULL, HOLD, LEAVES_EVERY, MOST_AMOUNT, TOUCH, WINDOW, WORTH
from .counts import Denied
from .governor import Governor
from .ring import Ring
from .shapes import Answer, MaybeNone


def within_reason(amount: int) -> int:
    """The ledger refuses a call with any other: one huge `max_tokens` would cost a TokenBudget its ledger."""
    return max(0, min(amount, MOST_AMOUNT))


class Sent:
    """What a call carried, kept until its answer."""

    __slots__ = ("keep", "want", "least", "spent", "denied", "off", "as_of_ms", "leaves", "boot", "wall")
    keep: int
    want: int
    least: int
    spent: int
    denied: int
    off: int
    as_of_ms: int
    leaves: Sequence[int]
    boot: float
    wall: float

    def __init__(
        self,
        keep: int,
        want: int,
        least: int,
        spent: int,
        denied: int,
        off: int,
        as_of_ms: int,
        leaves: Sequence[int],
        boot: float,
        wall: float,
    ) -> None:
        self.keep, self.want, self.least, self.spent = keep, want, least, spent
        self.denied, self.off, self.as_of_ms, self.leaves = denied, off, as_of_ms, leaves
        self.boot, self.wall = boot, wall

    def args(self) -> list[int]:
        amounts = (self.keep, self.want, self.least, self.spent, self.denied, self.off)
        return [within_reason(amount) for amount in amounts]

    def leaving(self) -> str:
        return " ".join(map(str, (self.as_of_ms, *map(within_reason, self.leaves))))


class Book:
    """One limit in one unit: how much this process may have charged in its window, and what it tells the
    ledger."""

    governor: Governor
    boot: float | None
    wall: float | MaybeNone  # None as long as boot is

    def __init__(self, limit: str, unit: str, budget: int, safe: int, lease: float, started: float) -> None:
        self.limit, self.unit, self.budget, self.safe, self.lease = limit, unit, budget, safe, lease
        self.quiet = started  # when a call may have reached the ledger last, in boot time
        self.ring, self.denied = Ring(), Denied()
        self.grant, self.share, self.pool, self.off = 0, safe, 0, 0
        self.state, self.answered, self.left = "none", False, False
        self.boot = self.wall = None  # when the call that renewed the lease was sent
        self.slack, self.yielded = 1.0, 0.0  # slack: how full the pool is, 0 to 1
        self.asked = self.missed = False  # a call was prepared; the one before it was not answered
        self.pending = 0.0  # what draws are to ask for, beyond the waiting requests
        self.leaves: list[int] = []
        self.as_of_ms, self.leaves_at = 0, started  # as of when, and in boot time when it is looked up again

    def lease_over(self, boot: float, wall: float) -> bool:
        return self.boot is None or boot - self.boot >= self.lease or wall - self.wall >= self.lease

    def advance(self, boot: float, wall: float) -> None:
        """Lets time pass: what has left the window, and a lease that is over."""
        gone = self.ring.advance(boot)
        if gone and self.grant > self.share and self.pressed(boot):  # rule 4
            new = max(self.share, math.floor(self.grant - gone))
            self.yielded += self.grant - new
            self.grant = new
        if self.answered and self.grant > self.off and self.lease_over(boot, wall):
            self.grant = self.off  # for good: the ledger may count on it

    def pressed(self, boot: float) -> bool:
        """Whether others wait for what this process has no use for, and can get it."""
        return self.slack < 0.5 and not self.missed and self.boot is not None and boot - self.boot < TOUCH

    def give_back_at(self, boot: float) -> float | None:
        """When a beat is worth sending early, as enough will have left to be given back; or None."""
        return self.ring.gone_at(max(1.0, self.budget / WORTH)) if self.pressed(boot) else None

    def on_its_own(self, boot: float) -> bool:
        """Never answered, and past the time when anybody else may count on what it will spend (rule 7)."""
        return not self.answered and boot - self.quiet >= self.lease + HOLD

    def allowed(self, boot: float, wall: float) -> int:
        """The most `spent` may be now."""
        if self.left:
            return 0
        if not self.answered:
            return self.safe if self.on_its_own(boot) else 0
        if self.lease_over(boot, wall):
            return min(self.grant, self.off)  # rule 6
        return min(self.grant, self.share) if self.state == "contended" else self.grant  # rule 5

    def fits(self, need: float, boot: float, wall: float) -> bool:
        self.advance(boot, wall)
        return self.ring.spent + need <= self.allowed(boot, wall) + 1e-6

    def room(self, boot: float, wall: float) -> float:
        self.advance(boot, wall)
        return self.allowed(boot, wall) - self.ring.spent

    def retry_after(self, need: float, boot: float, wall: float) -> int:
        """Whole seconds until `need` fits, 1 to 60: when enough has left this process's own window. Until
        then other
        members may give something back, so it can be sooner; what is lent above the share is not counted
        on."""
        limit = self.allowed(boot, wall)
        if self.slack < 0.5 and not self.lease_over(boot, wall):
            limit = min(limit, self.share)
        missing = self.ring.spent + need - limit
        at = self.ring.room_at(need, limit)
        entitled = self.answered and self.state == "ok" and not self.lease_over(boot, wall)
        if missing <= 0:
            wait = 1.0
        elif at is not None:
            wait = at - boot
        elif not self.answered:
            wait = self.quiet + self.lease + HOLD - boot  # then it is on its own
        elif entitled and self.ring.spent + need <= self.share:  # first in line for what others free
            wait = missing / max(1, self.budget) * WINDOW
        else:
            wait = WINDOW
        return max(1, min(60, math.ceil(wait)))

    def prepare(
        self, beat: bool, pending: float, smallest: float, boot: float, wall: float, final: bool = False
    ) -> Sent:
        """What the next call carries; `pending` is what waiting requests need together, `smallest` what one
        does. The grant shrinks here, before the call is sent (rule 2)."""
        self.asked, self.missed = True, self.asked
        self.advance(boot, wall)
        self.denied.advance(boot)
        spent = math.ceil(self.ring.spent - 1e-6)
        keep = max(self.grant, spent)
        want, least = keep, 0
        if final or boot >= self.leaves_at:
            self.leaves = [math.floor(max(0.0, amount)) for amount in self.ring.leaving(boot, final)]
            self.as_of_ms, self.leaves_at = math.floor(wall * 1000), boot + LEAVES_EVERY
        if final:
            keep = want = spent
            self.left = True
        elif not self.answered:
            if self.on_its_own(boot):
                keep = max(keep, self.safe)
            # A fleet whose processes all start must not take its own pool for pressure, and give all back.
            want = max(keep, math.ceil((1 - FULL) * self.safe - 1e-6))
        elif beat and not self.missed:  # what is given up in a call that nobody hears is lent to nobody
            keep, want = self.aim(spent, keep)
        if pending and not final:
            want = max(want, math.ceil(spent + pending - 1e-6))
            least = math.ceil(spent + smallest - 1e-6)
        # What it will come to when no answer ever comes; the ledger knows of it before.
        off = min(keep, self.safe) if self.answered or final else self.safe
        self.grant, self.off = min(self.grant, keep), min(self.off, off)
        self.yielded = self.pending = 0.0
        denied = math.ceil(self.denied.total - 1e-6)
        want = 0 if final else want
        return Sent(keep, want, least, spent, denied, off, self.as_of_ms, self.leaves, boot, wall)

    def aim(self, spent: int, keep: int) -> tuple[int, int]:
        """What a beat keeps and wants. Under pressure what is not used goes back (rule 3)."""
        room = max(0, self.share - spent)
        cap = min(self.share, spent + math.ceil(BUFFER * spent / WINDOW) + self.slack * room)
        want = keep
        if self.grant > cap:
            damp = 1.0 if self.slack < 0.5 else DAMP
            keep = want = max(spent, math.floor(self.grant - damp * (self.grant - cap)))
        else:
            want = max(want, math.ceil(self.grant + DAMP * (cap - self.grant)))
        return keep, want

    def apply(self, sent: Sent, answer: Answer) -> bool:
        """The answer is the grant, also when it is lower; only an answer renews the lease. True if it
        counted."""
        state = answer[0]
        grant, share, pool, budget, safe = (int(float(v)) for v in answer[1:6])
        if state not in ("ok", "contended", "learning"):
            self.state = state if state == "none" else self.state
            return False
        self.state, self.answered, self.asked, self.missed = state, True, False, False
        self.share, self.pool, self.budget, self.safe = share, pool, budget, safe
        self.slack = max(0.0, min(1.0, (pool / budget - EMPTY) / (FULL - EMPTY))) if budget > 0 else 0.0
        if self.slack < 0.5 and grant > share:  # what left the window while the call was under way
            grant = max(share, math.floor(grant - self.yielded))
        self.grant = max(0, grant)
        self.off = max(0, min(sent.off, safe, grant))
        self.wall, self.boot = sent.wall, sent.boot  # read without the lock: boot says that both are there
        return True
