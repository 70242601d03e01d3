"""Several TokenBudgets in one process: one whose ledger fails does not cost the others theirs."""

import os
import signal
import time

import pytest
from support.fake_operator import limit, policy
from support.member import Member, until

UIDS = ("uid-1", "uid-2", "uid-3")


@pytest.fixture
def member(tb, redis_server, operator, tmp_path):
    """Of three, all of which are lent to."""
    policies = [policy([limit()], uid=uid, beatMs=100) for uid in UIDS]
    for pol in policies:
        operator.publish(pol)
    made = Member(tb, redis_server.url, tmp_path / "pod-1", policies)
    until(lambda: all(made.book(uid).grant == 20000 for uid in UIDS))
    yield made
    made.stop()


def failures(member, monkeypatch):
    """The TokenBudgets whose calls fail from now on, each time that one does."""
    failed, away = [], member.ledger.away

    def counted(governor, *args):
        away(governor, *args)
        failed.append(governor.uid)

    monkeypatch.setattr(member.ledger, "away", counted)
    return failed


def said(caplog):
    return [sum(text in r.message for r in caplog.records) for text in ("does not answer", "answers again")]


def spoil(operator, uid):
    operator.redis.delete(operator.key(uid, "meta"))
    operator.redis.set(operator.key(uid, "meta"), "of another type")


def test_an_error_of_one_is_its_own(member, operator, monkeypatch, caplog):
    failed, clients = failures(member, monkeypatch), dict(member.ledger.clients)
    connections = operator.redis.info("stats")["total_connections_received"]
    spoil(operator, "uid-1")
    until(lambda: len(failed) >= 4, 10)
    assert set(failed) == {"uid-1"}
    assert member.ledger.clients == clients, "the others are answered over it"
    assert operator.redis.info("stats")["total_connections_received"] == connections
    broken, *others = (member.agent.governors[uid] for uid in UIDS)
    assert (broken.down, broken.backoff >= 0.8) == (True, True)
    assert [(one.down, one.retry_at) for one in others] == [(False, -1e9)] * 2
    for uid in UIDS[1:]:
        boot = member.book(uid).boot
        until(lambda uid=uid, boot=boot: member.book(uid).boot > boot + 0.2, 1)
    assert said(caplog) == [1, 0]
    member.ledger.leave()
    ended = [operator.members(uid)[member.agent.member]["ended"] > 0 for uid in UIDS]
    assert ended == [False, True, True], "what the others hold goes back"


def test_who_is_answered_again_is_said_once_when_all_are(member, operator, monkeypatch, caplog):
    failed = failures(member, monkeypatch)
    for _ in range(2):
        failed.clear()
        for uid in UIDS[:2]:
            spoil(operator, uid)
        until(lambda: set(failed) == set(UIDS[:2]))
        for uid in UIDS[:2]:
            operator.redis.delete(operator.key(uid, "meta"))
            operator.publish(policy([limit()], uid=uid, beatMs=100))
        until(lambda: not member.ledger.down)
    assert said(caplog) == [1, 1], "at most once a minute"
    member.agent.logged.clear()  # a minute later
    spoil(operator, "uid-1")
    until(lambda: said(caplog) == [2, 1])


def test_a_server_that_is_away_is_away_for_all(member, redis_server, monkeypatch):
    """One that fails starts the wait for all: each would wait for as long as a connection may take."""
    failed = failures(member, monkeypatch)
    redis_server.stop()
    until(lambda: failed)
    with member.ledger.calls:
        found = {(g.down, g.backoff, g.retry_at) for g in member.agent.governors.values()}
        assert len(found) == 1
        assert member.ledger.down
        assert not member.ledger.clients


def test_an_end_while_the_server_hangs_costs_the_time_of_one_call(tb, member, redis_server):
    member.ledger.stopping = True
    member.ledger.event.set()
    member.ledger.join(5)
    member.ledger.stopping = False
    os.kill(redis_server.process.pid, signal.SIGSTOP)
    try:
        began = time.time()
        member.ledger.leave()
        assert time.time() - began < 1.5 * tb.READ_TIMEOUT
    finally:
        os.kill(redis_server.process.pid, signal.SIGCONT)


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_the_wait_counts_from_the_failure_and_no_two_processes_keep_step(
    tb, agent, clock, chance, monkeypatch
):
    ledger, (governor,) = tb.Ledger(agent, lambda: chance), agent.governors.values()

    def times_out(where):
        clock.now += 1.0
        raise tb.redis.TimeoutError("connecting took too long")

    monkeypatch.setattr(ledger, "connect", times_out)
    for backoff in (0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0):
        clock.now += 10
        assert not ledger.call(governor)
        assert governor.retry_at - clock.now == pytest.approx(backoff * (0.5 + chance))


def test_no_notice_of_a_server_makes_a_call_wait_longer(tb, agent, redis_server):
    """redis-py 8 takes a server's notices of maintenance, and would wait ten seconds for its answers."""
    client = tb.Ledger(agent).client(tb.Address(redis_server.url).server)
    assert client.ping()
    assert not getattr(client.connection_pool, "maint_notifications_enabled", lambda: False)()
    client.close()
