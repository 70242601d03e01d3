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

    __slots__ = ("ways", "place", "future", "deadline", "promised", "told")
    ways: list[Needs]
    place: int  # in the order of arrival
    future: asyncio.Future[None]
    deadline: float
    promised: Needs  # when it is its turn: nobody else gets this
    told: bool  # its future ends: once is enough, also if it looks again only later

    def __init__(
        self, ways: list[Needs], place: int, future: asyncio.Future[None], deadline: float = math.inf
    ) -> None:
        self.ways, self.place, self.future, self.deadline = ways, place, future, deadline
        self.promised, self.told = [], False


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
        # What was free of it when all in its queue had looked. Who did not fit then does not fit into less.
        self.rest: dict[Book, float] = {}
        self.places, self.newest = itertools.count(), -math.inf
        self.looked = -1e9
        self.watched: set[asyncio.AbstractEventLoop] = set()  # those with a timer that looks for all

    async def for_room(self, ways: list[Needs], request: Request) -> bool:
        """Asks the ledger and waits for an answer, for the end of another request, or for tokens to leave the
        window. False when the time is over."""
        agent, now = self.agent, self.agent.clock.boot()
        if request.deadline is None:
            full = self.full(ways)
            request.deadline, request.place = now + longest(ways, full), next(self.places)
            if request.deadline > now:
                self.count(full)
        if request.deadline <= now:
            self.ask(ways)
            return False
        future, served = asyncio.get_running_loop().create_future(), False
        waiter = Waiter(ways, request.place, future, request.deadline)
        try:
            self.enter(waiter)
            agent.draw()
            self.watch(future.get_loop())
            await asyncio.wait([future], timeout=request.deadline - now)
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

    def full(self, ways: list[Needs]) -> list[list[Book]]:
        """Of each way the books that have no room for it."""
        boot, wall = self.agent.clock.boot(), self.agent.clock.wall()
        with self.agent.lock:
            return [
                [book for book, n in needs if not book.fits(n + self.promised.get(book, 0), boot, wall)]
                for needs in ways
            ]

    def count(self, full: list[list[Book]]) -> None:
        """A request that waits, for each limit that has no room for it."""
        minute = self.agent.minute()
        with self.agent.lock:
            for governor, limit in {(book.governor, book.limit) for books in full for book in books}:
                governor.tally(limit).counts.add(minute, waited=1)

    # -- who looks whether tokens have left the window

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """One timer for all that wait in this event loop."""
        with self.agent.lock:
            if loop in self.watched:
                return
            self.watched = {one for one in self.watched if not one.is_closed()} | {loop}
        loop.call_later(RECHECK, self.look, loop)

    def look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = self.agent.clock.boot()
        try:
            if now - self.looked >= RECHECK / 2:  # else another loop's timer just did
                self.wake()
            with self.agent.lock:  # the loop's clock stands still while the machine is suspended
                late = [one for one in self.waiters if one.deadline <= now]
            self.tell(late)
        except Exception as error:
            self.agent.fault("waiting", error)
        with self.agent.lock:
            if not any(one.future.get_loop() is loop for one in self.waiters):
                self.watched.discard(loop)
                return
        loop.call_later(RECHECK, self.look, loop)

    # -- what the ledger is asked for

    def wants(self, books: Iterable[Book]) -> bool:
        """Whether a draw would ask for something."""
        return any(book in self.queues or book.pending for book in books)

    def wanted(self, book: Book) -> tuple[float, float]:
        """What waiting requests and refusals need of this book: all of them, and the smallest. Each takes
        one of its ways only."""
        needed = list(self.queues.get(book, {}).values())
        if book.pending:
            needed.append([book.pending])
        return sum(map(max, needed)), min(map(min, needed), default=0)

    # -- whose turn it is

    def enter(self, waiter: Waiter) -> None:
        boot, wall = self.agent.clock.boot(), self.agent.clock.wall()
        books = list(dict.fromkeys(book for needs in waiter.ways for book, _ in needs))
        with self.agent.lock:
            self.waiters.add(waiter)
            for needs in waiter.ways:
                for book, amount in needs:
                    self.queues.setdefault(book, {}).setdefault(waiter, []).append(amount)
            again, self.newest = waiter.place < self.newest, max(self.newest, waiter.place)
            if again and any(
                one.promised and one.place > waiter.place for book in books for one in self.queues[book]
            ):
                return self.wake(books)  # it comes before who was promised this meanwhile
            rooms: dict[Book, float] = {}
            if self.promise(waiter, rooms, boot, wall):
                self.tell([waiter])
            else:
                self.lower(rooms)

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
                        self.rest.pop(book, None)
            return self.take_back(waiter)

    def stir(self, books: list[Book], boot: float, wall: float) -> bool:
        """Wakes those whose turn it is, if one of these books has more than when all looked last; whether it
        has. It costs as much as requests wait. (One that waits for another book, too, may have to wait for
        the timer.)"""
        with self.agent.lock:
            more = any(
                book in self.queues and self.free(book, boot, wall) > self.rest.get(book, -math.inf) + 1e-6
                for book in books
            )
        if more:
            self.wake(books)
        return more

    def wake(self, books: list[Book] | None = None) -> None:
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
            woken = [waiter for waiter in order if self.promise(waiter, rooms, boot, wall)]
            self.lower(rooms)
            for book in self.queues if books is None else books:
                if book in self.queues:
                    self.rest[book] = self.free(book, boot, wall)
        self.tell(woken)

    def tell(self, waiters: Iterable[Waiter]) -> None:
        with self.agent.lock:
            new = [waiter for waiter in waiters if not waiter.told]
            for waiter in new:
                waiter.told = True
        for waiter in new:
            finish(waiter.future)

    def lower(self, rooms: dict[Book, float]) -> None:
        """Somebody did not fit into these rooms."""
        for book, room in rooms.items():
            if book in self.rest:
                self.rest[book] = min(self.rest[book], room - self.promised.get(book, 0))

    def room(self, book: Book, boot: float, wall: float) -> float:
        return book.room(boot, wall) if book.governor.acting(boot, wall) == "enforce" else math.inf

    def free(self, book: Book, boot: float, wall: float) -> float:
        """What is not promised, either."""
        return self.room(book, boot, wall) - self.promised.get(book, 0)

    def promise(self, waiter: Waiter, rooms: dict[Book, float], boot: float, wall: float) -> bool:
        """Whether it is the waiter's turn. `rooms`: of the books, each looked up once."""
        for needs in waiter.ways:
            for book, amount in needs:
                room = rooms.get(book)
                if room is None:
                    room = rooms[book] = self.room(book, boot, wall)
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
            every = list(self.waiters)
        self.tell(every)


def longest(ways: list[Needs], full: list[list[Book]]) -> float:
    """How long to wait for one of the ways: none of its books that are full (no book is: there is room since)
    is waited for longer than its `maxWait`."""
    waits = [
        min((book.governor.max_wait for book in books or [book for book, _ in needs]), default=0.0)
        for needs, books in zip(ways, full)
    ]
    return max(waits, default=0.0)


def finish(future: asyncio.Future[None]) -> None:
    """Ends what waits for it, from whichever thread."""
    try:
        future.get_loop().call_soon_threadsafe(lambda: future.done() or future.set_result(None))  # type: ignore[func-returns-value]
    except RuntimeError:
        pass  # its loop is closed
