"""Several LiteLLM processes that share one budget, judged by what arrived at the provider."""

import asyncio
import os
import signal
import threading
import time
from collections import Counter

import pytest
from conftest import control, until
from support import load
from support.fake_operator import limit, policy
from support.provider import worst_minute
from support.proxy import config, deployment

BUDGET = 60000
SECONDS = 75


@pytest.fixture
def planner(rig):
    """The operator's plan, each second."""
    ended = threading.Event()

    def loop():
        while not ended.wait(1.0):
            rig.operator.plan()

    thread = threading.Thread(target=loop)
    thread.start()
    yield
    ended.set()
    thread.join()


@pytest.mark.skipif(
    "TOKENBUDGET_MATRIX" not in os.environ,
    reason="make demo does it with the real operator; alone it is in make test-matrix",
)
def test_three_processes_at_five_times_the_demand(rig, planner):
    """Long calls (5 s), skewed traffic, LiteLLM itself on Redis: 60 s at the provider never exceed the
    budget."""
    rig.provider.set(latency=5)
    pol = policy([limit(budget=BUDGET, safe=15000)])
    rig.operator.publish(pol)
    conf = config([deployment(rig.provider.base, tpm=BUDGET)], **rig.litellm_redis)
    proxies = [rig.start(conf, [pol]) for _ in range(3)]
    for proxy in proxies:
        proxy.wait()
    out = asyncio.run(load.run([p.port for p in proxies], SECONDS, 10, tokens=(200, 1000), weights=[3, 2, 1]))
    arrivals = rig.provider.arrivals()
    worst = worst_minute(arrivals)
    assert all(control(p, "caches")["local"] for p in proxies), "shares are compared with own counters only"
    counts = Counter(status for _, status, _, _ in out)
    print(f"worst 60 s {worst / BUDGET:.2%} of the budget, answers {dict(counts)}")  # noqa: T201
    assert set(counts) <= {200, 429}
    assert worst <= BUDGET
    assert worst >= 0.97 * BUDGET
    for proxy in proxies:
        assert "Traceback" not in proxy.text()
        assert "tokenbudget: fault" not in proxy.text()


def test_sigterm_leaves_and_gives_back_what_was_not_spent(rig):
    pol = policy([limit(budget=9000, safe=9000, name="term", modelName="term")], uid="uid-term")
    rig.operator.publish(pol)
    proxy = rig.start(config([deployment(rig.provider.base, "term", tpm=9000)]), [pol]).wait()
    assert proxy.chat(300, "term")[0] == 200
    (mine,) = rig.operator.members("uid-term", "term")
    proxy.stop(signal.SIGTERM)
    row = rig.operator.members("uid-term", "term")[mine]
    assert row["ended"] > 0
    assert 0 < row["record"] == row["spent"]


def test_a_frozen_process_does_not_spend_on_a_lease_that_is_over(rig):
    """SIGSTOP across the lease: what it still admits when it wakes up is at most min(grant, off)."""
    pol = policy([limit(budget=9000, safe=2000, name="ice", modelName="ice")], uid="uid-ice", leaseMs=3000)
    rig.operator.publish(pol)
    proxy = rig.start(config([deployment(rig.provider.base, "ice", tpm=9000)]), [pol]).wait()
    rig.provider.set(latency=0, clear=True)
    key = rig.operator.key("uid-ice", "book:ice:tokens")
    member = next(iter(rig.operator.members("uid-ice", "ice")))
    rig.operator.set_share(key, member, 8000)
    until(lambda: rig.operator.members("uid-ice", "ice")[member]["record"] > 7000)
    os.kill(proxy.process.pid, signal.SIGSTOP)
    time.sleep(4)
    rig.operator.redis.delete(key)  # the ledger is gone, too: nothing renews the lease
    os.kill(proxy.process.pid, signal.SIGCONT)
    statuses = [proxy.chat(900, "ice")[0] for _ in range(6)]
    assert statuses == [200, 200, 429, 429, 429, 429]


def test_two_workers_are_two_members_and_both_leave(rig):
    pol = policy([limit(budget=9000, safe=3000, name="duo", modelName="duo")], uid="uid-duo")
    rig.operator.publish(pol)
    proxy = rig.start(config([deployment(rig.provider.base, "duo", tpm=9000)]), [pol], workers=2).wait()
    until(lambda: len(rig.operator.members("uid-duo", "duo")) == 2, 30)
    proxy.stop(signal.SIGTERM)
    rows = rig.operator.members("uid-duo", "duo").values()
    assert all(r["ended"] > 0 and r["record"] == r["spent"] for r in rows)
