"""The ledger's script and a call that comes late: sent when the ledger hung, executed when it goes on."""

import pytest
from support.fake_operator import limit, policy
from support.rendering import call_script

BUDGET, SAFE, LEASE_MS = 60000, 15000, 5000
SILENT_MS = LEASE_MS + 35000
POLICY = policy([limit(budget=BUDGET, safe=SAFE)], leaseMs=LEASE_MS)


@pytest.fixture
def call(operator):
    """Members' calls; each answers with what is lent then."""
    operator.publish(POLICY)
    keys = [operator.key("uid-1", rest) for rest in ("meta", "members", "book:gpt:tokens")]
    numbers = {}

    def one(member, keep, want):
        numbers[member] = numbers.get(member, 0) + 1
        figures = [keep, want, 0, 0, 0, min(keep, SAFE)]  # keep want least spent denied off
        answer = operator.redis.eval(
            call_script(), 3, *keys, member, numbers[member], 0, "1", "", *figures, "0"
        )
        return int(answer[2][0][1])

    return one


def test_a_call_from_before_the_silence_frees_nothing_for_others(call, operator):
    """When the lease was over its member fell to the safe share, as all did; one more process has come to its
    own safe share since. What the late call still held is nobody's to lend."""
    assert [call(member, 0, 20000) for member in ("p0", "p1", "p2")] == [20000] * 3
    operator.redis.hincrby(operator.key("uid-1", "book:gpt:tokens"), "time", -SILENT_MS)
    call("p0", 20000, 20000)  # the late one: nobody waits for its answer any more
    held = [call(member, SAFE, 20000) for member in ("p0", "p1", "p2")]
    held.append(call("p3", SAFE, SAFE))  # it never heard the ledger: rule 7
    assert sum(held) <= BUDGET, held
    assert held == [SAFE] * 4


def test_what_a_member_gives_back_after_the_silence_is_lent(call, operator):
    for member in ("p0", "p1", "p2"):
        call(member, 0, 20000)
    operator.redis.hincrby(operator.key("uid-1", "book:gpt:tokens"), "time", -SILENT_MS)
    for _ in range(2):
        assert [call(member, SAFE, SAFE) for member in ("p0", "p1", "p2", "p3")] == [SAFE] * 4
    assert call("p0", 5000, 5000) == 5000
    assert call("p1", SAFE, 30000) == 25000


def test_a_shorter_silence_is_no_loss(call, operator):
    assert [call(member, 0, 20000) for member in ("p0", "p1")] == [20000] * 2
    operator.redis.hincrby(operator.key("uid-1", "book:gpt:tokens"), "time", 1000 - SILENT_MS)
    assert call("p2", 0, 20000) == 20000, "what is in the pool is lent"
