"""512 limits in one process: what a request and a turn of the event loop cost depends on the books that are
touched, and leases are judged as if each was looked at."""

import asyncio
import random

import pytest
from support.calls import attempt, done
from support.fake_operator import limit, policy

LIMITS = 512


def counted(monkeypatch, owner, name):
    """How often a method is called, in a list of one."""
    calls, method = [0], getattr(owner, name)

    def count(*args):
        calls[0] += 1
        return method(*args)

    monkeypatch.setattr(owner, name, count)
    return calls


@pytest.fixture
def own(agent, give):
    """The books of one limit of 512, from which every deployment spends."""
    (governor,) = agent.governors.values()
    limits = [limit(f"l{number}", requests=600) for number in range(LIMITS)]
    governor.update(policy(limits, maxWaitMs=0, onLedgerLoss="Open"), agent.clock.boot())
    for book in governor.books.values():
        give(book, 30_000)
    own = [governor.books["l7", unit] for unit in ("tokens", "requests")]
    agent.adapter.books_of = lambda deployment: own
    return own


def test_a_request_looks_at_the_leases_of_its_own_books(tb, agent, own, monkeypatch):
    looked = counted(monkeypatch, tb.Book, "lease_over")
    asyncio.run(attempt(tb, agent, "a", 1000))
    assert own[0].ring.spent > 1000
    assert looked[0] < 30


def test_a_stall_concerns_what_was_stamped_lately(tb, agent, own, clock, monkeypatch):
    stalled = counted(monkeypatch, tb.Ring, "stall")
    may = counted(monkeypatch, tb.Ring, "may_stall")
    agent.tick(clock.now, turn=True)
    asyncio.run(attempt(tb, agent, "a", 1000))
    for _ in range(10):
        clock.now += 0.3
        agent.tick(clock.now, turn=True)
        assert [slot.index for slot in own[0].ring.slots] == [int(clock.now / tb.SLOT)]
        done(tb, agent, "a", 900)
        assert not agent.may_rest(clock.now)
    assert stalled[0] == 10 * len(own)
    for _ in range(4):  # quick turns
        clock.now += 0.09
        agent.tick(clock.now, turn=True)
    assert agent.may_rest(clock.now)
    clock.now += 0.3
    agent.tick(clock.now, turn=True)
    assert stalled[0] == 10 * len(own)
    assert not agent.recent
    assert may[0] < 100


@pytest.mark.parametrize("seed", range(20))
def test_the_rings_of_late_are_all_that_a_stall_moves(tb, agent, own, clock, seed):
    """Against all rings, each time."""
    rng, (governor,) = random.Random(seed), agent.governors.values()
    books = list(governor.books.values())[:6]
    agent.adapter.books_of = lambda deployment: [rng.choice(books)]
    agent.tick(clock.now, turn=True)
    for number in range(200):
        clock.now += rng.choice((0.0, 0.01, 0.09, 0.11, 0.3, 2.0))
        last = agent.last_tick
        stalls = clock.now - last > tb.STALL
        before = {book: [(s.index, s.turns) for s in book.ring.slots] for book in books}
        turn = rng.random() < 0.5
        agent.tick(clock.now, turn=turn)
        for book, slots in before.items():
            expected = tb.Ring()
            for index, turns in slots:
                expected.slots.append(tb.Slot(index))
                expected.slots[-1].turns = turns
            if stalls:
                expected.stall(last - tb.MARGIN, clock.now, turn)
            now = [(s.index, s.turns) for s in book.ring.slots]
            assert now == [(s.index, s.turns) for s in expected.slots]
        assert agent.may_rest(clock.now) == (
            not agent.attempts and not any(b.ring.may_stall(clock.now) for b in books)
        )
        if rng.random() < 0.5:
            asyncio.run(attempt(tb, agent, str(number), 10))
            if rng.random() < 0.7:
                done(tb, agent, str(number), rng.choice((5, 50)))


@pytest.mark.parametrize("seed", range(20))
def test_a_lease_is_over_when_that_of_any_book_is(tb, clock, seed):
    """As `lost` was when it looked at each book."""
    rng = random.Random(seed)

    def looked_at_each(governor, boot, wall):
        answered = [book for book in governor.books.values() if book.boot is not None]
        if governor.books and not answered:
            bound = min(tb.TOUCH, governor.lease) if governor.open_on_loss else governor.lease
            return boot - governor.started >= bound
        return any(book.lease_over(boot, wall) for book in answered)

    governor = tb.Governor(policy([limit("l0")]), clock.boot())
    found = set()
    for _ in range(300):
        clock.now += rng.choice((0.5, 3.0, 20.0))
        clock.step += rng.choice((0.0, 0.0, 0.0, -40.0, 40.0))
        what = rng.random()
        if what < 0.2:
            names = rng.sample(["l0", "l1", "l2", "l3"], rng.randint(0, 3))
            loss = {"onLedgerLoss": rng.choice(("Open", "SafeShare")), "leaseMs": rng.choice((10000, 30000))}
            governor.update(policy([limit(name) for name in names], **loss), clock.boot())
        elif what < 0.7:
            for book in governor.books.values():
                state = rng.choice(("ok", "ok", "ok", "none"))
                sent = book.prepare(True, 0, 0, clock.boot(), clock.wall())
                book.apply(sent, [state, 9, 9, 9, 60000, 9])
            governor.renewed()
        boot, wall = clock.boot(), clock.wall()
        lost = governor.lost(boot, wall)
        assert lost == looked_at_each(governor, boot, wall)
        found.add(lost)
    assert found == {True, False}


def test_no_request_waits_until_all_books_of_a_call_are_prepared(tb, agent, give):
    (governor,) = agent.governors.values()
    governor.update(policy([limit(str(n)) for n in range(9)]), agent.clock.boot())
    ledger, free = tb.Ledger(agent), []

    class Watched:
        def __enter__(self):
            self.books = 0

        def __exit__(self, *_):
            free.append(self.books)

    def counts(book):
        prepare = book.prepare

        def prepared(*args):
            watched.books += 1
            return prepare(*args)

        return prepared

    watched = agent.lock = Watched()
    for book in governor.books.values():
        book.prepare = counts(book)
    ledger.prepare(governor, True, False)
    assert sum(free) == 9
    assert max(free) == 1
