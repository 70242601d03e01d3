"""Requests that wait for room: first come, first served, none longer than its `maxWait`."""

from __future__ import annotations

import asyncio
import itertools
import math
import operator
from collections.abc import Iterable

from .agent import Agent
from .book import Book
from .constants import RECHECK
from .request import Request
from .shapes import Needs


class Waiter:
    """A request that waits for room in all the books of one of its ways, which are the deployments that
    would do."""

    __slots__ = ("ways", "place", "future", "promised")
    ways: list[Needs]
    place: int  # in the order of arrival
    future: asyncio.Future[None]
    promised: Needs  # when it is its turn: nobody else gets this

    def __init__(self, ways: list[Needs], place: int, future: asyncio.Future[None]) -> None:
        self.ways, self.place, self.future, self.promised = ways, place, future, []


by_place = operator.attrgetter("place")


class Waiting:
    """The requests that wait. Room is promised to them in the order in which they came, to each that fits
    beside those before it, and only these are woken. Who comes later gets what is not promised. Who needs
    more than there is holds nobody up: no room is idle while a request that fits waits."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.waiters: set[Waiter] = set()
        self.queues: dict[Book, dict[Waiter, list[float]]] = {}  # what each of them needs of it
        self.promised: dict[Book, float] = {}
        self.places = itertools.count()
        self.looked = -1e9

    async def for_room(self, ways: list[Needs], request: Request) -> bool:
        """Asks the ledger and waits for an answer, for the end of another request, or for tokens to leave the
        window. False when the time is over."""
        agent, now = self.agent, self.agent.clock.boot()
        if request.deadline is None:
            waits = [book.governor.max_wait for needs in ways for book, _ in needs]
            request.deadline, request.place = now + max(waits or [0]), next(self.places)
            if request.deadline > now:
                self.count(ways)
        if request.deadline <= now:
            self.ask(ways)
            return False
        future, served = asyncio.get_running_loop().create_future(), False
        waiter = Waiter(ways, request.place, future)
        try:
            self.enter(waiter)
            agent.draw()
            while not future.done() and now < request.deadline:
                await asyncio.wait([future], timeout=min(request.deadline - now, RECHECK))
                now = agent.clock.boot()
                if now - self.looked >= RECHECK / 2 and not future.done():
                    self.wake()  # one of them looks for all
            served = True
        finally:
            promised = self.leave(waiter)
            if not served:  # its client left: it is the turn of others
                self.wake([book for book, _ in promised])
        return True

    def ask(self, ways: list[Needs]) -> None:
        """Of the ledger, for what does not wait: a draw may still have room for it when it comes again."""
        with self.agent.lock:
            for needs in ways:
                for book, amount in needs:
                    book.pending = max(book.pending, amount)
        self.agent.draw()

    def count(self, ways: list[Needs]) -> None:
        """A request that waits, for each limit that has no room for it."""
        agent = self.agent
        boot, wall, minute = agent.clock.boot(), agent.clock.wall(), agent.minute()
        with agent.lock:
            full = {
                (book.governor, book.limit)
                for needs in ways
                for book, amount in needs
                if not book.fits(amount + self.promised.get(book, 0), boot, wall)
            }
            for governor, limit in full:
                governor.tally(limit).counts.add(minute, waited=1)

    # -- what the ledger is asked for

    def wants(self, books: Iterable[Book]) -> bool:
        """Whether a draw would ask for something."""
        return any(book in self.queues or book.pending for book in books)

    def wanted(self, book: Book) -> tuple[float, float]:
        """What waiting requests and refusals need of this book: all of them, and the smallest."""
        amounts = [amount for needed in self.queues.get(book, {}).values() for amount in needed]
        if book.pending:
            amounts.append(book.pending)
        return sum(amounts), min(amounts, default=0)

    # -- whose turn it is

    def enter(self, waiter: Waiter) -> None:
        boot, wall = self.agent.clock.boot(), self.agent.clock.wall()
        with self.agent.lock:
            self.waiters.add(waiter)
            for needs in waiter.ways:
                for book, amount in needs:
                    self.queues.setdefault(book, {}).setdefault(waiter, []).append(amount)
            if self.promise(waiter, {}, boot, wall):
                finish(waiter.future)

    def leave(self, waiter: Waiter) -> Needs:
        """What had been promised to it."""
        with self.agent.lock:
            self.waiters.discard(waiter)
            for needs in waiter.ways:
                for book, _ in needs:
                    queue = self.queues.get(book, {})
                    queue.pop(waiter, None)
                    if not queue:
                        self.queues.pop(book, None)
            return self.take_back(waiter)

    def wake(self, books: Iterable[Book] | None = None) -> None:
        """There may be room in these books (None: in any), as an answer came or a request ended. Wakes those
        whose turn it is."""
        boot, wall = self.agent.clock.boot(), self.agent.clock.wall()
        with self.agent.lock:
            if books is None:
                self.looked, found = boot, self.waiters
            else:
                found = {waiter for book in books for waiter in self.queues.get(book, ())}
            order = sorted(found, key=by_place)
            for waiter in order:
                if waiter.promised:
                    self.take_back(waiter)
            rooms: dict[Book, float] = {}
            woken = [waiter.future for waiter in order if self.promise(waiter, rooms, boot, wall)]
        for future in woken:
            finish(future)

    def promise(self, waiter: Waiter, rooms: dict[Book, float], boot: float, wall: float) -> bool:
        """Whether it is the waiter's turn. `rooms`: of the books, each looked up once."""
        for needs in waiter.ways:
            for book, amount in needs:
                room = rooms.get(book)
                if room is None:
                    enforced = book.governor.acting(boot, wall) == "enforce"
                    room = rooms[book] = book.room(boot, wall) if enforced else math.inf
                if amount + self.promised.get(book, 0) > room + 1e-6:
                    break
            else:
                waiter.promised = needs
                for book, amount in needs:
                    self.promised[book] = self.promised.get(book, 0) + amount
                return True
        return False

    def take_back(self, waiter: Waiter) -> Needs:
        promised, waiter.promised = waiter.promised, []
        for book, amount in promised:
            left = self.promised.pop(book, 0) - amount
            if left > 1e-6:
                self.promised[book] = left
        return promised

    def ask_again(self) -> None:
        """What they wait for is another: all of them look again."""
        with self.agent.lock:
            futures = [waiter.future for waiter in self.waiters]
        for future in futures:
            finish(future)


def finish(future: asyncio.Future[None]) -> None:
    """Ends what waits for it, from whichever thread."""
    try:
        future.get_loop().call_soon_threadsafe(lambda: future.done() or future.set_result(None))  # type: ignore[func-returns-value]
    except RuntimeError:
        pass  # its loop is closed
