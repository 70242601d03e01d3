"""A burst of 1,000 requests at once over three processes that share one budget, judged by what arrived at the
provider: with reserve MaxTokens never more than the budget; with Estimate no more above it than what was in
flight was estimated too low, and that is paid back.

Each burst is followed by a second one where its window ends. Two TokenBudgets take turns in the same
processes.
"""

import asyncio
import random
import resource
import threading
import time
from collections import Counter

import pytest
from conftest import control
from support import load
from support.fake_operator import limit, policy
from support.provider import worst_minute
from support.proxy import config, deployment

BUDGET, BURST, PROXIES = 60000, 1000, 3
LATENCY = 6.0  # seconds at the provider: most of a burst is admitted before anything of it settles
AGAIN = 57.0  # seconds from the start of a burst to the next: it goes on when the first leaves the window
LESSONS = 20  # requests from which each process learns, before
LESSON = 400  # max_tokens of these; the provider answers with a quarter
TOLD = 1.0  # seconds after which the whole fleet knows what an attempt cost: a beat, and its answer
MESSAGES = [{"role": "user", "content": "hello there " * 5}]


def enough_files():
    """Two sockets for each request, in the proxies and here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 8192 if hard == resource.RLIM_INFINITY else min(hard, 8192)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class Run:
    """Everything that happens, in one go; the tests look at what was written down."""

    def __init__(self, rig):
        enough_files()
        self.rig, self.rng, self.pools = rig, random.Random(7), []
        self.answers, self.started = {}, {}
        policies = [
            policy([limit("exact", BUDGET, BUDGET // 4)], uid="uid-exact"),
            policy([limit("guess", BUDGET, BUDGET // 4)], uid="uid-guess", reserve="Estimate"),
        ]
        for pol in policies:
            rig.operator.publish(pol)
        models = [deployment(rig.provider.base, name, tpm=BUDGET) for name in ("exact", "guess")]
        conf = config(models, num_retries=0, **rig.litellm_redis)
        self.proxies = [rig.start(conf, policies) for _ in range(PROXIES)]
        for proxy in self.proxies:
            proxy.wait()
            control(proxy, "watch")
        ended = threading.Event()
        threads = [threading.Thread(target=one, args=(ended,)) for one in (self.plan, self.watch_pool)]
        for thread in threads:
            thread.start()
        try:
            asyncio.run(self.story())
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        self.attempts = [row for proxy in self.proxies for row in control(proxy, "charged")]
        self.arrivals = rig.provider.arrivals()

    def plan(self, ended):
        """The operator."""
        while not ended.wait(1.0):
            for name in ("exact", "guess"):
                self.rig.operator.plan(f"uid-{name}", name)

    def watch_pool(self, ended):
        key, redis = self.rig.operator.key("uid-guess", "book:guess:tokens"), self.rig.redis.client()
        while not ended.wait(0.1):
            lent, aside = redis.hmget(key, "lent", "aside")
            self.pools.append((time.time(), BUDGET - int(lent) - int(aside)))

    async def story(self):
        provider = self.rig.provider
        provider.set(output=0.25, latency=0)
        await self.burst("lessons", "guess", LESSONS * PROXIES, (LESSON, LESSON))
        provider.set(output=1.0, latency=LATENCY)
        await self.burst("exact", "exact", BURST, (40, 120))
        provider.set(output=0.25)
        await self.burst("guess", "guess", BURST, (LESSON, 2 * LESSON))
        provider.set(output=1.0, latency=0.5)
        await self.until("exact")
        await self.burst("exact again", "exact", BURST, (40, 120))
        provider.set(output=0.25)
        await self.until("guess")
        await self.burst("guess again", "guess", BURST, (LESSON // 2, LESSON))  # nothing is estimated too low

    async def until(self, name):
        await asyncio.sleep(max(0, self.started[name] + AGAIN - time.time()))

    async def burst(self, name, model, count, tokens):
        """So many at once."""
        self.started[name] = time.time()

        async def one(port, most):
            body = {"model": model, "max_tokens": most, "messages": MESSAGES}
            try:
                return (await load.post(port, "/v1/chat/completions", body))[0]
            except (OSError, IndexError):
                return 0

        ports = [self.proxies[at % PROXIES].port for at in range(count)]
        made = [one(port, self.rng.randint(*tokens)) for port in ports]
        self.answers[name] = Counter(await asyncio.gather(*made))
        took = time.time() - self.started[name]
        print(f"{name:12} {dict(self.answers[name])} in {took:.1f} s")  # noqa: T201

    def came(self, model, start=0.0):
        return [a for a in self.arrivals if a["model"] == model and a["at"] >= start]


@pytest.fixture(scope="module")
def run(rig):
    return Run(rig)


def used(arrivals, end):
    """What the provider counted in the 60 s up to this moment."""
    return sum(a["tokens"] for a in arrivals if end - 60 < a["at"] <= end)


def test_every_request_is_answered_with_200_or_429(run):
    for name, answers in run.answers.items():
        assert set(answers) <= {200, 429}, (name, answers)
    assert run.answers["lessons"] == {200: LESSONS * PROXIES}


def test_with_max_tokens_the_worst_minute_is_within_the_budget(run):
    came = run.came("exact")
    again = run.came("exact", run.started["exact again"])
    worst = worst_minute(came)
    print(f"exact: worst 60 s {worst} of {BUDGET}, {len(came)} admitted")  # noqa: T201
    assert worst <= BUDGET
    assert sum(a["tokens"] for a in came) - sum(a["tokens"] for a in again) >= 0.95 * BUDGET, "burst used it"
    assert sum(a["tokens"] for a in again) >= 0.3 * BUDGET, "and the next what had left the window"


def test_with_estimates_the_excess_is_at_most_what_was_in_flight_and_estimated_too_low(run):
    came = run.came("guess")
    worst = worst_minute(came)
    rows = [row for row in run.attempts if row["model"] == "guess"]
    # At each moment: by how much all that is in flight, or has ended and not been told, will cost more.
    steps = []
    for row in rows:
        low = max(0.0, row["charged"]["tokens"] - row["reserved"]["tokens"])
        steps += [(row["start"], low, 1), (row["end"] + TOLD, -low, -1)]
    low = most = flying = flew = 0
    for _, amount, one in sorted(steps):
        low, flying = low + amount, flying + one
        most, flew = max(most, low), max(flew, flying)
    excess = worst - BUDGET
    print(  # noqa: T201
        f"guess: worst 60 s {worst} of {BUDGET}: {excess / BUDGET:.1%} above; at most {flew} in flight, "
        f"estimated {most:.0f} too low together"
    )
    assert excess > 0.05 * BUDGET, "the estimates were too low, or this shows nothing"
    assert excess <= most
    assert most <= flew * LESSON / 4, "each costs at most twice what was learned"


def test_what_was_estimated_too_low_is_paid_back(run):
    came, start = run.came("guess"), run.started["guess again"]
    again = [a["at"] for a in came if a["at"] >= start]
    worst = max(used(came, at) for at in again)
    tokens = sum(a["tokens"] for a in came if a["at"] >= start)
    print(f"guess again: {tokens} tokens; up to {worst} of {BUDGET} in 60 s once it is admitted")  # noqa: T201
    assert tokens >= 0.3 * BUDGET
    assert worst <= BUDGET, "nothing is admitted before the window has room for it"
    pools = [pool for _, pool in run.pools]
    lowest = min(pools)
    print(f"the pool was {lowest} at the least, {pools[-1]} at the end")  # noqa: T201
    assert lowest < 0, "the ledger knows of the debt"
    assert pools[-1] >= 0, "and it is gone"
