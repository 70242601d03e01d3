"""TokenBudget agent: one file, loaded into every LiteLLM worker process by LITELLM_WORKER_STARTUP_HOOKS.

It holds the process's part of a fleet-wide provider quota (a *grant*, lent by the ledger in Redis) and admits
a request only while what was charged in the last 60 s stays at or under it. Admission is local; a thread
talks to Redis.

  Core     Ring      what was charged when, in slots of 50 ms; forgets them 60 s + slot + guard later
           Book      one (limit, unit): grant, share, lease, give-back rules of docs/architecture.md
           Governor  one TokenBudget: its policy and books
  Agent    all TokenBudgets of the process: admission over several books, reservations, refusals, estimates
  Ledger   thread: beats, draws, the final call (contract: docs/protocol.md), policy file, back-off
  Adapter  the one place that touches LiteLLM's private attributes: router, model_list, callbacks, shutdown
  Hooks    the CustomLogger: filter, check, deployment hook, pre_api_call (stamp), success / failure

Amounts are tokens or requests (spent rounded up, grants down); times are seconds unless a name ends in Ms;
the clock is CLOCK_BOOTTIME, so that a suspended machine counts. Nothing here may fail a request: a fault lets
it through LiteLLM's own path, is named in the report's `problems`, and is logged once a minute. No files are
written.
"""

from __future__ import annotations

import asyncio
import atexit
import bisect
import collections
import contextvars
import functools
import hashlib
import json
import logging
import math
import os
import re
import ssl
import sys
import threading
import time
import urllib.parse
import uuid
import weakref
from typing import TYPE_CHECKING

import redis
from litellm.integrations.custom_logger import CustomLogger

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    MaybeNone = Any  # None only at times when nobody asks
    Deployment = dict[str, Any]  # an entry of Router.model_list
    Data = dict[str, Any]  # what a client sent, or what LiteLLM made of it
    Body = tuple[float, Data, str]  # when it came to the proxy's door, what the client sent, call type
    Policy = dict[str, Any]  # the JSON of docs/protocol.md
    Answer = list[Any]  # of the ledger for one book: state, grant, share, pool, budget, safe
    Node = tuple[str, int]
    Needs = list["tuple[Book, float]"]
    Row = list[dict[str, Any]]  # deployment, original {tpm, rpm}, last written {tpm, rpm}

AGENT_VERSION = "0.1.0"
# src/ledger/scripts/call.lua, put here by the operator when it makes the ConfigMap.
CALL_SCRIPT = r"""@CALL_LUA@"""

log = logging.getLogger("tokenbudget")


def digest() -> str:
    """Of this file, as it is in the annotation of its ConfigMap: the first 12 digits."""
    try:
        with open(__file__, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()[:12]
    except OSError:
        return "unread"


AGENT = AGENT_VERSION + "+" + digest()

WINDOW = 60.0  # what a provider's "per minute" is taken to be: any 60 s
SLOT = 0.05  # resolution of the ring
DELAY = 0.35  # what the time from stamp to the provider may differ by; longer stalls are measured
UNKNOWN = 0.6  # what the clock may gain in a window while nothing is known of it (1 %)
SPAN = 60.0  # the clock is measured over this, by the ledger's
STEP = 0.03  # a clock that differs by more was not drifting: one of the two was set
STALL = 0.1  # an event loop whose turn took longer may have held requests back after their stamp
MARGIN = 0.2  # a request stamped this long before a stall may still have been on its way out
TURN = 0.05  # how often the light loop looks
REFRESH = 1.0  # how often it looks over shares and leases, and at all while no request is on its way out
TURNS = 16  # at most, of the event loop, from the stamp until a request has left (new connection, TLS)
DAMP = 1 / 3  # part of the way that a grant moves per beat; all of it under pressure
BUFFER = 0.05  # seconds of its own rate that a member keeps beyond what it spent
EMPTY = 0.04  # part of the budget in the pool that counts as nothing: the most pressure (slack 0)
FULL = 0.2  # and as enough: none (slack 1)
WORTH = 5000  # under pressure a beat is sent as soon as this part of the budget has left the window
BEAT_GAP = 0.1  # least time between two beats
TOUCH = 4.0  # a ledger that has not answered for so long is out of touch: nobody can take what is given up
LEAVE_STEP = 2.0  # a call says how much leaves the window in each of the next steps
LEAVE_STEPS = 30  # together a window
LEAVES_EVERY = 1.0  # that is looked up so often
DRAW_GAP = 0.05  # least time between two calls of one TokenBudget
UNSENT_BOUND = 120.0  # a reservation without a stamp is taken as sent after this long
ATTEMPT_BOUND = 900.0  # and forgotten (what it charged stays) after this long
BODY_BOUND = 30.0  # what a client sent is kept so long between the proxy's door and the router
STALE_CHECK = 1.0  # a reservation older than this when it is about to leave is admitted again
LATE_WAIT = 5.0  # how long that may wait
HOLD = 65.0  # how long the ledger holds a record beyond its lease: a window, and some
REPORT_EVERY = 10.0  # its figures are made anew then
RATIOS = 256  # calls of which the report says what was reserved beside what they used
OUTSIDE_STEPS = 30  # of REPORT_EVERY, for which the report says what went past the router
NAMED_DEPLOYMENTS = 20  # at most, of a limit, in the report
READ_TIMEOUT = 0.8
CONNECT_TIMEOUT = 1.0
BACKOFF_MAX = 2.0
MOST_HOPS = 3  # nodes of a cluster that are asked in one call
MOST_AMOUNT = 10**12  # in a call (MOST in the ledger's common.lua)
SENTINEL_PORT = 26379
URL_FAULT = "the Redis URL cannot be used: %s"
NO_PARSE = (
    "it does not parse: it has to name a host, the port has to be a number, and special characters of user "
    "and password have to be percent-encoded (%2F for /, %23 for #, %3F for ?, %40 for @)"
)
LIFTED = 10**12  # "no limit" to LiteLLM's own calendar-minute check, for a request that the agent governs
UNKNOWN_OUTPUT = 1000  # tokens of output before anything is known of a model
IMAGE_TOKENS = (
    1100  # OpenAI: up to 1105 for a high-detail image; Anthropic: width x height / 750, about 1600 at most
)
MESSAGE_TOKENS = 4  # OpenAI's chat format: 3 for a message, 1 for a name


BOOT: int | None = getattr(time, "CLOCK_BOOTTIME", None)  # Linux has it


class Clock:
    """Boot time runs on while the machine is suspended; the wall clock is the second opinion on a lease."""

    def boot(self) -> float:
        return time.monotonic() if BOOT is None else time.clock_gettime(BOOT)

    def wall(self) -> float:
        return time.time()


# ---------------------------------------------------------------- core: no I/O, the time is passed in


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


class Denied:
    """What was refused in the last 60 s, each request once however often it was tried."""

    queue: collections.deque[tuple[float, str]]
    by_id: dict[str, float]

    def __init__(self) -> None:
        self.total, self.queue, self.by_id = 0.0, collections.deque(), {}

    def advance(self, now: float) -> None:
        while self.queue and self.queue[0][0] + WINDOW <= now:
            self.forget(self.queue.popleft()[1])

    def add(self, key: str, amount: float, now: float) -> None:
        self.advance(now)
        if key not in self.by_id:
            self.queue.append((now, key))
            self.by_id[key] = amount
            self.total += amount

    def forget(self, key: str) -> None:
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
        if missing <= 0:
            wait = 1.0
        elif at is not None:
            wait = at - boot
        elif (
            self.ring.spent + need <= self.share
        ):  # entitled to more than is lent: first in line for what others free
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


class Governor:
    """One TokenBudget: its policy and its books."""

    uid: str
    policy: Policy
    name: str
    mode: str
    reserve: str
    max_wait: float
    lease: float
    beat: float
    limits: list[dict[str, Any]]
    books: dict[tuple[str, str], Book]
    tallies: dict[str, Tally]  # by limit
    figures: dict[str, Any]
    last_good: float | None
    last_report: str | None

    def __init__(self, policy: Policy, now: float) -> None:
        self.uid, self.started, self.books = policy["uid"], now, {}
        self.tallies, self.figures = {}, {}
        self.last_call, self.next_beat, self.last_good = -1e9, 0.0, None
        self.last_report, self.report_at = None, -1e9
        self.calls = ByMinute("beats", "draws")  # of the ledger
        self.policy = {}
        self.update(policy, now)

    def update(self, policy: Policy, now: float) -> None:
        """Takes a new policy; books that stay keep what they hold, and of new ones nothing is known before
        now."""
        self.policy = policy
        self.name = policy.get("tokenBudget", self.uid)
        self.mode = policy.get("mode", "Enforce")
        self.reserve = policy.get("reserve", "MaxTokens")
        self.max_wait = policy.get("maxWaitMs", 250) / 1000
        self.lease = policy.get("leaseMs", 30000) / 1000
        self.beat = max(0.1, policy.get("beatMs", 500) / 1000)
        self.open_on_loss = policy.get("onLedgerLoss") == "Open"
        self.limits = policy.get("limits") or []
        books = {}
        for limit in self.limits:
            name = limit["name"]
            for unit in ("tokens", "requests"):
                given = limit.get(unit)
                if not given:
                    continue
                key = (name, unit)
                book = self.books.get(key)
                if book is None:
                    book = Book(limit["name"], unit, given["budget"], given.get("safe", 0), self.lease, now)
                    book.governor = self
                book.lease, book.budget, book.safe = self.lease, given["budget"], given.get("safe", 0)
                books[key] = book
        if all(book.boot is None for book in books.values()):
            self.started = now
        self.books = books
        self.tallies = {
            name: tally for name, tally in self.tallies.items() if any(n == name for n, _ in books)
        }

    def tally(self, limit: str) -> Tally:
        found = self.tallies.get(limit)
        if found is None:
            found = self.tallies[limit] = Tally()
        return found

    def key(self, rest: str) -> str:
        return "tokenbudget:{%s}:%s" % (self.uid, rest)

    def book_keys(self) -> list[str]:
        return [self.key("book:%s:%s" % key) for key in self.books]

    def time_to_beat(self, boot: float) -> float:
        """Under pressure what leaves the window goes back at once, if it is worth it."""
        times = [book.give_back_at(boot) for book in self.books.values()]
        sooner = min((at for at in times if at is not None), default=math.inf)
        return min(self.beat, max(BEAT_GAP, sooner - boot))

    def lost(self, boot: float, wall: float) -> bool:
        """The ledger has not answered for a lease."""
        if not self.books:
            return False
        if all(book.boot is None for book in self.books.values()):  # nothing was lent: no lease to wait for
            return boot - self.started >= (min(TOUCH, self.lease) if self.open_on_loss else self.lease)
        return any(book.lease_over(boot, wall) for book in self.books.values() if book.boot is not None)

    def acting(self, boot: float, wall: float) -> str:
        """enforce, observe, or open (nothing is refused: LiteLLM's own limit holds)."""
        if self.mode == "Observe":
            return "observe"
        return "open" if self.open_on_loss and self.lost(boot, wall) else "enforce"


# ---------------------------------------------------------------- estimates


def size_of(value: object) -> tuple[int, int]:
    """Characters of text, and images, in a message, a prompt, a tool definition."""
    values: Iterable[object]
    if isinstance(value, str):
        return len(value), 0
    if isinstance(value, dict):
        kind = value.get("type")
        if kind in ("image_url", "image", "input_image", "input_audio", "file", "document", "input_file"):
            return 0, 1
        values = value.values()
    elif isinstance(value, (list, tuple)):
        if value and isinstance(value[0], int):  # token ids
            return 4 * len(value), 0
        values = value
    else:
        return (0 if value is None else 4), 0
    chars = images = 0
    for item in values:
        if isinstance(item, str):  # most are
            chars += len(item)
            continue
        c, i = size_of(item)
        chars, images = chars + c, images + i
    return chars, images


class Recent:
    """The last 64 values: their mean, and what 95 of 100 do not exceed. Kept in order and summed up, as each
    request adds one."""

    def __init__(self) -> None:
        self.values: collections.deque[float] = collections.deque()
        self.ordered: list[float] = []
        self.sum = 0.0

    def __len__(self) -> int:
        return len(self.values)

    def add(self, value: float) -> None:
        if len(self.values) == 64:
            oldest = self.values.popleft()
            del self.ordered[bisect.bisect_left(self.ordered, oldest)]
            self.sum -= oldest
        self.values.append(value)
        self.sum += value
        bisect.insort(self.ordered, value)

    def high(self) -> float:
        return self.ordered[int(0.95 * (len(self.ordered) - 1) + 0.5)]

    def mean(self) -> float:
        return self.sum / len(self.values)


class Learned:
    """What a model's answers taught: tokens per character (95th percentile), output tokens (95th percentile,
    mean)."""

    output_high: int | None
    output_mean: float | None

    def __init__(self) -> None:
        self.ratios, self.outputs = Recent(), Recent()
        self.ratio, self.output_high, self.output_mean = 1 / 3, None, None

    def learn(self, chars: int, overhead: int, prompt: int, output: int) -> None:
        # More than four tokens for a character: not for the text that was sent (previous_response_id, a PDF).
        if chars >= 20 and 0 < prompt <= overhead + 4 * chars:
            self.ratios.add(max(0.05, (prompt - overhead) / chars))
            high = self.ratios.high()
            self.ratio = high if len(self.ratios) >= 16 else max(1 / 3, high)
        if output:
            self.outputs.add(output)
            self.output_high, self.output_mean = int(self.outputs.high()), self.outputs.mean()


# What counts of a request's body.
CONTENT = ("messages", "input", "prompt")  # the first of these
WORDS = frozenset(("tools", "functions", "system", "instructions", "response_format"))  # and all of these
OUTPUTS = ("max_tokens", "max_completion_tokens", "max_output_tokens")  # the largest
TIMES = frozenset(("n", "best_of"))
ASKED = (*CONTENT, *WORDS, *OUTPUTS, *TIMES)
NO_OUTPUT = ("embedding", "rerank", "moderation", "transcription", "speech", "image", "ocr", "search")


@functools.lru_cache(maxsize=256)
def has_no_output(call_type: str) -> bool:
    """Whether calls of this type answer with no tokens."""
    return any(word in call_type for word in NO_OUTPUT)


class Called:
    """A request as LiteLLM knows it, in all its attempts. The client may choose the call id
    (x-litellm-call-id), the same for two requests: LiteLLM's own object of the call tells them apart."""

    __slots__ = ("call_id", "call", "body")
    call_id: str
    call: weakref.ref[Any] | None
    body: Body | None  # what the client sent, if it came through the proxy's door

    def __init__(self, call_id: str, call: weakref.ref[Any] | None = None, body: Body | None = None) -> None:
        self.call_id, self.call, self.body = call_id, call, body


class Request:
    """What the estimates need to know of one request."""

    __slots__ = (
        "call_id",
        "called",
        "chars",
        "images",
        "messages",
        "output",
        "n",
        "no_output",
        "deadline",
        "attempt",
        "parent",
        "needs",
    )
    call_id: str
    called: Called
    chars: int
    images: int
    messages: int
    output: float | None
    n: int
    no_output: bool
    deadline: float | None
    attempt: Attempt | None
    parent: Request | None
    needs: dict[str, Needs]  # by the ids of the deployments that it may go to

    def __init__(self, called: Called, data: Data, messages: object) -> None:
        self.call_id, self.called = called.call_id, called
        _, sent, call_type = called.body or (None, {}, "")
        given = {}
        for name in ASKED:  # what the router was given, else what the client sent
            value = data.get(name)
            if value is None:
                value = sent.get(name)
            if value is not None:
                given[name] = value
        content = messages
        for name in CONTENT:
            content = content if content is not None else given.get(name)
        self.chars, self.images = size_of(content)
        self.messages = len(content) if isinstance(content, list) else 1
        self.output, self.n = None, 1
        for name, value in given.items():
            if name in OUTPUTS:
                if isinstance(value, (int, float)) and value > (self.output or 0):
                    self.output = min(value, LIFTED)  # JSON's 1e400 is infinite
            elif name in TIMES:
                if isinstance(value, int) and value > self.n:
                    self.n = min(value, LIFTED)
            elif name in WORDS and value:
                chars, images = size_of(value)
                self.chars, self.images = self.chars + chars, self.images + images
        self.no_output = has_no_output(call_type)
        self.deadline = self.attempt = self.parent = None
        self.needs = {}

    @property
    def overhead(self) -> int:
        return 3 + MESSAGE_TOKENS * self.messages + IMAGE_TOKENS * self.images


class Attempt:
    """One try of one request on one deployment: its charges, and how far it came."""

    __slots__ = (
        "call_id",
        "deployment",
        "model",
        "chars",
        "overhead",
        "n",
        "charges",
        "reserved",
        "hooked",
        "stamped",
        "ended",
        "kind",
        "call",
    )
    call_id: str
    deployment: str
    model: str
    chars: int
    overhead: int
    n: int
    charges: list[tuple[Book, Charge]]
    reserved: float
    hooked: bool
    stamped: bool
    ended: bool
    kind: str | None
    call: weakref.ref[Any] | None  # LiteLLM's own object of this call: when it is gone, no event will come

    def __init__(
        self, request: Request, deployment: str, model: str, charges: list[tuple[Book, Charge]], now: float
    ) -> None:
        self.call_id, self.deployment, self.model = request.call_id, deployment, model
        # Not the request itself: the two would hold each other until Python's collector runs.
        self.chars, self.overhead, self.n = request.chars, request.overhead, request.n
        self.charges, self.reserved = charges, now
        self.hooked = self.stamped = self.ended = False
        self.kind, self.call = None, request.called.call

    def is_of(self, data: Mapping[str, Any]) -> bool:
        """Whether these arguments of a hook, with the same call id, are of the same call."""
        call = self.call and self.call()
        return call is None or Adapter.same_call(call, data)

    def forgotten(self) -> bool:
        """Whether LiteLLM has dropped the call without a word: a client that left."""
        return self.call is not None and self.call() is None


class Refused(Exception):
    """A 429 of ours. LiteLLM cools nothing down for it, does not retry (num_retries) and still uses
    fallbacks."""

    status_code = 429
    num_retries = 0
    type = "rate_limit_error"
    param = None
    code = "429"

    def __init__(self, message: str, limit: str, retry_after: int | None) -> None:
        super().__init__(message)
        self.message = message
        self.headers = {"x-tokenbudget-limit": limit}
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)


class RefusedLate(Refused):
    """Raised in the deployment hook, where LiteLLM cools the deployment down unless the text names an
    APIConnectionError (router_utils/cooldown_handlers.py, _is_cooldown_required)."""

    def __str__(self) -> str:
        return self.message + " (nothing was sent: not a fault of the deployment; APIConnectionError)"


class QuietRefusals(logging.Filter):
    """LiteLLM before 1.102 logs every 429 with a traceback; ours are no faults, and there may be many."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            if record.exc_info and isinstance(record.exc_info[1], Refused):
                record.exc_info = record.exc_text = None
            text = record.msg
            if isinstance(text, str) and not record.args and Refused.__module__ + ".Refused" in text:
                record.msg = text.split("\nTraceback (most recent call last)", 1)[0]
        except Exception:
            pass
        return True


# ---------------------------------------------------------------- the agent of this process


class PerTask:
    """What belongs to the asyncio task that runs. Not a ContextVar: CPython before 3.12 can crash when one
    more of those is set (in hamt_node_bitmap_assoc; seen on 3.11.7 under load)."""

    def __init__(self) -> None:
        self.by_task: weakref.WeakKeyDictionary[asyncio.Task[Any], Any] = weakref.WeakKeyDictionary()

    def get(self) -> Any:
        try:
            return self.by_task.get(asyncio.current_task())  # type: ignore[arg-type]
        except (RuntimeError, TypeError):  # in no event loop, or in no task of one
            return None

    def request(self) -> Request | None:
        found = self.get()
        return found if isinstance(found, Request) else None

    def set(self, value: object) -> None:
        try:
            self.by_task[asyncio.current_task()] = value  # type: ignore[index]
        except (RuntimeError, TypeError):
            pass


_request = PerTask()  # the Request, set by the filter
_called = PerTask()  # the Called of a request that the filter left alone: a fallback may skip the filter
# In its place when the filter failed: the request goes LiteLLM's own way, past the check, too.
UNREAD = object()
# Set at the proxy's door only where LiteLLM will skip the filter.
_unfiltered: contextvars.ContextVar[Called | None] = contextvars.ContextVar(
    "tokenbudget_unfiltered", default=None
)
UNLEARNED = Learned()  # of a model that has not answered yet


class Agent:
    """Everything this process knows. `lock` guards the books: hooks run in the event loop, some in executor
    threads,
    answers are applied by the ledger's thread."""

    env: Mapping[str, str]
    governors: dict[str, Governor]
    attempts: dict[str | None, list[Attempt]]  # the open ones; no key is None, but some ask for it
    learned: dict[str, Learned]  # by LiteLLM's name of the model; only answers add one
    bodies: dict[object, Body]
    waiters: dict[asyncio.Future[None], Needs]
    stamps_known: set[str]
    faults: dict[str, tuple[float, str]]
    logged: dict[str, float]
    last_tick: float | None
    resting: asyncio.Future[None] | None
    draw: Callable[[], None]
    adapter: Adapter | MaybeNone

    def __init__(self, clock: Clock | None = None, environ: Mapping[str, str] | None = None) -> None:
        self.clock, self.env = clock or Clock(), os.environ if environ is None else environ
        self.lock = threading.RLock()
        self.governors, self.attempts, self.learned = {}, {}, {}
        self.bodies = {}  # call -> (when, what the client sent, call type), from the door to the router
        self.waiters = {}  # future -> [(book, need)]
        self.stamps_known = set()  # call types that were seen to pass log_pre_api_call
        self.faults, self.logged = {}, {}
        self.drift, self.outside = Drift(), Outside()
        self.last_tick, self.last_sweep = None, 0.0
        self.resting = None  # the light loop waits for this, or until there is something to look over
        self.draw = lambda: None  # set by the ledger thread
        self.adapter = None
        self.watcher: asyncio.Task[None] | None = None  # kept: a loop holds its tasks weakly
        self.reset_identity()

    def reset_identity(self) -> None:
        self.pid, self.started_ms = os.getpid(), int(self.clock.wall() * 1000)
        self.member = "%s.%d.%s" % (
            self.env.get("TOKENBUDGET_POD_UID") or "local",
            self.pid,
            uuid.uuid4().hex[:8],
        )

    # -- faults

    def fault(self, where: str, error: BaseException) -> None:
        """A fault of ours: reported for a minute, logged once a minute."""
        now = self.clock.boot()
        self.faults[where] = (now, "%s: %s: %s" % (where, type(error).__name__, str(error)[:200]))
        if now - self.logged.get(where, -1e9) >= 60:
            self.logged[where] = now
            log.error("tokenbudget: fault in %s, the request goes LiteLLM's own way", where, exc_info=error)

    def failing(self, where: str) -> bool:
        found = self.faults.get(where)
        return found is not None and self.clock.boot() - found[0] < 60

    def problems(self) -> list[str]:
        now = self.clock.boot()
        found = [text for at, text in list(self.faults.values()) if now - at < 60]
        return sorted(found + (self.adapter.problems() if self.adapter else []))

    def watch_leases(self, boot: float, wall: float) -> None:
        """A ledger that is lost is a problem by name, logged once a minute for as long as it lasts."""
        for governor in list(self.governors.values()):
            if not governor.lost(boot, wall):
                continue
            what = (
                "onLedgerLoss is Open: LiteLLM's own limit, in every process"
                if governor.open_on_loss
                else "this process admits only up to its offline amount"
            )
            where = "lease of " + governor.name
            self.faults[where] = (boot, "%s is over: %s" % (where, what))
            if boot - self.logged.get(where, -1e9) >= 60:
                self.logged[where] = boot
                log.error("tokenbudget: the %s is over; %s", where, what)

    # -- time

    def tick(self, now: float, turn: bool = False) -> None:
        """Called by the light loop (`turn`) and by every admission. A gap between two turns means that the
        event loop stood still, also when one turn is slow as it admits so many requests."""
        last, roused = self.last_tick, not turn and self.resting is not None and self.rouse()
        if turn or roused or last is None:
            self.last_tick = now
        if last is not None and now - last > STALL:
            with self.lock:
                for governor in self.governors.values():
                    for book in governor.books.values():
                        book.ring.stall(last - MARGIN, now, turn)
        if now - self.last_sweep > 1:
            self.last_sweep = now
            self.sweep(now)

    def may_rest(self, now: float) -> bool:
        """Whether no turn of the event loop needs to be measured: nothing is on its way out."""
        with self.lock:
            return not self.attempts and not any(
                book.ring.may_stall(now)
                for governor in self.governors.values()
                for book in governor.books.values()
            )

    def rouse(self) -> bool:
        """Ends the light loop's rest; whether it was resting."""
        resting, self.resting = self.resting, None
        if resting is None:
            return False
        finish(resting)
        return True

    def minute(self) -> int:
        """The calendar minute, by which LiteLLM counts."""
        return int(self.clock.wall() // 60)

    def count(self, books: list[Book], tokens: int) -> None:
        """A call on a deployment with these books has ended, whether or not anything was reserved for it.
        LiteLLM counts it in this minute, too (Router.deployment_callback_on_success)."""
        minute = self.minute()
        with self.lock:
            for governor, limit in {(book.governor, book.limit) for book in books}:
                governor.tally(limit).counts.add(minute, tokens=tokens, requests=1)

    def went_past(self, kind: str, requests: int = 0, tokens: int = 0) -> None:
        """A call went to a provider without asking the router."""
        with self.lock:
            self.outside.add(kind, self.clock.boot(), requests, tokens)

    def figures(self, governor: Governor, now: float) -> dict[str, Any]:
        """The part of the report that is no state: docs/protocol.md."""
        minute = self.minute()
        found: dict[str, Any] = {}
        if not self.adapter or self.adapter.declared_rows is None:
            return found  # there is no router yet
        named = self.adapter.named
        with self.lock:
            outside = self.outside.figures(now)
            found["limits"] = [
                {
                    "name": limit,
                    "deployments": sorted(named[governor.uid, limit])[:NAMED_DEPLOYMENTS],
                    **governor.tally(limit).figures(minute),
                }
                for limit in sorted({limit for limit, _ in governor.books})
                if (governor.uid, limit) in named
            ]
            calls = governor.calls.figures(minute)
        if calls:
            found["calls"] = calls
        if outside:
            found["outside"] = outside
        if self.adapter.counts_alone():
            found["private"] = True
        return found

    def at_the_door(self, data: Data, call_type: str) -> None:
        """What a client sent, for the estimate: the router's hooks don't see all of it."""
        key = call_key(data)
        if key and self.governors:  # without any nobody takes it out
            self.bodies[key] = (self.clock.boot(), data, call_type)

    def called(self, data: Data, previous: Called | None = None) -> Called:
        """Whose call `data` is, with what the client sent, which is kept no longer than this."""
        call_id = data.get("litellm_call_id") or uuid.uuid4().hex
        body = self.bodies.pop(call_key(data), None)
        if body is None and previous is not None and previous.call_id == call_id:
            body = previous.body  # another attempt of the same request
        return Called(call_id, weakly(data.get("litellm_logging_obj")), body)

    def sweep(self, now: float) -> None:
        for key, (at, _, _) in list(self.bodies.items()):
            if now - at > BODY_BOUND:
                self.bodies.pop(key, None)
        with self.lock:
            for attempt in [a for attempts in self.attempts.values() for a in attempts]:
                if attempt.forgotten() or now - attempt.reserved > ATTEMPT_BOUND:
                    self.failed(attempt, None)
                elif not attempt.stamped and now - attempt.reserved > UNSENT_BOUND:
                    self.stamp(attempt, now)

    # -- needs and admission

    def need(self, request: Request, deployment: Deployment, book: Book) -> int:
        """What this request will be charged in this book, before it runs: at most MOST_AMOUNT."""
        if book.unit == "requests":
            return 1
        return within_reason(self.tokens(request, deployment, book))

    def tokens(self, request: Request, deployment: Deployment, book: Book) -> int:
        params = deployment.get("litellm_params") or {}
        model = params.get("model") or ""
        learned = self.learned.get(model, UNLEARNED)
        prompt = request.overhead + request.chars * learned.ratio
        if request.no_output:
            return math.ceil(prompt)
        output = request.output
        if book.governor.reserve == "Estimate" and learned.output_mean is not None:
            guess = math.ceil(learned.output_mean)
            output = guess if output is None else min(output, guess)
        elif output is None:
            output = self.default_output(deployment, params, model, book, learned)
        return math.ceil(prompt + output * request.n)

    def default_output(
        self, deployment: Deployment, params: dict[str, Any], model: str, book: Book, learned: Learned
    ) -> int:
        for name in OUTPUTS:
            if isinstance(params.get(name), int):
                return params[name]  # type: ignore[no-any-return]
        known = self.adapter.max_output(deployment, model) if self.adapter else None
        usual = learned.output_high or UNKNOWN_OUTPUT
        return min(known, max(usual, book.share // 4)) if known else usual

    def needs(self, request: Request, deployment: Deployment, books: list[Book]) -> Needs:
        return [(book, self.need(request, deployment, book)) for book in books]

    def fits(self, needs: Needs, boot: float, wall: float) -> bool:
        for book, amount in needs:
            if book.governor.acting(boot, wall) == "enforce" and not book.fits(amount, boot, wall):
                return False
        return True

    def held(self, needs: Needs, boot: float, wall: float) -> Needs:
        """Those by which a call may be refused: a TokenBudget that observes has no say."""
        return [need for need in needs if need[0].governor.acting(boot, wall) == "enforce"]

    def reserve(
        self, request: Request, deployment: Deployment, needs: Needs, force: bool = False
    ) -> Attempt | None:
        """All or nothing over the books; None when it does not fit."""
        boot, wall = self.clock.boot(), self.clock.wall()
        self.tick(boot)
        with self.lock:
            if not force and not self.fits(needs, boot, wall):
                return None
            taken = needs
            observed = [need for need in needs if need[0].governor.acting(boot, wall) == "observe"]
            if observed and not all(book.fits(amount, boot, wall) for book, amount in observed):
                # Only what would have been admitted is in the ring.
                taken = [need for need in needs if need not in observed]
                for book, amount in observed:
                    book.denied.add(request.call_id, amount, boot)
                    book.pending = max(book.pending, amount)
                self.draw()
            charges = []
            for book, amount in taken:
                charges.append((book, book.ring.charge(amount)))
                if book.denied.by_id:
                    book.denied.forget(request.call_id)
            model = (deployment.get("litellm_params") or {}).get("model") or ""
            attempt = Attempt(request, model_id(deployment), model, charges, boot)
            self.attempts.setdefault(request.call_id, []).append(attempt)
            request.attempt = attempt
            return attempt

    async def wait_for_room(self, needs_list: list[Needs], request: Request) -> bool:
        """Asks the ledger and waits for an answer, or for tokens to leave the window. False when the time is
        over."""
        now = self.clock.boot()
        if request.deadline is None:
            waits = [book.governor.max_wait for needs in needs_list for book, _ in needs]
            request.deadline = now + max(waits or [0])
            if request.deadline > now:
                self.waits(needs_list)
        left = request.deadline - now
        future = asyncio.get_running_loop().create_future()
        with self.lock:
            self.waiters[future] = [need for needs in needs_list for need in needs]
        try:
            self.draw()
            if left <= 0:
                return False
            await asyncio.wait([future], timeout=min(left, 0.05))
            return True
        finally:
            with self.lock:
                asked = self.waiters.pop(future, [])
                if left <= 0:  # the draw that it asked for is still to come
                    for book, amount in asked:
                        book.pending = max(book.pending, amount)

    def waits(self, needs_list: list[Needs]) -> None:
        """Counts a request that waits, for each limit that has no room for it."""
        boot, wall, minute = self.clock.boot(), self.clock.wall(), self.minute()
        with self.lock:
            full = {
                (book.governor, book.limit)
                for needs in needs_list
                for book, amount in needs
                if not book.fits(amount, boot, wall)
            }
            for governor, limit in full:
                governor.tally(limit).counts.add(minute, waited=1)

    def wanted(self, book: Book) -> tuple[float, float]:
        """What waiting requests and refusals need of this book: all of them, and the smallest."""
        amounts = [n for needs in self.waiters.values() for b, n in needs if b is book]
        if book.pending:
            amounts.append(book.pending)
        return sum(amounts), min(amounts, default=0)

    def wake(self) -> None:
        """An answer came, or a request ended: wakes the waiting requests that may fit now."""
        boot, wall = self.clock.boot(), self.clock.wall()
        with self.lock:
            waiters = [f for f, needs in self.waiters.items() if any(b.fits(n, boot, wall) for b, n in needs)]
        for future in waiters:
            finish(future)

    def refusal(self, call_id: str, needs_list: list[Needs], kind: type[Refused] = Refused) -> Refused:
        """The 429, by the deployment that will have room first."""
        boot, wall = self.clock.boot(), self.clock.wall()
        best: tuple[int, Book, float] | MaybeNone = None
        with self.lock:
            for needs in needs_list:
                worst: tuple[int, Book, float] | None = None
                for book, amount in needs:
                    if amount > book.budget:
                        found = (10**6, book, amount)
                    elif not book.fits(amount, boot, wall):
                        found = (book.retry_after(amount, boot, wall), book, amount)
                    else:
                        continue
                    worst = found if worst is None or found[0] > worst[0] else worst
                if worst is None:  # there is room again since
                    worst = (1, needs[0][0], needs[0][1])
                best = worst if best is None or worst[0] < best[0] else best
            seconds, book, amount = best
            for one, need in needs_list[0]:
                if seconds <= 60:  # what can never be admitted is no demand
                    one.denied.add(call_id, need, boot)
        who, name = book.governor.name, f"{book.governor.name}/{book.limit}"
        if seconds > 60:
            text = (
                f"this request needs {amount} {book.unit} and the whole budget of limit {book.limit} is "
                f"{book.budget} per minute: it can never be admitted. Lower max_tokens or split the request."
            )
            return kind(f"TokenBudget {who}: {text}", name, None)
        text = (
            f"limit {book.limit} ({book.budget} {book.unit} per minute for the whole fleet) has no room for "
            f"{amount} {book.unit}. Retry after {seconds} s."
        )
        return kind(f"TokenBudget {who}: {text}", name, seconds)

    # -- the life of an attempt

    def stamp(self, attempt: Attempt, now: float) -> None:
        with self.lock:
            attempt.stamped = True
            for book, charge in attempt.charges:
                book.ring.stamp(charge, now)

    def open_attempts(self, data: Mapping[str, Any], copied: bool = False) -> list[Attempt]:
        """Of the call that these arguments of a hook are of. Copied: LiteLLM may have copied them, to leave
        out what was said; then those with its call id, if none is known to be of it."""
        attempts = self.attempts.get(data.get("litellm_call_id"), [])
        return [attempt for attempt in attempts if attempt.is_of(data)] or (attempts if copied else [])

    def open_attempt(
        self, data: Mapping[str, Any], deployment: str | None = None, copied: bool = False
    ) -> Attempt | None:
        """The attempt that runs in this task, else the last one of this call."""
        attempts = self.open_attempts(data, copied)
        if deployment is not None:
            attempts = [attempt for attempt in attempts if attempt.deployment == deployment]
        if len(attempts) > 1:
            request = _request.request()
            if request is not None and request.attempt in attempts:
                return request.attempt
        return attempts[-1] if attempts else None

    def end(
        self, attempt: Attempt, total: float | None = None, give_back: bool = False, never_sent: bool = False
    ) -> None:
        """total: actual tokens, None when unknown. give_back: the provider did not count its tokens (a 429).
        never_sent: it did not reach the provider, so it was no request either."""
        now = self.clock.boot()
        with self.lock:
            if attempt.ended:
                return
            attempt.ended = True
            for book, charge in attempt.charges:
                if never_sent or (give_back and book.unit == "tokens"):
                    book.ring.give_back(charge)
                    continue
                if charge.slot is None:
                    book.ring.stamp(charge, now)  # not seen leaving: it left by now at the latest
                if total is not None and book.unit == "tokens":
                    if total > 0:
                        book.governor.tally(book.limit).ratios.append(charge.amount / total)
                    book.ring.settle(charge, total, now)
            still = [a for a in self.attempts.get(attempt.call_id, ()) if not a.ended]
            if still:
                self.attempts[attempt.call_id] = still
            else:
                self.attempts.pop(attempt.call_id, None)
        if self.waiters:
            self.wake()

    def failed(self, attempt: Attempt, error: BaseException | None) -> None:
        """An attempt that left counts, unless the provider refused it or was never reached."""
        if never_connected(error) or (
            not attempt.stamped and self.never_left(attempt)
        ):  # error: None if unknown
            self.end(attempt, never_sent=True)
        else:
            self.end(attempt, give_back=getattr(error, "status_code", None) == 429)

    def never_left(self, attempt: Attempt) -> bool:
        return not attempt.hooked or attempt.kind in self.stamps_known


def finish(future: asyncio.Future[None]) -> None:
    """Ends what waits for it, from whichever thread."""
    try:
        future.get_loop().call_soon_threadsafe(lambda: future.done() or future.set_result(None))  # type: ignore[func-returns-value]
    except RuntimeError:
        pass  # its loop is closed


def model_id(deployment: Deployment) -> str:
    return str((deployment.get("model_info") or {}).get("id"))


def call_key(data: Mapping[str, Any]) -> object:
    """LiteLLM's own object of the call, or its id where there is none."""
    call = data.get("litellm_logging_obj")
    return data.get("litellm_call_id") if call is None else id(call)


def weakly(value: object) -> weakref.ref[Any] | None:
    try:
        return None if value is None else weakref.ref(value)
    except TypeError:  # of a type that can't
        return None


# Of aiohttp and httpx: no connection to the provider was opened.
UNCONNECTED = frozenset(
    (
        "ConnectTimeout",
        "ClientConnectorError",
        "PoolTimeout",
        "ConnectionRefusedError",
        "ClientConnectorDNSError",
    )
)
# It may have been, and the request sent. LiteLLM makes a ConnectError of these, too
# (llms/custom_httpx/aiohttp_transport.py, AIOHTTP_EXC_MAP).
MAYBE_CONNECTED = frozenset(("ClientOSError", "ClientConnectorSSLError", "CancelledError"))


def never_connected(error: BaseException | None) -> bool:
    """Whether the connection to the provider was never opened (aiohttp, httpx). LiteLLM's error of an earlier
    attempt may be the context of this one's: what is behind it says nothing of this attempt."""
    unconnected = False
    for depth in range(8):
        if error is None or (depth and type(error).__module__ == "litellm.exceptions"):
            break
        name = type(error).__name__
        if name in UNCONNECTED:
            return True
        if name in MAYBE_CONNECTED:
            return False
        unconnected = unconnected or name == "ConnectError"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return unconnected


# ---------------------------------------------------------------- Redis


def redis_url(env: Mapping[str, str]) -> str | None:
    """The ledger's URL, if one is set: the operator's, else LiteLLM's (as src/litellm/redis_source.rs)."""
    for name in ("TOKENBUDGET_REDIS_URL", "REDIS_URL"):
        if env.get(name):
            return env[name]
    quote = functools.partial(urllib.parse.quote, safe="")
    user, password = env.get("REDIS_USERNAME") or "", env.get("REDIS_PASSWORD")
    scheme = "rediss" if (env.get("REDIS_SSL") or "").strip().lower() in ("1", "true", "yes") else "redis"
    login = "%s:%s@" % (quote(user), quote(password)) if password else ""

    def at(host: str, port: str | int) -> str:
        return ("[%s]:%d" if ":" in host and host[0] != "[" else "%s:%d") % (host, int(port))

    if env.get("REDIS_SENTINEL_NODES"):
        hosts = ",".join(at(host, port) for host, port in json.loads(env["REDIS_SENTINEL_NODES"]))
        options, password = "", env.get("REDIS_SENTINEL_PASSWORD")
        if password:
            options = "?" + ("sentinel_username=%s&" % quote(user) if user else "")
            options += "sentinel_password=" + quote(password)
        return "%s+sentinel://%s%s/%s%s" % (scheme, login, hosts, env.get("REDIS_SERVICE_NAME", ""), options)
    if env.get("REDIS_HOST"):
        return "%s://%s%s" % (scheme, login, at(env["REDIS_HOST"], env.get("REDIS_PORT") or 6379))
    return None


class Address:
    """What a Redis URL says, for redis-py: one server, or the Sentinels that know it.

    src/ledger/redis/address.rs reads it alike (tests/addresses.json). ValueError, which does not quote it,
    if it cannot be used."""

    def __init__(self, url: str, ca: str = "") -> None:
        scheme, _, rest = url.strip().partition("://")
        rest, _, options = rest.partition("?")
        self.given, self.ca, self.service = (url, ca), ca, ""
        self.sentinels: list[dict[str, Any]] = []
        if not url.strip():
            raise ValueError(URL_FAULT % "it is empty")
        if scheme not in ("redis", "rediss", "redis+sentinel", "rediss+sentinel"):
            raise ValueError(
                URL_FAULT % "it does not start with redis:// or rediss://, nor with "
                "redis+sentinel:// or rediss+sentinel://"
            )
        if scheme.endswith("+sentinel"):
            scheme = scheme.partition("+")[0]
            authority, _, path = rest.partition("/")
            login, at, hosts = authority.rpartition("@")
            self.service, _, db = path.partition("/")
            if not re.fullmatch("[A-Za-z0-9._-]+", self.service):
                raise ValueError(
                    URL_FAULT % "it names no service of the Sentinels: "
                    "%s+sentinel://[user:password@]host:port[,host:port]/service[/db]" % scheme
                )
            given = dict(urllib.parse.parse_qsl(options, keep_blank_values=True))
            login_there = {name: given.pop("sentinel_" + name, None) for name in ("username", "password")}
            if given:
                raise ValueError(
                    URL_FAULT % "it has other options than sentinel_username and sentinel_password"
                )
            for host in hosts.split(","):
                one = self.read(scheme, host, SENTINEL_PORT)
                self.sentinels.append({**one, **login_there})
            rest = login + at + hosts.partition(",")[0] + "/" + db
        self.server = self.read(scheme, rest, 6379)

    def read(self, scheme: str, rest: str, port: int) -> dict[str, Any]:
        """redis-py's arguments of `[user:password@]host[:port][/db]`."""
        try:
            parts = urllib.parse.urlsplit("redis://" + rest)
            port, parses = parts.port or port, parts.hostname and "#" not in rest
        except ValueError:
            parses = False
        if not parses:
            raise ValueError(URL_FAULT % NO_PARSE)
        if not re.fullmatch("/*[0-9]*/*", parts.path):
            raise ValueError(URL_FAULT % "its database is no number")
        made: dict[str, Any] = {
            "host": parts.hostname,
            "port": port,
            "username": urllib.parse.unquote(parts.username or "") or None,
            "password": urllib.parse.unquote(parts.password or "") or None,
            "db": int(parts.path.strip("/") or 0),
        }
        if scheme == "rediss":
            made.update(connection_class=TlsConnection, ssl_check_hostname=True)
            if self.ca:
                made["ssl_ca_data"] = self.ca
        return made


class TlsConnection(redis.SSLConnection):
    """Trusts the CA that it is given alone, as the operator does, also one without a key usage, which Python
    3.13 takes for none. In a redis-py that does not call this, what the constructor was given holds."""

    def _wrap_socket_with_ssl(self, sock: socket.socket) -> ssl.SSLSocket:
        context = ssl.create_default_context(cadata=self.ca_data)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context.wrap_socket(sock, server_hostname=self.host)


def moved_to(error: Exception) -> Node | None:
    """Where a node of a cluster sends the caller, if it does; below redis-py 6 a text alone says so."""
    if isinstance(error, redis.exceptions.MovedError):
        return error.host, error.port
    found = re.match(r"MOVED \d+ (\S*):(\d+)$", str(error))
    return (found[1], int(found[2])) if found else None


class Ledger(threading.Thread):
    """Talks to Redis: beats, draws and the final call; one connection, one call at a time, growing seq."""

    known: Address | None
    clients: dict[Node | None, redis.Redis]
    nodes: dict[str, Node]
    entry: Node | None
    heard_of: Node | None
    sha: str | None
    detached: dict[str, str | None]

    def __init__(self, agent: Agent) -> None:
        super().__init__(name="tokenbudget-ledger", daemon=True)
        self.agent, self.pid = agent, os.getpid()
        self.event, self.stopping, self.done = threading.Event(), False, False
        self.drawing = False
        self.calls = threading.Lock()  # one call at a time, the final one included
        # Connections by node; None is the URL's own, or its Sentinels' primary. In a cluster MOVED says which
        # node has a TokenBudget.
        self.known, self.clients, self.nodes, self.entry, self.heard_of = None, {}, {}, None, None
        self.sha, self.seq = None, 0
        self.backoff, self.retry_at, self.down = 0.0, -1e9, False
        self.file_at, self.detached = -1e9, {}
        agent.draw = self.request_draw

    def request_draw(self) -> None:
        self.drawing = True
        self.event.set()

    def run(self) -> None:
        while not self.stopping:
            try:
                self.turn()
            except Exception as error:  # the thread must live
                self.agent.fault("ledger", error)
                time.sleep(0.5)

    def turn(self) -> None:
        """One round: the policy file, the calls that are due, then sleep."""
        agent, now = self.agent, self.agent.clock.boot()
        drawing, self.drawing = self.drawing, False
        self.event.clear()
        if now >= self.file_at:
            self.read_policies()
        wake = self.file_at
        # The longest unheard first: one that fails starts the wait for all, and must not always be the first.
        for governor in sorted(agent.governors.values(), key=lambda governor: governor.last_call):
            with agent.lock:
                wants = any(agent.wanted(book)[0] for book in governor.books.values())
            beat = now >= governor.next_beat
            if now >= self.retry_at and (beat or (wants and now - governor.last_call >= DRAW_GAP)):
                try:
                    self.call(governor, beat)
                except Exception as error:  # the other TokenBudgets go on
                    governor.last_call = governor.next_beat = agent.clock.boot() + 0.5
                    agent.fault("ledger", error)
                now = agent.clock.boot()
            wake = min(wake, governor.next_beat)
            if wants or drawing:
                wake = min(wake, governor.last_call + DRAW_GAP)
        wake = max(wake, self.retry_at)
        self.event.wait(max(0.001, min(wake - now, 1.0)))
        gap = (
            min((g.last_call for g in agent.governors.values()), default=-1e9) + DRAW_GAP - agent.clock.boot()
        )
        if 0 < gap <= DRAW_GAP and not self.stopping:
            time.sleep(gap)

    # -- one call

    def address(self) -> Address:
        env = self.agent.env
        url = redis_url(env)
        if url is None:
            raise redis.ConnectionError(
                "no Redis is configured (TOKENBUDGET_REDIS_URL, or LiteLLM's own REDIS_...)"
            )
        # Both are from one Secret.
        ca = env.get("TOKENBUDGET_REDIS_CA", "") if env.get("TOKENBUDGET_REDIS_URL") else ""
        if self.known is None or self.known.given != (url, ca):
            self.known = Address(url, ca)
        return self.known

    def connect(self, node: Node | None = None) -> redis.Redis:
        address = self.address()
        if node is None and address.sentinels:
            node = self.primary(address)
        where = address.server
        if node:
            where = {**where, "host": node[0] or where["host"], "port": node[1]}
        return self.client(where)

    def client(self, where: dict[str, Any]) -> redis.Redis:
        pool = redis.ConnectionPool(
            socket_timeout=READ_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
            decode_responses=True,
            retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
            **where,
        )
        return redis.Redis(connection_pool=pool)

    def primary(self, address: Address) -> Node:
        """Where the Sentinels say that the server is. Who does not answer is asked last the next time."""
        said, started = "", self.agent.clock.boot()
        for _ in range(len(address.sentinels)):
            where = address.sentinels[0]
            client: Any = self.client(where)
            try:
                found = client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", address.service)
                if found:
                    return found[0], int(found[1])
                said = "they know no service %s" % address.service
            except redis.RedisError as error:
                said = "%s:%d: %s" % (where["host"], where["port"], error)
            finally:
                client.close()
                client.connection_pool.disconnect()
            address.sentinels.append(address.sentinels.pop(0))
            if self.agent.clock.boot() - started > READ_TIMEOUT + CONNECT_TIMEOUT:
                break
        raise redis.ConnectionError("no Sentinel says where the server is: " + said)

    def drop(self) -> None:
        """After a fault everything starts at the URL again, and with its Sentinels."""
        clients, self.clients, self.nodes = list(self.clients.values()), {}, {}
        for client in clients:
            try:
                client.close()
                client.connection_pool.disconnect()
            except Exception:
                pass

    def reach(self, governor: Governor) -> redis.Redis:
        """A connection that answers: while there is none, nothing of a call can have reached the ledger."""
        node = self.nodes.get(governor.uid, self.entry)
        if node not in self.clients:
            try:
                # Kept before it answers: what is kept is closed after a fault.
                client = self.clients[node] = self.connect(node)
                client.ping()
            except Exception:
                if node == self.entry:
                    # Any other node of a cluster can tell; next time it is the URL's turn again.
                    self.entry = None if self.entry else self.heard_of
                raise
        return self.clients[node]

    def execute(self, governor: Governor, keys: list[str], args: list[str | int]) -> Any:
        """Runs the call script where the TokenBudget is. A node that answers MOVED has done nothing."""
        if self.sha is None:
            self.sha = hashlib.sha1(CALL_SCRIPT.encode()).hexdigest()
        for _ in range(MOST_HOPS):
            client = self.reach(governor)
            try:
                try:
                    return client.evalsha(self.sha, len(keys), *keys, *args)
                except redis.exceptions.NoScriptError:
                    return client.eval(CALL_SCRIPT, len(keys), *keys, *args)
            except redis.ResponseError as error:
                node = moved_to(error)
                if node is None:
                    raise
                self.nodes[governor.uid] = self.heard_of = node
        raise redis.ConnectionError("sent from node to node %d times" % MOST_HOPS)

    def call(self, governor: Governor, beat: bool = True, final: bool = False) -> bool:
        """A beat, a draw (beat False) or the final call of one TokenBudget."""
        agent = self.agent
        with self.calls:
            if self.done or (self.stopping and not final):
                return False
            boot = agent.clock.boot()
            governor.last_call = boot
            governor.calls.add(agent.minute(), beats=int(beat), draws=int(not beat))
            if beat:
                governor.next_beat = boot + governor.beat
            try:
                self.reach(governor)
            except Exception as error:
                self.drop()
                self.away(governor, error, agent.clock.boot(), "")
                return False
            self.seq += 1
            with agent.lock:
                boot, wall = agent.clock.boot(), agent.clock.wall()
                books = list(governor.books.values())
                keys = [governor.key("meta"), governor.key("members")] + governor.book_keys()
                sent = [book.prepare(beat, *agent.wanted(book), boot, wall, final) for book in books]
                for book in books:
                    book.quiet = boot
                if beat:
                    governor.next_beat = boot + governor.time_to_beat(boot)
                version = governor.policy.get("version", "")
            report = ""
            try:
                report = "" if final else self.report(governor, boot)
            except Exception as error:  # grants do not depend on it
                agent.fault("report", error)
            args: list[str | int] = [agent.member, self.seq, int(final), version, report]
            for one in sent:
                args += one.args()
            args += [one.leaving() for one in sent]
            try:
                version, policy, answers, ledger_ms = self.execute(governor, keys, args)
                received = agent.clock.boot()
                late = received - boot
                if late > READ_TIMEOUT + CONNECT_TIMEOUT:
                    raise redis.TimeoutError("the answer took %.1f s" % late)
            except Exception as error:
                self.drop()
                self.away(governor, error, boot, report)
                return False
            if self.down:
                log.warning("tokenbudget: the ledger answers again")
            self.down, self.backoff, self.retry_at = False, 0.0, -1e9
            with agent.lock:
                agent.drift.note(boot, received, int(float(ledger_ms)) / 1000)
                good = [book.apply(one, answer) for book, one, answer in zip(books, sent, answers)]
                for book in books:
                    book.ring.guard = agent.drift.guard()
                if any(good) or not good:
                    governor.last_good = boot
            if policy:
                self.new_policy(governor, json.loads(policy))
            agent.wake()
            return True

    def away(self, governor: Governor, error: Exception, boot: float, report: str) -> None:
        if report:
            governor.last_report = None  # it may not have arrived
        self.backoff = min(BACKOFF_MAX, max(0.1, self.backoff * 2))
        self.retry_at = boot + self.backoff
        if not self.down:
            self.down = True
            log.error(
                "tokenbudget: the ledger does not answer (%s: %s); grants hold for a lease, then %s",
                type(error).__name__,
                self.masked(str(error))[:200],
                "LiteLLM's own limit, in every process (onLedgerLoss: Open)"
                if governor.open_on_loss
                else "the safe share",
            )

    def masked(self, text: str) -> str:
        """A server may quote what it does not know."""
        for where in [self.known.server, *self.known.sentinels] if self.known else []:
            if where["password"]:
                text = text.replace(where["password"], "***")
        return text

    def report(self, governor: Governor, now: float) -> str:
        adapter, problems = self.agent.adapter, self.agent.problems()
        declared = adapter.declared(governor) if adapter else None
        env = self.agent.env
        due = now - governor.report_at >= REPORT_EVERY
        if due:
            governor.figures = self.agent.figures(governor, now)
        state = (
            "Degraded"
            if problems
            else "Starting"
            if declared is None
            else ("Observing" if governor.mode == "Observe" else "Enforcing")
        )
        text = json.dumps(
            {
                "pod": env.get("TOKENBUDGET_POD_NAME", ""),
                "podUid": env.get("TOKENBUDGET_POD_UID", ""),
                "node": env.get("TOKENBUDGET_NODE_NAME", ""),
                "container": env.get("TOKENBUDGET_CONTAINER", ""),
                "worker": self.pid,
                "startedMs": self.agent.started_ms,
                "agent": AGENT,
                "policy": governor.policy.get("version", ""),
                "state": state,
                "problems": problems,
                "declared": declared,
                **governor.figures,
            },
            sort_keys=True,
        )
        if text == governor.last_report and not due:
            return ""
        governor.last_report, governor.report_at = text, now
        return text

    # -- policies

    def new_policy(self, governor: Governor, policy: Policy) -> None:
        agent = self.agent
        with agent.lock:
            if policy.get("mode") == "Detached":
                agent.governors.pop(governor.uid, None)
                self.detached[governor.uid] = governor.policy.get("version")
                log.warning("tokenbudget: %s is detached, LiteLLM's own limits are back", governor.name)
            else:
                policy.setdefault("uid", governor.uid)
                governor.update(policy, agent.clock.boot())
                governor.next_beat = 0.0
        if agent.adapter:
            agent.adapter.changed()

    def read_policies(self) -> None:
        """The ConfigMap: TokenBudgets that are not known yet, and which ones are gone without a word."""
        agent, now = self.agent, self.agent.clock.boot()
        path = os.path.join(agent.env.get("TOKENBUDGET_POLICY_DIR") or "/etc/tokenbudget", "policy.json")
        try:
            with open(path, encoding="utf-8") as file:
                policies = json.load(file)["tokenBudgets"]
        except (OSError, ValueError, KeyError, TypeError):
            self.file_at = now + 1.0
            return
        self.file_at = now + (1.0 if not policies else 5.0)
        changed = False
        with agent.lock:
            policies = [policy for policy in policies if isinstance(policy, dict)]
            for policy in policies:
                uid = policy.get("uid")
                if not uid or uid in agent.governors or policy.get("mode") == "Detached":
                    continue
                if uid in self.detached and self.detached[uid] == policy.get("version"):
                    continue
                try:
                    agent.governors[uid] = Governor(policy, now)
                except Exception as error:  # of another version, or broken: the others go on
                    agent.fault("policy file", error)
                    continue
                changed = True
            named = {policy.get("uid") for policy in policies}
            for uid, governor in list(agent.governors.items()):
                silent = now - (governor.last_good if governor.last_good is not None else governor.started)
                if uid not in named and not self.down and silent > governor.lease + 65:
                    del agent.governors[uid]  # closed while we could not hear it
                    changed = True
        if changed and agent.adapter:
            agent.adapter.changed()

    def leave(self) -> None:
        """The final call of every TokenBudget: what is left of the grants goes back at once. Idempotent."""
        if self.done or self.stopping or os.getpid() != self.pid:
            return
        self.stopping = True
        self.event.set()
        with self.calls:  # what is lent by a call that is under way goes back, too
            called = [g for g in list(self.agent.governors.values()) if g.last_call > -1e9]
        for governor in called:
            if not self.down:
                self.call(governor, final=True)
        self.done = True
        self.drop()


# ---------------------------------------------------------------- LiteLLM's inside

FILTERED = (  # strategies under which Router asks async_filter_deployments
    "simple-shuffle",
    "least-busy",
    "latency-based-routing",
    "cost-based-routing",
    "usage-based-routing-v2",
)


class Adapter:
    """All that touches LiteLLM beyond the hooks of CustomLogger. Each attribute that is missing is a problem
    by name."""

    router: Any
    missing: dict[str, str]
    seen: dict[str, Row]
    matched: dict[str, list[Book]]
    named: dict[tuple[str, str], set[str]]
    # What LiteLLM's configuration declares, and the TokenBudgets that name it in an explicit limit.
    declared_rows: list[tuple[dict[str, Any], set[str]]] | None
    identities: dict[str, str]
    caches: list[tuple[Any, str, Any]]

    def __init__(self, agent: Agent, handler: Hooks) -> None:
        self.agent, self.handler = agent, handler
        self.router, self.missing = None, {}
        self.seen = {}  # model id -> [deployment dict, original {tpm, rpm}, last written {tpm, rpm}]
        self.matched = {}  # model id -> [books]
        self.named = {}  # uid and limit -> "<model id>:<litellm model>", as LiteLLM's own counters are named
        self.declared_rows, self.identities = None, {}
        self.caches = []  # (object, attribute, original)
        self.dirty = True
        self.quiet = QuietRefusals()

    def problems(self) -> list[str]:
        return list(self.missing.values())

    def problem(self, name: str, text: str | None) -> None:
        if text is None:
            self.missing.pop(name, None)
        else:
            if name not in self.missing:
                log.error("tokenbudget: %s", text)
            self.missing[name] = text

    def changed(self) -> None:
        self.dirty = True
        self.agent.rouse()

    def declared(self, governor: Governor) -> list[dict[str, Any]] | None:
        """What this TokenBudget may derive limits from: not what an explicit limit of another one names. What
        its own names counts: those may go."""
        if self.declared_rows is None:
            return None
        return [row for row, named in self.declared_rows if not named - {governor.uid}]

    # -- registration

    def register(self) -> None:
        import litellm

        manager = getattr(litellm, "logging_callback_manager", None)
        callbacks = getattr(litellm, "callbacks", None)
        if callbacks is None or manager is None:
            return self.problem(
                "callbacks", "litellm.callbacks or logging_callback_manager is missing: not enforcing"
            )
        if self.handler not in callbacks:
            manager.add_litellm_callback(self.handler)
        for name, add in (
            ("input_callback", "add_litellm_input_callback"),
            ("_async_success_callback", "add_litellm_async_success_callback"),
            ("_async_failure_callback", "add_litellm_async_failure_callback"),
        ):
            if self.handler not in getattr(litellm, name, ()) and hasattr(manager, add):
                getattr(manager, add)(self.handler)
        kept = self.handler in litellm.callbacks
        self.problem("callbacks", None if kept else "LiteLLM drops the agent's callback: not enforcing")

    def wrap_shutdown(self, server: Any) -> None:
        """uvicorn raises the signal again after its shutdown, so atexit does not run: the proxy's own
        shutdown event,
        which comes when no request is running any more, is where the agent leaves."""
        event = getattr(server, "proxy_shutdown_event", None)
        if event is None:
            return self.problem(
                "shutdown",
                "litellm.proxy.proxy_server.proxy_shutdown_event is missing: "
                "grants of ended processes come back late",
            )
        self.problem("shutdown", None)
        if getattr(event, "tokenbudget", False):
            return None

        @functools.wraps(event)
        async def leave_first(*args: Any, **kwargs: Any) -> Any:
            try:
                await asyncio.get_running_loop().run_in_executor(None, leave)
            except Exception as error:
                self.agent.fault("leave", error)
            return await event(*args, **kwargs)

        leave_first.tokenbudget = True  # type: ignore[attr-defined]
        server.proxy_shutdown_event = leave_first

    def quieten(self, wanted: bool) -> None:
        for name in ("LiteLLM Router", "LiteLLM Proxy"):
            logger = logging.getLogger(name)
            if wanted:
                logger.addFilter(self.quiet)  # twice is once
            else:
                logger.removeFilter(self.quiet)

    # -- the router

    def refresh(self) -> None:
        """Runs in the event loop, each second and after changes: LiteLLM's lists are not touched from
        elsewhere."""
        self.register()
        server = sys.modules.get("litellm.proxy.proxy_server")
        if server is None:
            return None
        self.wrap_shutdown(server)
        if not hasattr(server, "llm_router"):
            return self.problem("router", "litellm.proxy.proxy_server.llm_router is missing: not enforcing")
        router = server.llm_router
        self.problem("router", None)
        if router is None:
            return None
        models = getattr(router, "model_list", None)
        if not isinstance(models, list):
            return self.problem("model_list", "Router.model_list is not a list: not enforcing")
        self.problem("model_list", None)
        if router is not self.router:
            self.restore_caches()
            self.router = router
        self.dirty = False
        self.quieten(bool(self.agent.governors))
        strategy = self.strategy()
        unasked = (
            None
            if strategy in FILTERED
            else (
                "routing_strategy %s does not ask who has room: a full deployment is refused, not passed over"
                % strategy
            )
        )
        self.problem("strategy", unasked)
        self.identify(models)
        boot, wall = self.agent.clock.boot(), self.agent.clock.wall()
        rows: list[tuple[dict[str, Any], set[str]]]
        present: set[str]
        rows, all_governed, present = [], True, set()
        named: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
        for deployment in models:
            key = model_id(deployment)
            present.add(key)
            row = self.originals(key, deployment)
            books, named_by = self.match(deployment)
            self.matched[key] = books
            for book in books:
                model = (deployment.get("litellm_params") or {}).get("model")
                named[book.governor.uid, book.limit].add(f"{key}:{model}")
            limits = self.limits_of(deployment, row[1])
            if any(v is not None for v in limits.values()):
                rows.append((self.declared_row(deployment, limits), named_by))
            enforced = [b for b in books if b.governor.acting(boot, wall) == "enforce"]
            self.write(deployment, row, enforced)
            if not enforced and any(v is not None for v in limits.values()):
                all_governed = False
        for known in (self.seen, self.matched):  # matched also has what was gone before a refresh saw it
            for key in [key for key in known if key not in present]:
                del known[key]
        self.declared_rows, self.named = rows, dict(named)
        if all_governed and any(self.matched.values()):
            self.localize_caches(router)
        else:
            self.restore_caches()

    def originals(self, key: str, deployment: Deployment) -> Row:
        row = self.seen.get(key)
        if row is None or row[0] is not deployment:
            values = {}
            for name in ("tpm", "rpm"):
                value = deployment.get(name)
                if row is not None and value is not None and value == row[2].get(name):
                    value = row[1][name]  # a copy of an entry that we had rewritten
                values[name] = value
            row = self.seen[key] = [deployment, values, row[2] if row else {}]
        return row

    def limits_of(self, deployment: Deployment, original: dict[str, Any]) -> dict[str, int | None]:
        params, info = deployment.get("litellm_params") or {}, deployment.get("model_info") or {}
        out: dict[str, int | None] = {}
        for name in ("tpm", "rpm"):
            values = [original[name], params.get(name), info.get(name)]
            out[name] = next((int(v) for v in values if v is not None), None)
        return out

    def write(self, deployment: Deployment, row: Row, books: list[Book]) -> None:
        """max(share, grant) at the top level of the live entry, and nowhere else."""
        for name, unit in (("tpm", "tokens"), ("rpm", "requests")):
            values = [max(book.share, book.grant, 1) for book in books if book.unit == unit]
            if values:
                deployment[name] = row[2][name] = int(min(values))
            elif name in row[2]:
                del row[2][name]
                if row[1][name] is None:
                    deployment.pop(name, None)
                else:
                    deployment[name] = row[1][name]

    # -- which limits a deployment spends from

    def identify(self, models: list[Deployment]) -> None:
        """The identity of each deployment, for derived limits: declared id, else what it is and the how
        manieth."""
        counts: collections.Counter[str]
        counts, self.identities = collections.Counter(), {}
        for deployment in models:
            declared = self.declared_id(deployment)
            if declared is not None:
                identity = "id=%s" % declared
            else:
                params = deployment.get("litellm_params") or {}
                base = "%s|%s|%s" % (
                    deployment.get("model_name"),
                    params.get("model"),
                    params.get("api_base") or "",
                )
                identity = "%s|%d" % (base, counts[base])
                counts[base] += 1
            self.identities[model_id(deployment)] = identity

    def declared_id(self, deployment: Deployment) -> str | None:
        """LiteLLM's own ids are a sha256 over all params: they change with a key or a limit."""
        found = model_id(deployment)
        return None if re.match(r"^[0-9a-f]{64}$", found) or found == "None" else found

    def declared_row(self, deployment: Deployment, limits: dict[str, int | None]) -> dict[str, Any]:
        params = deployment.get("litellm_params") or {}
        return {
            "identity": self.identities[model_id(deployment)],
            "modelName": deployment.get("model_name"),
            "litellmModel": params.get("model"),
            "apiBase": params.get("api_base"),
            "id": self.declared_id(deployment),
            "tokensPerMinute": limits["tpm"],
            "requestsPerMinute": limits["rpm"],
        }

    def match(self, deployment: Deployment) -> tuple[list[Book], set[str]]:
        """(books, the TokenBudgets of which an explicit limit matched). Explicit limits beat derived ones."""
        params = deployment.get("litellm_params") or {}
        have: dict[str, Any] = {
            "modelName": deployment.get("model_name"),
            "id": model_id(deployment),
            "litellmModel": params.get("model"),
            "apiBase": params.get("api_base"),
        }
        identity = self.identities.get(have["id"])
        explicit: list[Book]
        derived: list[Book]
        named_by: set[str]
        explicit, derived, named_by = [], [], set()
        for governor in list(self.agent.governors.values()):
            for limit in governor.limits:
                books = [
                    governor.books[key]
                    for key in ((limit["name"], "tokens"), (limit["name"], "requests"))
                    if key in governor.books
                ]
                if limit.get("derived") is not None:
                    if limit["derived"] == identity:
                        derived += books
                elif any(
                    selector and all(have.get(k) == v for k, v in selector.items() if v is not None)
                    for selector in limit.get("models") or []
                ):
                    explicit += books
                    named_by.add(governor.uid)
        return explicit or derived, named_by

    def books_of(self, deployment: Deployment) -> list[Book]:
        """On the request path: what the last refresh found, or found now for an entry that is new."""
        if self.dirty and self.router is not None:
            self.refresh()
        key = model_id(deployment)
        books = self.matched.get(key)
        if books is None:
            if key not in self.identities and self.router is not None:
                self.identify(self.router.model_list)
            books = self.matched[key] = self.match(deployment)[0]
        return books

    def skips_filter(self, model: str | None) -> bool:
        """Whether LiteLLM goes to the check without asking the filter (async_get_available_deployment)."""
        return model in self.matched or self.strategy() not in FILTERED

    def strategy(self) -> str:
        found = getattr(self.router, "routing_strategy", None) or FILTERED[0]
        return getattr(found, "value", found)

    def max_output(self, deployment: Deployment, model: str) -> int | None:
        info = deployment.get("model_info") or {}
        value = info.get("max_output_tokens")
        if value is None:
            import litellm

            costs = getattr(litellm, "model_cost", {})
            entry = costs.get(model) or costs.get(model.split("/", 1)[-1]) or {}
            value = entry.get("max_output_tokens") or entry.get("max_tokens")
        try:
            return int(value) if value else None
        except (TypeError, ValueError):
            return None

    def was_reported(self, kwargs: Data) -> bool:
        """Whether the usage is the provider's word. Before 1.102 LiteLLM asks for the usage of a chat's
        stream only if the client did; else it counts by a tokenizer of its own, as 1.106 does for a client
        that left (common_request_processing.py, _bill_partial_streamed_spend_on_disconnect)."""
        params = kwargs.get("litellm_params") or {}
        for metadata in (params.get("metadata"), params.get("litellm_metadata"), kwargs.get("metadata")):
            if metadata and metadata.get("client_disconnected"):
                return False
        if not kwargs.get("stream") or kwargs.get("call_type") not in ("acompletion", "atext_completion"):
            return True
        options = (kwargs.get("optional_params") or {}).get("stream_options") or {}
        if options.get("include_usage"):
            return True
        import litellm

        asks = (
            litellm.get_supported_openai_params(kwargs.get("model"), kwargs.get("custom_llm_provider")) or ()
        )
        return "stream_options" not in asks

    # -- LiteLLM's own counters

    @staticmethod
    def same_call(call: Any, data: Mapping[str, Any]) -> bool:
        """Whether these arguments of a hook are of the call that LiteLLM made this object for: some hooks get
        it, some its `model_call_details`."""
        other = data.get("litellm_logging_obj")
        return getattr(call, "model_call_details", data) is data if other is None else other is call

    def counts_alone(self) -> bool:
        """Whether the router keeps its counters in memory: nobody else can compare them."""
        return getattr(getattr(self.router, "cache", None), "redis_cache", None) is None

    def localize_caches(self, router: Any) -> None:
        """Our share must be compared with this process's usage, not with the fleet's: memory only."""
        try:
            from litellm.caching.caching import DualCache
        except ImportError:
            return self.problem(
                "caches", "litellm.caching.caching.DualCache is missing: shares compared with totals"
            )
        self.problem("caches", None)
        handler = getattr(router, "lowesttpm_logger_v2", None)
        checks = getattr(router, "optional_callbacks", None) or []
        checks = [check for check in checks if type(check).__name__ == "ModelRateLimitingCheck"]
        missing = handler is not None and not hasattr(handler, "router_cache")
        text = "lowesttpm_logger_v2.router_cache is missing: shares compared with fleet totals"
        self.problem("v2", text if missing else None)
        missing = not all(hasattr(check, "dual_cache") for check in checks)
        text = "ModelRateLimitingCheck.dual_cache is missing: shares compared with totals"
        self.problem("check", text if missing else None)
        targets = [(handler, "router_cache"), (handler, "dual_cache")] if handler is not None else []
        targets += [(check, "dual_cache") for check in checks]
        local: dict[int, Any] = {}
        for owner, name in targets:
            if hasattr(owner, name) and not any(o is owner and n == name for o, n, _ in self.caches):
                fleets = getattr(owner, name)
                self.caches.append((owner, name, fleets))
                setattr(owner, name, local.setdefault(id(owner), own_counters(DualCache, fleets)))
        return None

    def restore_caches(self) -> None:
        for owner, name, original in self.caches:
            setattr(owner, name, original)
        self.caches = []


# The parts of a key that no share stands for: RouterCacheEnum in LiteLLM's types/router.py (1.106.2).
FLEETS_OWN = (":itpm:", ":otpm:")


def own_counters(dual_cache: Any, fleets: Any) -> Any:
    """Counters of this process alone, in LiteLLM's class; what counts for `itpm` and `otpm` stays the
    fleet's."""

    class OwnCounters(dual_cache):  # type: ignore[misc]
        def increment_cache(self, key: str, *args: Any, **kwargs: Any) -> Any:
            owner: Any = fleets if any(part in key for part in FLEETS_OWN) else super()
            return owner.increment_cache(key, *args, **kwargs)

        async def async_increment_cache(self, key: str, *args: Any, **kwargs: Any) -> Any:
            owner: Any = fleets if any(part in key for part in FLEETS_OWN) else super()
            return await owner.async_increment_cache(key, *args, **kwargs)

    return OwnCounters()


# ---------------------------------------------------------------- hooks

PASSED_THROUGH = "pass_through_endpoint"
BATCHES = ("acreate_batch", "create_batch")
# What Router.deployment_callback_on_success leaves out.
NOT_COUNTED = ("_aresponses_websocket", "_arealtime")


def tokens_of_passed(kwargs: Data, logged: Mapping[str, Any]) -> int:
    """What a provider's answer to a pass-through route says that it used; 0 if that can't be read."""
    body = (kwargs.get("passthrough_logging_payload") or {}).get("response_body")
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return int(logged.get("total_tokens") or 0)
    parts = (usage.get("input_tokens") or 0) + (usage.get("output_tokens") or 0)
    return int(usage.get("total_tokens") or parts)


class Hooks(CustomLogger):  # type: ignore[misc]
    """What LiteLLM calls, in this order for each attempt; a fault falls through to LiteLLM's own
    behaviour."""

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.agent = agent

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: Data, call_type: Any, **_: Any
    ) -> None:
        """At the proxy's door: the only hook that sees an embedding's input before the router."""
        try:
            self.agent.at_the_door(data, str(call_type))
            if self.agent.adapter.skips_filter(data.get("model")):
                _unfiltered.set(self.agent.called(data))
        except Exception as error:
            self.agent.fault("pre-call hook", error)

    async def async_filter_deployments(
        self,
        model: str,
        healthy_deployments: list[Deployment],
        messages: Any,
        request_kwargs: Data | None = None,
        parent_otel_span: Any = None,
        **_: Any,
    ) -> list[Deployment]:
        try:
            return await self.filter(healthy_deployments, messages, request_kwargs or {})
        except Refused:
            raise
        except Exception as error:
            _request.set(UNREAD)
            self.agent.fault("filter", error)
            return healthy_deployments

    async def async_pre_call_check(
        self, deployment: Deployment, parent_otel_span: Any = None, **_: Any
    ) -> None:
        try:
            await self.check(deployment)
        except Refused:
            raise
        except Exception as error:
            self.agent.fault("check", error)

    async def async_pre_call_deployment_hook(self, kwargs: Data, call_type: Any, **_: Any) -> None:
        try:
            await self.before_call(kwargs, str(getattr(call_type, "value", call_type)))
        except Refused:
            raise
        except Exception as error:
            self.agent.fault("deployment hook", error)

    def log_pre_api_call(self, model: Any, messages: Any, kwargs: Data, **_: Any) -> None:
        """The last hook before the call leaves; LiteLLM swallows exceptions here, some providers call it in a
        thread."""
        try:
            if kwargs.get("call_type") == PASSED_THROUGH:
                return self.agent.went_past("passthrough", requests=1)
            attempt = self.agent.open_attempt(kwargs)
            if attempt is not None:
                self.agent.stamp(attempt, self.agent.clock.boot())
                if attempt.kind:
                    self.agent.stamps_known.add(attempt.kind)
        except Exception as error:
            self.agent.stamps_known.clear()  # what has no stamp may have left all the same
            self.agent.fault("stamp", error)
        return None

    async def async_log_success_event(
        self, kwargs: Data, response_obj: Any, start_time: Any, end_time: Any, **_: Any
    ) -> None:
        try:
            self.success(kwargs, response_obj)
        except Exception as error:
            self.agent.fault("success event", error)

    async def async_log_failure_event(
        self, kwargs: Data, response_obj: Any, start_time: Any, end_time: Any, **_: Any
    ) -> None:
        try:
            info = (kwargs.get("litellm_params") or {}).get("model_info") or {}
            attempt = self.agent.open_attempt(kwargs, str(info.get("id")))
            error = kwargs.get("exception")
            if attempt is not None and error is not None and not isinstance(error, Refused):
                self.agent.failed(attempt, error)
        except Exception as error:
            self.agent.fault("failure event", error)

    async def async_post_call_failure_deployment_hook(
        self,
        request_data: Mapping[str, Any],
        exception: Exception,
        call_type: Any,
        fallback_depth: int | None = None,
        **_: Any,
    ) -> None:
        """Once for each failed attempt (newer LiteLLM versions)."""
        try:
            attempt = self.agent.open_attempt(request_data)
            if attempt is not None:
                self.agent.failed(attempt, exception)
        except Exception as error:
            self.agent.fault("failure hook", error)

    async def async_post_call_failure_hook(
        self,
        request_data: Data,
        original_exception: Exception,
        user_api_key_dict: Any,
        traceback_str: str | None = None,
        **_: Any,
    ) -> None:
        """The request has finally failed: nothing of it stays reserved."""
        try:
            still = self.agent.open_attempts(request_data)
            for attempt in still:  # what it failed with is what became of the last attempt
                last = attempt is still[-1] and not isinstance(original_exception, Refused)
                self.agent.failed(attempt, original_exception if last else None)
        except Exception as error:
            self.agent.fault("final failure hook", error)

    # -- what they do

    async def filter(self, deployments: list[Deployment], messages: Any, kwargs: Data) -> list[Deployment]:
        agent = self.agent
        if not agent.governors or not isinstance(deployments, list) or not deployments:
            return deployments
        if agent.pid != os.getpid():
            restart_after_fork()
        previous = _request.request()
        called = agent.called(kwargs, previous.called if previous else None)
        again = previous is not None and previous.call_id == called.call_id
        tried = previous.attempt if previous else None
        if again and tried is not None:  # this is the next attempt of the same request
            if not tried.stamped and agent.never_left(tried):
                agent.end(tried, never_sent=True)
        governed = [(d, agent.adapter.books_of(d)) for d in deployments]
        if not any(books for _, books in governed):
            _called.set(called)
            return deployments
        request = Request(called, kwargs, messages)
        if not again and tried is None:
            request.parent = previous  # a call inside a call (LiteLLM's compaction)
        asked = [(d, agent.needs(request, d, books)) for d, books in governed]
        request.needs = {model_id(d): needs for d, needs in asked}
        while True:
            boot, wall = agent.clock.boot(), agent.clock.wall()
            agent.tick(boot)
            with agent.lock:
                fitting = [(d, needs) for d, needs in asked if agent.fits(needs, boot, wall)]
            if fitting:
                break
            held = [agent.held(needs, boot, wall) for _, needs in asked]
            wanting = [n for n in held if all(amount <= book.budget for book, amount in n)]
            if not wanting or not await agent.wait_for_room(wanting, request):
                raise agent.refusal(request.call_id, held)
        if len(fitting) < len(asked):
            self.ask_for([needs for d, needs in asked if all(d is not kept for kept, _ in fitting)])
        _request.set(request)
        if agent.failing("check"):  # nothing is reserved: LiteLLM enforces the share
            return [d for d, _ in fitting]
        return [self.lifted(d, needs, boot, wall) for d, needs in fitting]

    def ask_for(self, dropped: list[Needs]) -> None:
        """Another deployment takes this request; the ledger may still have room for the ones that were
        dropped."""
        with self.agent.lock:
            for needs in dropped:
                for book, amount in needs:
                    book.pending = max(book.pending, amount)
        self.agent.draw()

    def lifted(self, deployment: Deployment, needs: Needs, boot: float, wall: float) -> Deployment:
        """A copy for this request only, whose own limit LiteLLM will not reach. LiteLLM counts by calendar
        minute and when a call ends, so with long calls, or after the grant moved, it would refuse what the
        ring admits."""
        copy = None
        for book, _ in needs:
            if book.governor.acting(boot, wall) == "enforce":
                copy = copy or dict(deployment)
                copy["tpm" if book.unit == "tokens" else "rpm"] = LIFTED
        return copy or deployment

    async def check(self, deployment: Deployment) -> None:
        """Reserves on the deployment that was picked."""
        agent = self.agent
        request = _request.get()
        if not agent.governors or not isinstance(deployment, dict) or request is UNREAD:
            return
        key = model_id(deployment)
        while request is not None and (request.attempt is not None or key not in request.needs):
            request = request.parent
        if request is None:  # the filter was skipped: the client named the deployment, or another strategy
            books = agent.adapter.books_of(deployment)
            if not books:
                return
            previous = _request.request()
            called = _unfiltered.get() or (previous.called if previous else _called.get())
            request = Request(called or agent.called({}), {}, None)
            request.needs = {key: agent.needs(request, deployment, books)}
            _request.set(request)
        needs = request.needs[key]
        if not needs:
            return
        while agent.reserve(request, deployment, needs) is None:
            held = agent.held(needs, agent.clock.boot(), agent.clock.wall())
            if any(amount > book.budget for book, amount in held) or not await agent.wait_for_room(
                [held], request
            ):
                raise agent.refusal(request.call_id, [held or needs])

    async def before_call(self, kwargs: Data, call_type: str) -> None:
        """Admits again what was reserved too long ago: the process may have been frozen in between."""
        agent = self.agent
        attempt = agent.open_attempt(kwargs)
        if attempt is None or attempt.stamped:
            return
        attempt.hooked, attempt.kind = True, call_type
        attempt.call = weakly(kwargs.get("litellm_logging_obj")) or attempt.call
        boot, wall = agent.clock.boot(), agent.clock.wall()
        if boot - attempt.reserved <= STALE_CHECK or not attempt.charges:
            return
        needs = [(book, charge.amount) for book, charge in attempt.charges]
        until = boot + LATE_WAIT
        while True:
            with agent.lock:
                if agent.fits([(book, 0) for book, _ in needs], boot, wall):  # its own charge is in `spent`
                    return
            if boot >= until:
                agent.end(attempt, never_sent=True)
                raise agent.refusal(attempt.call_id, [agent.held(needs, boot, wall)], RefusedLate)
            agent.draw()
            await asyncio.sleep(0.1)
            boot, wall = agent.clock.boot(), agent.clock.wall()
            agent.tick(boot)

    def success(self, kwargs: Data, response: Any) -> None:
        agent = self.agent
        logged = kwargs.get("standard_logging_object") or {}
        call_type = kwargs.get("call_type")
        if call_type == PASSED_THROUGH:
            return agent.went_past("passthrough", tokens=tokens_of_passed(kwargs, logged))
        if call_type in BATCHES:
            agent.went_past("batch", requests=1)
        deployment = logged.get("model_id") or (
            (kwargs.get("litellm_params") or {}).get("model_info") or {}
        ).get("id")
        books = agent.adapter.matched.get(str(deployment))
        if books and call_type not in NOT_COUNTED:
            agent.count(books, within_reason(logged.get("total_tokens") or 0))
        # A fallback's usage is not that of another deployment's attempt.
        attempt = agent.open_attempt(kwargs, str(deployment) if deployment else None, copied=True)
        if attempt is None:
            return None
        if kwargs.get("cache_hit") is True:
            return agent.end(attempt, never_sent=True)  # answered from LiteLLM's cache
        total = logged.get("total_tokens")
        prompt, output = logged.get("prompt_tokens") or 0, logged.get("completion_tokens") or 0
        if total and not agent.adapter.was_reported(kwargs):
            total = None  # LiteLLM's own count of what was streamed: the charge stays as it was reserved
        agent.end(attempt, total=within_reason(total) if total else None)
        if total:
            learned = agent.learned.setdefault(attempt.model, Learned())
            learned.learn(
                attempt.chars, attempt.overhead, within_reason(prompt), within_reason(output) // attempt.n
            )


# ---------------------------------------------------------------- start and end

_agent: Agent | None
_ledger: Ledger | None
_agent = _ledger = None


def start() -> None:
    """The worker startup hook: runs in every worker process before the config is loaded. Never raises."""
    global _agent, _ledger
    try:
        if not log.handlers and not logging.getLogger().handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            log.addHandler(handler)
            log.propagate = False
        if _agent is not None and _agent.pid == os.getpid():
            return
        _agent = Agent()
        _agent.adapter = Adapter(_agent, Hooks(_agent))
        _agent.adapter.register()
        _ledger = Ledger(_agent)
        _ledger.read_policies()
        _ledger.start()
        atexit.register(leave)
        try:
            _agent.watcher = asyncio.get_running_loop().create_task(watch(_agent))
        except RuntimeError:
            _agent.adapter.problem("loop", "the startup hook ran outside of an event loop: not enforcing")
    except Exception:
        if _agent is not None:
            _agent.governors.clear()  # nothing would ever be lent to it
        log.exception("tokenbudget: the agent could not start, LiteLLM runs without it")


async def watch(agent: Agent) -> None:
    """A light loop beside LiteLLM: sees stalls of the event loop, keeps the callback registered and shares
    written. Looks every TURN while a request is on its way out, else when it is roused or has to."""
    next_refresh = 0.0
    while True:
        now = agent.clock.boot()
        try:
            agent.tick(now, turn=True)
            if agent.adapter.dirty or now >= next_refresh:
                next_refresh = now + REFRESH
                agent.watch_leases(now, agent.clock.wall())
                agent.adapter.refresh()
            elif agent.adapter.router is None:
                agent.adapter.register()
        except Exception as error:
            agent.fault("watch", error)
        if not agent.may_rest(now):
            await asyncio.sleep(TURN)
            continue
        agent.resting = asyncio.get_running_loop().create_future()
        soon = agent.adapter.router is None or agent.adapter.dirty  # another thread may have said so just now
        await asyncio.wait([agent.resting], timeout=TURN if soon else max(TURN, next_refresh - now))
        agent.resting = None


def leave() -> None:
    """The final call. Not at SIGTERM: the process still serves then."""
    if _ledger is not None:
        try:
            _ledger.leave()
        except Exception:
            log.exception("tokenbudget: the final call failed")


def restart_after_fork() -> None:
    """A forked process is a new member with nothing lent to it."""
    global _ledger
    agent: Agent | MaybeNone = _agent
    agent.resting = None  # of a loop that goes on in the other process
    with agent.lock:
        agent.reset_identity()
        policies = [governor.policy for governor in agent.governors.values()]
        now = agent.clock.boot()
        agent.governors = {policy["uid"]: Governor(policy, now) for policy in policies}
        agent.adapter.changed()
    agent.last_tick = None
    _ledger = Ledger(agent)
    _ledger.start()
    agent.watcher = asyncio.get_running_loop().create_task(watch(agent))
