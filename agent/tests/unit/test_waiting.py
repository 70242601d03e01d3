"""Requests that wait for room: first come, first served, and no room is idle while one that fits waits."""

import asyncio
import random
import threading
import time

import pytest
from support.calls import DEPLOYMENT, MESSAGES, attempt, books, reserve
from support.fake_operator import limit, policy

PROMPT = 19  # of support.calls' messages
LIMITS, WAITING = 512, 500


@pytest.fixture
def full(agent, give):
    """Its only book with a say has no room; requests wait long."""
    (governor,) = agent.governors.values()
    governor.max_wait = 30.0
    book = books(agent)["tokens"]
    give(book, 0)
    return book


def room(book, *needs):
    """As much as these requests need; nobody is told."""
    book.grant = book.share = int(book.ring.spent + sum(need + PROMPT for need in needs))


class Run:
    """Requests, each in a task of its own, and the order in which they were let through."""

    def __init__(self, tb, agent):
        self.tb, self.agent, self.order, self.tasks = tb, agent, [], {}

    async def ask(self, name, need):
        await attempt(self.tb, self.agent, name, need)
        self.order.append(name)

    async def begin(self, name, need):
        """It waits, or is let through."""
        task = self.tasks[name] = asyncio.ensure_future(self.ask(name, need))
        waiting = len(self.agent.waiting.waiters)
        await until(lambda: task.done() or len(self.agent.waiting.waiters) > waiting)
        return task

    async def settle(self):
        """Until whoever was woken has come to rest; shorter than the time after which they look again."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def end(self):
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        assert not self.agent.waiting.waiters
        assert not self.agent.waiting.queues
        assert not self.agent.waiting.promised


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


def run(tb, agent, what):
    async def inner():
        one = Run(tb, agent)
        try:
            await what(one)
        finally:
            await one.end()
        return one.order

    return asyncio.run(inner())


def test_only_those_are_woken_for_whom_there_is_room_in_the_order_in_which_they_came(tb, agent, full):
    asked = []

    async def what(run):
        for name in "abcdef":
            await run.begin(name, 1000)
        admits = agent.admits
        agent.admits = lambda request, *args: asked.append(request.call_id) or admits(request, *args)
        room(full, 1000, 1000)
        agent.waiting.wake()
        await run.settle()
        assert set(asked) == {"a", "b"}, "the others sleep on"
        room(full, 1000)
        agent.waiting.wake()
        await run.settle()

    assert run(tb, agent, what) == ["a", "b", "c"]


def test_who_comes_later_does_not_get_what_is_promised_to_one_that_waits(tb, agent, full):
    async def what(run):
        await run.begin("a", 3000)
        room(full, 3000, 100)
        agent.waiting.wake()
        late = asyncio.ensure_future(run.ask("late", 500))
        small = asyncio.ensure_future(run.ask("small", 100))
        run.tasks.update(late=late, small=small)
        await run.settle()
        assert run.tasks["a"].done()
        assert small.done(), "what is beyond the promise is free"
        assert not late.done()

    assert set(run(tb, agent, what)) == {"a", "small"}


def test_who_comes_later_looks_whether_those_before_it_fit_now(tb, agent, full):
    """Tokens have left the window, and nobody has looked since."""

    async def what(run):
        await run.begin("a", 1000)
        room(full, 1000)
        await run.begin("late", 500)
        await run.settle()

    assert run(tb, agent, what) == ["a"]


def wakes(agent, monkeypatch):
    """For which books those that wait were looked over because of somebody else."""
    found, wake = [], agent.waiting.wake

    def noted(books=None):
        if books is not None:
            found.append(books)
        wake(books)

    monkeypatch.setattr(agent.waiting, "wake", noted)
    return found


def test_who_fits_does_not_pay_for_those_that_wait(tb, agent, full, monkeypatch):
    async def what(run):
        for number in range(50):
            await run.begin(number, 20_000)
        room(full, *[100] * 20)
        await run.begin("first", 100)
        found = wakes(agent, monkeypatch)
        for number in range(10):
            await run.begin(f"small {number}", 100)
        ended = {
            "litellm_call_id": "first",
            "standard_logging_object": {"total_tokens": 50, "model_id": "d1"},
        }
        await tb.Hooks(agent).async_log_success_event(ended, None, None, None)
        assert found == [], "there is less than when they looked"
        room(full, *[100] * 30)
        await run.begin("late", 100)
        assert len(found) == 1, "there is more"

    assert len(run(tb, agent, what)) == 12


def test_who_came_when_there_was_less_is_not_overtaken_either(tb, agent, full):
    async def what(run):
        await run.begin("large", 20_000)
        room(full, 900, 100)
        await run.begin("a", 900)
        await run.begin("b", 500)
        room(full, 500)  # more than when b looked, less than when the large one did
        await run.begin("late", 300)
        await run.settle()

    assert run(tb, agent, what) == ["a", "b"]


def test_one_that_lacked_another_book_then_is_not_overtaken_in_that(tb, agent, give):
    (governor,) = agent.governors.values()
    governor.update(policy([limit("one"), limit("two")]), agent.clock.boot())
    one, two = (governor.books[name, "tokens"] for name in ("one", "two"))
    give(one, 0)
    give(two, 50)
    waiter, at = (
        tb.Waiter([[(one, 100.0), (two, 10.0)]], 1, Future()),
        (agent.clock.boot(), agent.clock.wall()),
    )
    agent.waiting.enter(waiter)
    agent.waiting.wake()
    two.grant = two.share = 0
    one.grant = one.share = 1000
    agent.waiting.wake([one])
    assert not waiter.promised
    two.grant = two.share = 20  # less than when the queue of two looked, more than when this one did
    agent.waiting.stir([one, two], *at)
    assert waiter.promised


def test_one_timer_looks_for_all_that_wait(tb, agent, full, clock):
    async def what(run):
        loop, calls = asyncio.get_running_loop(), []
        for number in range(100):
            await run.begin(number, 1000)
        later = loop.call_later
        loop.call_later = lambda *args, **more: calls.append(args) or later(*args, **more)
        await asyncio.sleep(0.3)
        assert 3 < len(calls) < 12
        room(full, 1000)  # tokens have left the window: nobody tells
        clock.now += 0.1
        async with asyncio.timeout(5):
            await run.tasks[0]
        await run.end()
        await asyncio.sleep(0.15)
        assert not agent.waiting.watched

    assert run(tb, agent, what) == [0]


def test_an_event_loop_that_ended_is_not_kept(tb, agent, full):
    async def what(run):
        await run.begin("a", 1000)

    for _ in range(3):
        run(tb, agent, what)
        assert len(agent.waiting.watched) == 1


def test_the_check_serves_those_first_that_wait_too(tb, agent, full):
    async def what(run):
        hooks, kwargs = tb.Hooks(agent), {"litellm_call_id": "late", "model": "d1", "max_tokens": 500}
        await run.begin("a", 1000)
        room(full, 1000)
        await hooks.async_pre_call_hook(None, None, {**kwargs, "messages": MESSAGES}, "acompletion")
        run.tasks["late"] = asyncio.ensure_future(hooks.async_pre_call_check(DEPLOYMENT, None))
        await run.settle()
        assert not run.tasks["late"].done()

    assert run(tb, agent, what) == ["a"]


def test_a_large_one_that_does_not_fit_leaves_no_room_idle(tb, agent, full):
    async def what(run):
        await run.begin("large", 20_000)
        await run.begin("a", 1000)
        room(full, 1000, 400)
        agent.waiting.wake()
        await run.begin("late", 400)
        await run.settle()
        assert not run.tasks["large"].done()
        room(full, 20_000)
        await run.begin("later", 400)
        await run.settle()

    assert sorted(run(tb, agent, what)[:2]) == ["a", "late"]


def test_all_of_a_requests_books_are_promised_and_no_other_is_held_up(tb, agent, give):
    (governor,) = agent.governors.values()
    governor.update(policy([limit("one"), limit("two")], maxWaitMs=30_000), agent.clock.boot())
    one, two = (governor.books[name, "tokens"] for name in ("one", "two"))
    of = {"both": [one, two], "one": [one], "two": [two]}
    for book in (one, two):
        give(book, 0)

    def ask(run, name, which, need):
        agent.adapter.books_of = lambda deployment: of[which]
        return run.begin(name, need)

    async def what(run):
        await ask(run, "a", "both", 1000)
        await ask(run, "b", "two", 1000)
        await ask(run, "c", "one", 1000)
        room(two, 1000)
        agent.waiting.wake([two])
        await run.settle()
        assert run.order == ["b"], "a has no room in the other book, so it holds nobody up"
        room(one, 1000)
        room(two, 1000)
        agent.waiting.wake()
        await run.settle()
        assert run.order == ["b", "a"]
        assert not run.tasks["c"].done(), "the room is a's"

    run(tb, agent, what)


def test_one_whose_client_leaves_when_it_is_its_turn_hands_it_on(tb, agent, full):
    async def what(run):
        for name in "abc":
            await run.begin(name, 1000)
        room(full, 1000)
        agent.waiting.wake()
        run.tasks["a"].cancel()
        await run.settle()

    assert run(tb, agent, what) == ["b"]


def test_one_whose_time_is_over_is_refused_and_holds_up_nobody(tb, agent, full, clock):
    (governor,) = agent.governors.values()
    governor.max_wait = 5.0

    async def what(run):
        await run.begin("a", 1000)
        clock.now += 3
        await run.begin("b", 1000)
        clock.now += 3
        with pytest.raises(tb.Refused):
            await asyncio.wait_for(run.tasks["a"], 5)
        assert full.pending == 1000 + PROMPT, "the next draw still asks for it"
        room(full, 1000)
        agent.waiting.wake()
        await run.settle()

    assert run(tb, agent, what) == ["b"]


def other(name):
    return {**DEPLOYMENT, "model_info": {"id": name}}


@pytest.mark.parametrize("where", ["filter", "check"])
def test_a_refusal_that_the_router_retries_does_not_wait_again(tb, agent, full, clock, where):
    """From 1.102 on, if the request, its key or a retry policy asks for retries. A fallback does."""
    full.governor.max_wait = 5.0
    hooks, kwargs = tb.Hooks(agent), {"litellm_call_id": "a", "max_tokens": 1000}

    async def what(run):
        async def tried(deployments):
            if where == "filter" or run.order:
                return await hooks.async_filter_deployments("gpt", deployments, MESSAGES, kwargs)
            room(full, 1000)
            await hooks.async_filter_deployments("gpt", deployments, MESSAGES, kwargs)
            room(full)
            return await hooks.async_pre_call_check(DEPLOYMENT, None)

        async def retried():
            for deployments in ([DEPLOYMENT], [DEPLOYMENT], [DEPLOYMENT], [other("d2"), DEPLOYMENT]):
                with pytest.raises(tb.Refused):
                    await tried(deployments)
                run.order.append(clock.now)

        task = run.tasks["a"] = asyncio.ensure_future(retried())
        await until(lambda: agent.waiting.waiters)
        clock.now += 6
        await until(lambda: len(run.order) == 3 and agent.waiting.waiters)
        clock.now += 6
        await asyncio.wait_for(task, 5)

    assert run(tb, agent, what) == [1006, 1006, 1006, 1012]
    assert not agent.faults


def test_what_the_router_retries_takes_the_room_that_there_is_by_then(tb, agent, full, clock):
    full.governor.max_wait = 5.0

    async def what(run):
        async def retried():
            with pytest.raises(tb.Refused):
                await run.ask("a", 1000)
            room(full, 1000)
            await run.ask("a", 1000)

        task = run.tasks["a"] = asyncio.ensure_future(retried())
        await until(lambda: agent.waiting.waiters)
        clock.now += 6
        await asyncio.wait_for(task, 5)

    assert run(tb, agent, what) == ["a"]


def test_another_request_of_the_same_task_waits_for_itself(tb, agent, full, clock):
    full.governor.max_wait = 5.0

    async def what(run):
        async def both():
            for call in "ab":
                with pytest.raises(tb.Refused):
                    await run.ask(call, 1000)
                run.order.append(clock.now)

        task = run.tasks["a"] = asyncio.ensure_future(both())
        for refused in range(2):
            await until(lambda: agent.waiting.waiters and len(run.order) == refused)  # noqa: B023
            clock.now += 6
        await asyncio.wait_for(task, 5)

    assert run(tb, agent, what) == [1006, 1012]


def test_what_was_let_through_and_finds_no_room_waits_again_in_its_old_place(tb, agent, full):
    """Between filter and check."""

    async def what(run):
        hooks, kwargs = tb.Hooks(agent), {"litellm_call_id": "a", "max_tokens": 1000}
        go = asyncio.Event()

        async def slowly():
            left = await hooks.async_filter_deployments("gpt", [DEPLOYMENT], MESSAGES, kwargs)
            run.order.append("filtered")
            await go.wait()
            await hooks.async_pre_call_check(left[0], None)
            run.order.append("a")

        run.tasks["a"] = asyncio.ensure_future(slowly())
        await until(lambda: agent.waiting.waiters)
        await run.begin("b", 1000)
        room(full, 1000)
        agent.waiting.wake()
        await run.settle()
        room(full)  # it is gone
        go.set()
        await until(lambda: len(agent.waiting.waiters) == 2)
        room(full, 1000)
        agent.waiting.wake()
        await run.settle()

    assert run(tb, agent, what) == ["filtered", "a"]


def test_it_comes_before_who_was_promised_its_room_meanwhile(tb, agent, full):
    room(full, 1000)
    younger, older = (tb.Waiter([[(full, 1000.0)]], place, Future()) for place in (2, 1))
    agent.waiting.enter(younger)
    assert younger.promised
    agent.waiting.enter(older)
    assert (older.promised, younger.promised) == ([(full, 1000.0)], [])
    agent.waiting.leave(older)
    agent.waiting.wake()
    assert younger.promised


def test_each_is_told_once(tb, agent, full):
    room(full, 1000)
    waiter = tb.Waiter([[(full, 1000.0)]], 1, Future())
    agent.waiting.enter(waiter)
    for _ in range(3):
        agent.waiting.wake()
    agent.waiting.ask_again()
    assert waiter.future.ends == 1


def test_a_limit_that_deployments_share_is_asked_for_once(tb, agent, full):
    for place in range(10):
        ways = [[(full, amount)] for amount in (5000.0, 4000.0, 5000.0, 5000.0)]
        agent.waiting.enter(tb.Waiter(ways, place, Future()))
    assert agent.waiting.wanted(full) == (50_000, 4000)


@pytest.mark.parametrize(
    ("full_ones", "deployments", "waits"),
    [
        ("x", ["xy"], False),  # and y has room
        ("y", ["xy"], True),
        ("xy", ["xy"], False),
        ("xy", ["x", "y"], True),
        ("xy", ["x", "xy"], False),
    ],
)
def test_it_waits_as_long_as_what_is_full_may_be_waited_for(tb, agent, give, full_ones, deployments, waits):
    agent.governors.clear()
    of = {}
    for name, longest in (("x", 0), ("y", 10_000)):
        pol = policy([limit()], uid=name, maxWaitMs=longest)
        agent.governors[name] = tb.Governor(pol, agent.clock.boot())
        (of[name],) = agent.governors[name].books.values()
        give(of[name], 0 if name in full_ones else 30_000)
    agent.adapter.books_of = lambda deployment: [of[name] for name in deployment["model_info"]["id"]]
    models = [{**DEPLOYMENT, "model_info": {"id": names}} for names in deployments]

    async def what(run):
        run.tasks["a"] = asyncio.ensure_future(attempt(tb, agent, "a", 1000, models))
        await run.settle()
        assert bool(agent.waiting.waiters) == waits
        assert run.tasks["a"].done() != waits

    run(tb, agent, what)


def test_the_end_of_a_request_serves_those_that_wait_for_its_books(tb, agent, full):
    room(full, 1000)

    async def what(run):
        hooks, kwargs = tb.Hooks(agent), {"litellm_call_id": "first", "max_tokens": 1000}
        await reserve(hooks, kwargs)
        await hooks.async_pre_call_deployment_hook(kwargs, "acompletion")
        hooks.log_pre_api_call("gpt", MESSAGES, kwargs)
        for name in "ab":
            await run.begin(name, 700)
        logged = {"total_tokens": 200, "model_id": "d1"}
        ended = {"litellm_call_id": "first", "standard_logging_object": logged}
        await hooks.async_log_success_event(ended, None, None, None)
        await run.settle()

    assert run(tb, agent, what) == ["a"]


def test_requests_that_wait_in_several_event_loops_are_served_in_order(tb, agent, full):
    order, loops = [], []

    def one(name):
        async def ask():
            await attempt(tb, agent, name, 1000)
            order.append(name)

        asyncio.run(ask())

    def met(condition):
        end = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.001)

    for count, name in enumerate("abc", 1):
        loops.append(threading.Thread(target=one, args=(name,)))
        loops[-1].start()
        met(lambda count=count: len(agent.waiting.waiters) == count)
    for count in (1, 2, 3):
        with agent.lock:
            room(full, 1000)
            agent.waiting.wake()
        met(lambda count=count: len(order) == count)
    for loop in loops:
        loop.join(5)
    assert order == ["a", "b", "c"]
    assert not agent.waiting.promised


class Future:
    """Of no event loop."""

    def __init__(self):
        self.over, self.ends = False, 0

    def get_loop(self):
        return self

    def call_soon_threadsafe(self, ends):
        self.ends += 1
        ends()

    def done(self):
        return self.over

    def set_result(self, _):
        self.over = True


@pytest.mark.parametrize("seed", range(20))
def test_random_queues(tb, agent, give, seed):
    """Nothing is promised twice, nobody who fits beside those before it is left out, and promises end."""
    rng, (governor,) = random.Random(seed), agent.governors.values()
    governor.update(policy([limit(name) for name in "abcd"]), agent.clock.boot())
    rings, waiting, inside = list(governor.books.values()), agent.waiting, []
    for book in rings:
        give(book, 3000)

    def left(book):
        return book.grant - book.ring.spent

    for _ in range(400):
        what = rng.random()
        if what < 0.4:
            ways = [
                [(book, rng.randint(1, 1500)) for book in rng.sample(rings, rng.randint(1, 3))]
                for _ in range(rng.randint(1, 2))
            ]
            waiter = tb.Waiter(ways, rng.choice((next(waiting.places), -rng.random())), Future())
            waiting.enter(waiter)
            inside.append(waiter)
        elif what < 0.7 and inside:
            waiter = inside.pop(rng.randrange(len(inside)))
            promised = waiting.leave(waiter)
            if promised and rng.random() < 0.5:  # else its client left
                for book, amount in promised:
                    book.ring.charge(amount)
            waiting.wake([book for book, _ in promised])
        elif what < 0.8:
            book = rng.choice(rings)
            book.ring.unsent *= rng.random()
            if rng.random() < 0.5:
                waiting.wake([book])
        elif what < 0.85:  # who does not wait takes of what is not promised
            book = rng.choice(rings)
            book.ring.charge(rng.random() * max(0, left(book) - waiting.promised.get(book, 0)))
        elif what < 0.9:  # one comes that needs all of them
            waiting.stir(rings, agent.clock.boot(), agent.clock.wall())
            free = {book: left(book) - waiting.promised.get(book, 0) for book in rings}
            for waiter in inside:
                fits = [way for way in waiter.ways if all(n <= free[b] + 1e-6 for b, n in way)]
                assert waiter.promised or not fits
        else:
            waiting.wake()
            before = {book: left(book) for book in rings}
            for waiter in sorted(inside, key=lambda one: one.place):
                fits = [way for way in waiter.ways if all(n <= before[b] + 1e-6 for b, n in way)]
                assert waiter.promised == (fits[0] if fits else [])
                assert waiter.future.done() or not fits
                for book, amount in waiter.promised:
                    before[book] -= amount
        for book in rings:
            total = sum(n for one in inside for b, n in one.promised if b is book)
            assert waiting.promised.get(book, 0) == pytest.approx(total)
            assert total <= left(book) + 1e-3
            each = [[n for way in one.ways for b, n in way if b is book] for one in inside]
            amounts = [found for found in each if found]
            smallest = min(map(min, amounts), default=0)
            assert waiting.wanted(book) == (sum(map(max, amounts)), smallest)
            assert waiting.wants([book]) == bool(amounts)
    for waiter in inside:
        waiting.leave(waiter)
    assert not waiting.promised
    assert not waiting.queues
    assert not waiting.rest


def test_what_the_ledger_is_asked_for_is_summed_up_in_one_pass(tb, agent, give):
    """500 that wait and 512 limits: with a pass for each limit it took 40 ms."""
    (governor,) = agent.governors.values()
    governor.update(policy([limit(str(n), requests=9) for n in range(LIMITS)]), agent.clock.boot())
    every = list(governor.books.values())
    for number in range(WAITING):
        needs = [(book, 9.0) for book in every[2 * number : 2 * number + 2]]
        agent.waiting.enter(tb.Waiter([needs], number, Future()))

    def took():
        start = time.thread_time()
        assert agent.waiting.wants(every)
        assert sum(agent.waiting.wanted(book)[0] for book in every) == 2 * WAITING * 9
        return time.thread_time() - start

    assert min(took() for _ in range(5)) < 0.01
