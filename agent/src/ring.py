"""What was charged in the last 60 s. No I/O: the time is passed in."""

from __future__ import annotations

import collections
import math

from .constants import DELAY, LEAVE_STEP, LEAVE_STEPS, MARGIN, SLOT, TURNS, UNKNOWN, WINDOW


class Slot:
    """What was sent in one slot of time, or may have left as late as that."""

    __slots__ = ("index", "amount", "settled", "gone", "turns")
    index: int
    amount: float
    settled: float  # of charges that are: it can neither be sent again nor cost less
    gone: bool
    turns: int  # of the event loop, that took long, since it was stamped

    def __init__(self, index: int) -> None:
        self.index, self.amount, self.settled, self.gone, self.turns = index, 0.0, 0.0, False, 0


class Charge:
    """One amount of one attempt in one ring. Unsent (slot None) until stamped; closed when settled or given
    back."""

    __slots__ = ("amount", "slot", "closed")
    amount: float
    slot: Slot | None
    closed: bool

    def __init__(self, amount: float) -> None:
        self.amount, self.slot, self.closed = amount, None, False


class Ring:
    """What was charged in the last 60 s: unsent charges, and slots by the time they were sent."""

    def __init__(self, guard: float = DELAY + UNKNOWN) -> None:
        self.guard, self.unsent, self.sent = guard, 0.0, 0.0
        self.slots: collections.deque[Slot] = collections.deque()

    @property
    def spent(self) -> float:
        return self.unsent + self.sent

    def leaves(self, slot: Slot) -> float:
        return (slot.index + 1) * SLOT + WINDOW + self.guard

    def advance(self, now: float) -> float:
        """Forgets what was sent long enough ago; returns how much that was."""
        slots, gone = self.slots, 0.0
        while slots and self.leaves(slots[0]) <= now:
            slot = slots.popleft()
            slot.gone = True
            gone += slot.amount
        if gone or not slots:
            self.sent = self.sent - gone if slots else 0.0
        return gone

    def charge(self, amount: float) -> Charge:
        self.unsent += amount
        return Charge(amount)

    def _slot(self, now: float) -> Slot:
        index = math.floor(now / SLOT)
        if self.slots:
            last = self.slots[-1]
            if last.index >= index:
                if not last.turns:
                    return last
                index = last.index  # a clock that went back counts as now: later is safe
        self.slots.append(Slot(index))
        return self.slots[-1]

    def stamp(self, charge: Charge, now: float) -> None:
        """The charge leaves now. A second stamp (the same attempt, sent again by the client library) moves it
        later."""
        if charge.slot is None:
            if charge.closed:
                return
            self.unsent -= charge.amount
            self.sent += charge.amount
        else:
            old = charge.slot
            if old.gone:
                self.sent += charge.amount
            else:
                old.amount -= charge.amount
                old.settled -= charge.amount if charge.closed else 0.0
        charge.slot = self._slot(now)
        charge.slot.amount += charge.amount
        charge.slot.settled += charge.amount if charge.closed else 0.0

    def settle(self, charge: Charge, actual: float, now: float) -> None:
        """The actual amount is known. Down only in the slot it was charged in, while that is in the ring; up
        at once."""
        if charge.closed:
            return
        charge.closed = True
        delta = max(0, actual) - charge.amount
        if charge.slot is None:
            self.unsent += delta
            charge.amount += delta
            charge.closed = False
            self.stamp(charge, now)
            charge.closed = True
            if charge.slot is not None:
                charge.slot.settled += charge.amount
            return
        slot, settled = charge.slot, charge.amount + delta
        if slot.gone:
            if delta <= 0:
                return
            slot, settled = self._slot(now), delta
            charge.slot = slot
        slot.amount += delta
        slot.settled += settled
        self.sent += delta
        charge.amount += delta

    def give_back(self, charge: Charge) -> None:
        """The attempt provably never counted at the provider."""
        if charge.closed:
            return
        charge.closed = True
        if charge.slot is None:
            self.unsent -= charge.amount
        else:
            slot = charge.slot
            if slot.gone:
                return
            slot.amount -= charge.amount
            self.sent -= charge.amount
        charge.amount = 0.0

    def stall(self, start: float, end: float, turn: bool = True) -> None:
        """Nothing ran from start to end: what was stamped since then may leave as late as end. `turn`: end is
        the next turn of the event loop; a request has left after TURNS of them, however slow they are."""
        first, last = math.floor(start / SLOT), math.floor(end / SLOT)
        for slot in reversed(self.slots):
            if slot.index < first or slot.turns >= TURNS:
                break
            slot.index = max(slot.index, last)
            slot.turns += turn

    def may_stall(self, now: float) -> bool:
        """Whether an event loop that stands still could hold back something of it."""
        return bool(self.slots) and (self.slots[-1].index + 1) * SLOT + MARGIN >= now

    def gone_at(self, amount: float) -> float | None:
        """When so much will have left; None if there is less."""
        gone = 0.0
        for slot in self.slots:
            gone += slot.amount
            if gone >= amount:
                return self.leaves(slot)
        return None

    def leaving(self, now: float, everything: bool) -> list[float]:
        """How much of it leaves in each step from now on; what is unsent or leaves later is not in it.
        `everything`: no request is running any more. Otherwise only what is settled counts."""
        steps = [0.0] * LEAVE_STEPS
        for slot in self.slots:
            step = max(0, int((self.leaves(slot) - now) / LEAVE_STEP))
            if step < LEAVE_STEPS:
                steps[step] += slot.amount if everything else slot.settled
        return steps

    def room_at(self, need: float, limit: float) -> float | None:
        """When `need` more will fit under `limit` as sent slots leave; None if not in this window."""
        missing = self.spent + need - limit
        for slot in self.slots:
            missing -= slot.amount
            if missing <= 0:
                return self.leaves(slot)
        return None
