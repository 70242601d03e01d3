"""One TokenBudget: its policy and its books."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .book import Book
from .constants import BACKOFF_MAX, BEAT_GAP, TOUCH
from .counts import ByMinute, Tally
from .request import model_id
from .shapes import Deployment, Policy


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
    reported: tuple[object, ...] | None  # what its last report was made of, but for the figures
    oldest: tuple[float, float] | None  # boot and wall time of the books' leases; None: nothing was ever lent

    def __init__(self, policy: Policy, now: float) -> None:
        self.uid, self.started, self.books = policy["uid"], now, {}
        self.tallies, self.figures = {}, {}
        self.last_call, self.next_beat, self.last_good = -1e9, 0.0, None
        self.reported, self.report_at = None, -1e9
        self.calls = ByMinute("beats", "draws")  # of the ledger
        self.down, self.backoff, self.retry_at = False, 0.0, -1e9  # down: its last call failed
        self.policy = {}
        self.update(policy, now)

    def update(self, policy: Policy, now: float) -> None:
        """Takes a new policy; books that stay keep what they hold, and of new ones nothing is known before
        now."""
        limits = policy.get("limits") or []
        given = [  # all that can be missing, before anything is changed
            (name, unit, amounts["budget"], amounts.get("safe", 0))
            for limit, name in [(limit, limit["name"]) for limit in limits]
            for unit, amounts in (("tokens", limit.get("tokens")), ("requests", limit.get("requests")))
            if amounts
        ]
        self.policy, self.limits = policy, limits
        self.name = policy.get("tokenBudget", self.uid)
        self.mode = policy.get("mode", "Enforce")
        self.reserve = policy.get("reserve", "MaxTokens")
        self.max_wait = policy.get("maxWaitMs", 250) / 1000
        self.lease = policy.get("leaseMs", 30000) / 1000
        self.beat = max(0.1, policy.get("beatMs", 500) / 1000)
        self.open_on_loss = policy.get("onLedgerLoss") == "Open"
        books = {}
        for name, unit, budget, safe in given:
            book = self.books.get((name, unit))
            if book is None:
                book = Book(name, unit, budget, safe, self.lease, now)
                book.governor = self
            book.lease, book.budget, book.safe = self.lease, budget, safe
            books[name, unit] = book
        if all(book.boot is None for book in books.values()):
            self.started = now
        self.books = books
        self.tallies = {
            name: tally for name, tally in self.tallies.items() if any(n == name for n, _ in books)
        }
        self.renewed()

    def renewed(self) -> None:
        """Leases were, or books came and went. Each request asks whether one is over: not of each book."""
        leases = [(book.boot, book.wall) for book in self.books.values() if book.boot is not None]
        self.oldest = (min(boot for boot, _ in leases), min(wall for _, wall in leases)) if leases else None

    def narrow(self, policy: Policy, boot: float, wall: float) -> None:
        """What the policy file says by now counts where it is less: in a book that was never answered, or not
        for a lease. There is nothing to spend of a limit that is gone."""
        safe = {
            (limit["name"], unit): limit[unit].get("safe", 0)
            for limit in policy.get("limits") or []
            for unit in ("tokens", "requests")
            if limit.get(unit)
        }
        for key, book in self.books.items():
            if not book.answered:
                book.safe = min(book.safe, safe.get(key, 0))
            elif key in safe and book.lease_over(boot, wall):
                book.off = min(book.off, safe[key])

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

    def back_off(self, now: float, chance: float) -> None:
        """A call has failed now; no two processes are to come back in step (chance: 0 to 1)."""
        self.down, self.backoff = True, min(BACKOFF_MAX, max(0.1, self.backoff * 2))
        self.retry_at = now + self.backoff * (0.5 + chance)

    def heard(self) -> None:
        self.down, self.backoff, self.retry_at = False, 0.0, -1e9

    def lost(self, boot: float, wall: float) -> bool:
        """The ledger has not answered for a lease, for any of the books that something was lent of."""
        if not self.books:
            return False
        if self.oldest is None:  # no lease to wait for
            return boot - self.started >= (min(TOUCH, self.lease) if self.open_on_loss else self.lease)
        return boot - self.oldest[0] >= self.lease or wall - self.oldest[1] >= self.lease

    def acting(self, boot: float, wall: float) -> str:
        """enforce, observe, or open (nothing is refused: LiteLLM's own limit holds)."""
        if self.mode == "Observe":
            return "observe"
        return "open" if self.open_on_loss and self.lost(boot, wall) else "enforce"


class Limits:
    """The limits of all TokenBudgets, by what a deployment spends from."""

    explicit: list[tuple[str, list[dict[str, Any]], list[Book]]]
    derived: dict[str, list[Book]]  # by identity

    def __init__(self, governors: Sequence[Governor]) -> None:
        self.explicit, self.derived = [], {}
        for governor in governors:
            for limit in governor.limits:
                both = [governor.books.get((limit["name"], unit)) for unit in ("tokens", "requests")]
                books = [book for book in both if book is not None]
                if limit.get("derived") is not None:
                    self.derived.setdefault(str(limit["derived"]), []).extend(books)
                else:
                    self.explicit.append((governor.uid, limit.get("models") or [], books))

    def match(self, deployment: Deployment, identity: str | None) -> tuple[list[Book], set[str]]:
        """(books, the TokenBudgets of which an explicit limit matched). Explicit limits beat derived ones."""
        params = deployment.get("litellm_params") or {}
        have = {
            "modelName": deployment.get("model_name"),
            "id": model_id(deployment),
            "litellmModel": params.get("model"),
            "apiBase": params.get("api_base"),
        }
        found: list[Book] = []
        named_by: set[str] = set()
        for uid, selectors, books in self.explicit:
            if any(
                selector and all(have.get(k) == v for k, v in selector.items() if v is not None)
                for selector in selectors
            ):
                found += books
                named_by.add(uid)
        return found or list(self.derived.get(identity or "", ())), named_by
