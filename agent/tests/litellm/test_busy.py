"""An event loop that stands still: the ledger's thread goes on, and a lease that ends all the same ends
well."""

import pytest
from conftest import control, until
from support.fake_operator import limit, policy
from support.proxy import config, deployment

BUDGET, SAFE = 40000, 5000
LEASE = 3
POLICY = policy([limit(budget=BUDGET, safe=SAFE)], beatMs=300, leaseMs=1000 * LEASE)


@pytest.fixture
def proxy(rig, started):
    """It has more than its safe share."""

    def lent():
        for key in rig.operator.books:  # after a lease without a call the ledger would wait for 68 s
            rig.operator.redis.hset(key, "learnUntil", 0)
            for member in rig.operator.members():
                rig.operator.set_share(key, member, BUDGET)
        return row(rig).get("record", 0) > 2 * SAFE

    until(lent)
    return started


@pytest.fixture(scope="module")
def started(rig):
    rig.operator.publish(POLICY)
    return rig.start(config([deployment(rig.provider.base)], num_retries=0), [POLICY]).wait()


def row(rig):
    return next(iter(rig.operator.members().values()), {})


def test_a_busy_event_loop_holds_up_no_beat(rig, proxy):
    before = row(rig)["seq"]
    found = control(proxy, "busy", seconds=2 * LEASE, alone=False)
    assert row(rig)["seq"] >= before + 0.5 * 2 * LEASE / 0.3
    assert found["after"]["gpt"] > SAFE, "the lease did not end"


def test_a_process_that_stands_still_longer_than_its_lease_falls_to_its_offline_amount(rig, proxy):
    """No thread of it could beat: others may have what was lent to it."""
    before = row(rig)["seq"]
    found = control(proxy, "busy", seconds=LEASE + 0.5, alone=True)
    assert found["before"]["gpt"] > 2 * SAFE
    assert found["after"]["gpt"] <= SAFE
    until(lambda: row(rig)["seq"] > before)


def test_afterwards_it_is_lent_to_again(rig, proxy):
    assert proxy.chat(2 * SAFE)[0] == 200
    assert "tokenbudget: fault" not in proxy.text()
