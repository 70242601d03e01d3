"""All TokenBudgets of this process: admission over several books, reservations, refusals."""

from __future__ import annotations

import asyncio
import copy
import math
import os
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from .adapter import Adapter
from .book import Book
from .calls import Calls
from .clock import Clock
from .constants import (
    ATTEMPT_BOUND,
    MARGIN,
    NAMED_DEPLOYMENTS,
    STALL,
    UNSENT_BOUND,
    log,
)
from .counts import Outside
from .drift import Drift
from .estimates import ASKED, UNSAID, Estimates
from .governor import Governor
from .refusal import Refused, is_of_the_proxy, never_connected
from .request import Attempt, Called, Request, _request, call_key, model_id, weakly
from .ring import Ring
from .shapes import Data, Deployment, MaybeNone, Needs
from .waiting import Waiting, finish


class Agent:
    """Everything this process knows. `lock` guards the books: hooks run in the event loop, some in executor
    threads,
    answers are applied by the ledger's thread."""

    env: Mapping[str, str]
    governors: dict[str, Governor]
    attempts: dict[str | None, list[Attempt]]  # the open ones; no key is None, but some ask for it
    stamps_known: set[tuple[str, str]]
    connections: float  # at most, to one host
    faults: dict[str, tuple[float, str]]
    logged: dict[str, float]
    last_tick: float | None
    recent: set[Ring]  # those that were stamped lately: all that a stall may concern, and perhaps some more
    resting: asyncio.Future[None] | None
    draw: Callable[[], None]
    adapter: Adapter | MaybeNone

    def __init__(self, clock: Clock | None = None, environ: Mapping[str, str] | None = None) -> None:
        self.clock, self.env = clock or Clock(), os.environ if environ is None else environ
        self.lock = threading.RLock()
        self.governors, self.attempts = {}, {}
        self.estimates = Estimates(lambda *of: self.adapter.max_output(*of) if self.adapter else None)
        self.waiting = Waiting(self)
        self.stamps_known = set()  # call types and models that were seen to pass log_pre_api_call
        self.calls, self.connections, self.overdue = Calls(), math.inf, 0
        self.faults, self.logged = {}, {}
        self.drift, self.outside = Drift(), Outside()
        self.last_tick, self.last_sweep = None, 0.0
        self.recent = set()
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
                self.forget_recent(last)
                for ring in self.recent:
                    ring.stall(last - MARGIN, now, turn)
        if now - self.last_sweep > 1:
            self.last_sweep = now
            self.sweep(now)

    def may_rest(self, now: float) -> bool:
        """Whether no turn of the event loop needs to be measured: nothing is on its way out."""
        with self.lock:
            return not self.attempts and not any(ring.may_stall(now) for ring in self.recent)

    def forget_recent(self, tick: float) -> None:
        """`tick`: the last one, from which on the next stall is measured."""
        self.recent = {ring for ring in self.recent if ring.may_stall(tick)}

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
        found["limits"] = []
        for limit in sorted({limit for limit, _ in governor.books}):
            if (governor.uid, limit) in named:
                deployments = sorted(named[governor.uid, limit])[:NAMED_DEPLOYMENTS]
                with self.lock:  # for each: there may be many
                    figures = governor.tally(limit).figures(minute)
                found["limits"].append({"name": limit, "deployments": deployments, **figures})
        with self.lock:
            outside = self.outside.figures(now)
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
            call, call_id = data.get("litellm_logging_obj"), data.get("litellm_call_id") or ""
            asked = {name: data[name] for name in (*ASKED, *UNSAID.intersection(data)) if name in data}
            known = None if call is None else self.calls.came(call, data)
            self.calls.bodies[key] = Called(call_id, known, (self.clock.boot(), asked, call_type))

    def called(self, data: Data, previous: Called | None = None) -> Called:
        """Whose call `data` is, with what the client sent, which is kept no longer than this."""
        call_id = data.get("litellm_call_id") or uuid.uuid4().hex
        call, came, body = data.get("litellm_logging_obj"), self.calls.take(data), None
        if came is not None:
            if came.call_id == call_id:
                return came
            body = came.body
        elif previous is not None and previous.call_id == (data.get("litellm_call_id") or ""):
            body = previous.body  # another attempt of the same request, or one of which no id is known at all
        return Called(call_id, weakly(call), body, made_up=not data.get("litellm_call_id"))

    def sweep(self, now: float) -> None:
        """No admission hangs on it, nor one half of it on the other."""
        for part in (self.calls.sweep, self.sweep_attempts):
            try:
                part(now)
            except Exception as error:
                self.fault("sweep", error)

    def sweep_attempts(self, now: float) -> None:
        with self.lock:
            for attempt in [a for attempts in self.attempts.values() for a in attempts]:
                if attempt.forgotten() or now - attempt.reserved > ATTEMPT_BOUND:
                    self.failed(attempt, None)
                elif not attempt.stamped and now - attempt.reserved > UNSENT_BOUND:
                    attempt.overdue = not attempt.hooked
                    self.stamp(attempt, now)
            self.forget_recent(now if self.last_tick is None else self.last_tick)
            self.overdue = sum(all(a.overdue for a in attempts) for attempts in self.attempts.values())

    # -- needs and admission

    def needs(self, request: Request, deployment: Deployment, books: list[Book]) -> Needs:
        return [(book, self.estimates.need(request, deployment, book)) for book in books]

    def fits(self, needs: Needs, boot: float, wall: float) -> bool:
        """Beside what is promised to those that wait. What needs 0 is reserved already, and comes before."""
        promised = self.waiting.promised
        for book, amount in needs:
            before = promised.get(book, 0) if amount else 0
            if book.governor.acting(boot, wall) == "enforce" and not book.fits(before + amount, boot, wall):
                return False
        return True

    def admits(self, request: Request, needs: Needs, boot: float, wall: float) -> bool:
        """Whether it fits; one that has not waited comes after those that do."""
        fits, waiting = self.fits(needs, boot, wall), self.waiting
        if fits and waiting.queues and request.deadline is None:
            if waiting.stir([book for book, _ in needs], boot, wall):
                fits = self.fits(needs, boot, wall)
        return fits

    def held(self, needs: Needs, boot: float, wall: float) -> Needs:
        """Those by which a call may be refused: a TokenBudget that observes has no say. All, if none has any
        more: a policy comes in another thread."""
        return [need for need in needs if need[0].governor.acting(boot, wall) == "enforce"] or needs

    def reserve(self, request: Request, deployment: Deployment, needs: Needs) -> Attempt | None:
        """All or nothing over the books; None when it does not fit."""
        boot, wall = self.clock.boot(), self.clock.wall()
        self.tick(boot)
        with self.lock:
            if not self.admits(request, needs, boot, wall):
                return None
            taken = needs
            observed = [need for need in needs if need[0].governor.acting(boot, wall) == "observe"]
            if observed and not all(book.fits(amount, boot, wall) for book, amount in observed):
                # Only what would have been admitted is in the ring.
                taken = [need for need in needs if need not in observed]
                for book, amount in observed:
                    book.denied.add(self.calls.key(request.called), amount, boot)
                    book.pending = max(book.pending, amount)
                self.draw()
            charges = []
            for book, amount in taken:
                charges.append((book, book.ring.charge(amount)))
                if book.denied.by_id:
                    book.denied.forget(self.calls.key(request.called))
            model = (deployment.get("litellm_params") or {}).get("model") or ""
            attempt = Attempt(request, model_id(deployment), model, charges, boot)
            self.attempts.setdefault(request.call_id, []).append(attempt)
            request.attempt = attempt
            return attempt

    def refusal(
        self, of: Called | Attempt, needs_list: list[Needs], kind: type[Refused] = Refused
    ) -> Refused:
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
                    one.denied.add(self.calls.key(of), need, boot)
        return kind.by(book, amount, seconds)

    # -- the life of an attempt

    def stamp(self, attempt: Attempt, now: float) -> None:
        """It leaves now. With more calls under way than there may be connections it may have to wait for one:
        then it is in no slot, and leaves no window, before it ends."""
        with self.lock:
            attempt.stamped = True
            if len(self.attempts) - self.overdue > self.connections and not attempt.overdue:
                return
            for book, charge in attempt.charges:
                book.ring.stamp(charge, now)
                self.recent.add(book.ring)

    def open_attempts(self, data: Mapping[str, Any], copied: bool = False) -> list[Attempt]:
        """Of the call that these arguments of a hook are of. Copied: LiteLLM may have copied them, to leave
        out what was said; then those with its call id, if none is known to be of it."""
        attempts = self.attempts.get(data.get("litellm_call_id"), [])
        return [attempt for attempt in attempts if attempt.is_of(data)] or (attempts if copied else [])

    def open_attempt(
        self, data: Mapping[str, Any], deployment: str | None = None, copied: bool = False
    ) -> Attempt | None:
        """The attempt that runs in this task, else the last one of this call."""
        request, known = _request.request(), False
        while request is not None:  # several may share one call of LiteLLM's (Router.abatch_completion)
            own = request.attempt
            if own is not None and own.call_id == data.get("litellm_call_id") and own.is_of(data):
                if not own.ended:
                    return own
                known = True
            request = request.parent
        if known:
            return None
        attempts = self.open_attempts(data, copied)
        if deployment is not None:
            attempts = [attempt for attempt in attempts if attempt.deployment == deployment]
        return attempts[-1] if attempts else None

    def answer(self, attempt: Attempt) -> None:
        """What it came to is known."""
        call = attempt.call and attempt.call()
        if call is not None:
            self.calls.answer(call, attempt)

    def sent_again(self, data: Mapping[str, Any]) -> bool:
        """Whether a call that has been answered leaves once more under the same admission (LiteLLM's MCP
        tools). No event will tell what this one uses: it is charged what the first one came to."""
        known = self.calls.answered.get(data.get("litellm_call_id"))  # type: ignore[arg-type]
        first = None if known is None else known.answered
        if first is None or not first.is_of(data):
            return False
        now, again = self.clock.boot(), copy.copy(first)
        with self.lock:
            again.charges = [(book, book.ring.charge(charge.amount)) for book, charge in again.charges]
            again.reserved, again.ended = now, False
            self.attempts.setdefault(again.call_id, []).append(again)
        self.stamp(again, now)
        return True

    def end(
        self,
        attempt: Attempt,
        total: float | None = None,
        least: float = 0,
        give_back: bool = False,
        never_sent: bool = False,
    ) -> None:
        """total: actual tokens, None when unknown; `least` it was at any rate. give_back: the provider did
        not count its tokens (a 429). never_sent: it did not reach the provider, so was no request either."""
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
                elif least > charge.amount and book.unit == "tokens":
                    book.ring.settle(charge, least, now)
                self.recent.add(book.ring)
            still = [a for a in self.attempts.get(attempt.call_id, ()) if not a.ended]
            if still:
                self.attempts[attempt.call_id] = still
            else:
                self.attempts.pop(attempt.call_id, None)
        if self.waiting.waiters:
            self.waiting.stir([book for book, _ in attempt.charges], now, self.clock.wall())

    def failed(self, attempt: Attempt, error: BaseException | None, began: bool = False) -> None:
        """An attempt that left counts, unless the provider refused it before its answer `began`, or was never
        reached. error: None if unknown; one of the proxy's own says nothing of an attempt that left, whose
        answer may still come."""
        if never_connected(error) or (not attempt.stamped and self.never_left(attempt)):
            self.end(attempt, never_sent=True)
        elif not is_of_the_proxy(error):
            self.end(attempt, give_back=not began and getattr(error, "status_code", None) == 429)
        elif not attempt.stamped:
            self.end(attempt)

    def never_left(self, attempt: Attempt) -> bool:
        return not attempt.hooked or attempt.kind in self.stamps_known
