"""The thread, the script and a real redis-server."""

import os
import threading
import time

import pytest
from support.fake_operator import limit, policy
from support.member import Member, until


@pytest.fixture
def member(tb, redis_server, tmp_path):
    made = []

    def make(policies, pod="pod-1", directory=None):
        made.append(Member(tb, redis_server.url, tmp_path / (directory or pod), policies, pod))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def test_the_first_beat_brings_the_share_and_the_report(member, operator):
    pol = policy([limit(requests=600)], beatMs=100)
    operator.publish(pol)
    one = member([pol])
    until(lambda: one.book().grant == 20000 and one.book(unit="requests").grant == 200)
    report = operator.reports()[one.agent.member]
    assert (report["podUid"], report["container"], report["policy"], report["state"]) == (
        "pod-1",
        "litellm",
        "1",
        "Starting",
    )
    assert report["worker"] == os.getpid()
    assert one.agent.member.startswith(f"pod-1.{os.getpid()}.")
    row = until(lambda: operator.members().get(one.agent.member))
    assert row["record"] == 20000


def test_evalsha_falls_back_to_eval_after_a_script_flush(member, operator, redis_server):
    pol = policy([limit()], beatMs=100)
    operator.publish(pol)
    one = member([pol])
    until(lambda: one.book().answered)
    redis_server.client().script_flush()
    seq = one.ledger.seq
    until(lambda: one.ledger.seq > seq + 2)
    assert not one.ledger.down


def test_a_draw_is_rate_limited_and_brings_what_is_wanted(member, operator, tb):
    pol = policy([limit(safe=1000)], beatMs=60000)
    operator.publish(pol)
    one = member([pol])
    until(lambda: one.book().answered)
    seq, start = one.ledger.seq, time.time()
    while time.time() - start < 0.5:
        with one.agent.lock:
            one.book().pending = 5000
        one.agent.draw()
        time.sleep(0.001)
    calls = one.ledger.seq - seq
    assert 2 <= calls <= 11
    assert one.book().grant == 5000
    (governor,) = one.agent.governors.values()
    assert governor.calls.now["draws"] + governor.calls.last["draws"] >= calls
    assert governor.calls.now["beats"] + governor.calls.last["beats"] == 1


def test_a_new_policy_comes_with_a_beat(member, operator):
    pol = policy([limit()], beatMs=100)
    operator.publish(pol)
    one = member([pol])
    until(lambda: one.book().answered)
    operator.publish(
        policy(
            [limit(budget=9000, safe=3000), limit(name="two", budget=500, safe=100)], version="2", beatMs=100
        )
    )
    until(lambda: one.book(name="two").grant == 100)
    assert one.book().budget == 9000
    until(lambda: operator.reports()[one.agent.member]["policy"] == "2")


def detached(member, operator):
    """A member whose TokenBudget was closed, and the policy that its file still has."""
    pol = policy([limit()], beatMs=100)
    operator.publish(pol)
    one = member([pol])
    until(lambda: one.book().answered)
    operator.detach("uid-1")
    until(lambda: not one.agent.governors)
    return one, pol


def test_detached_stops_the_calls_and_the_file_does_not_bring_it_back(member, operator):
    one, _ = detached(member, operator)
    one.ledger.read_policies()
    assert not one.agent.governors
    one.write([policy([limit()], version="3")])
    one.ledger.read_policies()
    assert one.agent.governors


@pytest.mark.parametrize("way", ["no file", "not in the file"])
def test_the_same_policy_counts_again_after_a_file_without_it(member, operator, way):
    one, pol = detached(member, operator)
    if way == "no file":
        one.file.unlink()
    else:
        one.write([])
    one.ledger.read_policies()
    operator.publish(pol)
    one.write([pol])
    one.ledger.read_policies()
    until(lambda: one.book().answered)


def test_one_that_was_never_answered_takes_a_smaller_safe_share_from_its_file(member, operator):
    one = member([policy([limit(safe=15000)], beatMs=100)])  # which no ledger has
    until(lambda: one.agent.governors)
    for safe, counts in ((2500, 2500), (20000, 2500)):
        one.write([policy([limit(safe=safe)], version=str(safe))])
        one.ledger.read_policies()
        assert one.book().safe == counts
    one.write([{"uid": "uid-1", "limits": [{"tokens": {"safe": 1}}]}])
    one.ledger.read_policies()
    assert "policy file" in one.agent.faults
    assert one.book().safe == 2500


def test_one_that_was_never_answered_spends_nothing_of_a_limit_that_is_gone(member, operator):
    one = member([policy([limit(safe=15000)], beatMs=100)])
    until(lambda: one.agent.governors)
    one.write([policy([limit(name="other", safe=15000)], version="3")])
    one.ledger.read_policies()
    assert one.book().safe == 0


def test_one_that_was_answered_goes_by_its_file_when_its_lease_is_over(member, operator):
    one = member([policy([limit(safe=15000)], beatMs=100, leaseMs=2000)])
    operator.publish(policy([limit(safe=15000)], beatMs=100, leaseMs=2000))
    until(lambda: one.book().off > 2500)
    one.write([policy([limit(safe=2500)], version="3")])
    one.ledger.read_policies()
    book, (governor,) = one.book(), one.agent.governors.values()
    assert book.off > 2500, "it hears the ledger"
    boot, wall = book.boot + 2.0, book.wall
    governor.narrow(policy([limit(name="other", safe=9)]), boot, wall)
    assert book.off > 2500, "a file may be older than what the ledger says"
    governor.narrow(policy([limit(safe=2500)]), boot, wall)
    assert (book.off, book.allowed(boot, wall)) == (2500, 2500)
    one.ledger.call(governor)
    assert book.off > 2500


def test_a_policy_file_that_comes_late_is_found_within_two_seconds(member, operator):
    pol = policy([limit()], beatMs=100)
    operator.publish(pol)
    one = member(None)
    time.sleep(0.2)
    assert not one.agent.governors
    one.write([pol, policy([], uid="uid-2", deriving=True)])
    until(lambda: set(one.agent.governors) == {"uid-1", "uid-2"}, 2.0)
    until(lambda: one.book().answered)


def test_redis_away_backs_off_keeps_the_grant_and_comes_back(member, operator, redis_server, caplog):
    pol = policy([limit()], beatMs=100)
    operator.publish(pol)
    one = member([pol])
    until(lambda: one.book().answered)
    redis_server.stop()
    until(lambda: one.ledger.down)
    seq, grant = one.ledger.seq, one.book().grant
    time.sleep(1.5)
    assert one.ledger.seq - seq <= 6, "it backs off"
    assert one.book().grant == grant >= 16000
    assert sum("does not answer" in r.message for r in caplog.records) == 1
    redis_server.start()
    operator.publish(pol)
    until(lambda: not one.ledger.down)
    until(lambda: one.book().state == "ok")


@pytest.mark.parametrize("password", ["secret", "secret#", "secret/"])
def test_passwords_are_never_logged(tb, tmp_path, caplog, password):
    one = Member(tb, f"redis://:{password}@127.0.0.1:1/0", tmp_path / "d", [policy([limit()])])
    until(lambda: one.ledger.down)
    one.stop()
    assert "does not answer" in caplog.text
    assert "secret" not in caplog.text


def test_an_answer_that_comes_late_is_dropped_with_its_connection(member, operator, redis_server, tb):
    pol = policy([limit()], beatMs=100)
    operator.publish(pol)
    one = member([pol])
    until(lambda: one.book().answered)
    renewed = one.book().boot
    blocker = threading.Thread(target=lambda: redis_server.client().execute_command("DEBUG", "SLEEP", "1.5"))
    blocker.start()
    until(lambda: one.ledger.down)
    assert one.book().boot - renewed < 1.0
    blocker.join()
    until(lambda: not one.ledger.down)


def test_a_process_that_ends_during_its_first_call_gives_back_what_that_one_lends(
    member, operator, tb, monkeypatch
):
    """As one does whose LiteLLM cannot start, again and again."""
    lent, execute = threading.Event(), tb.Ledger.execute

    def late(*args):
        answer = execute(*args)
        if not lent.is_set():
            lent.set()
            time.sleep(0.2)
        return answer

    monkeypatch.setattr(tb.Ledger, "execute", late)
    pol = policy([limit(budget=60000, safe=20000)])
    operator.publish(pol)
    one = member([pol])
    assert lent.wait(5)
    assert operator.members()[one.agent.member]["record"] > 0
    one.ledger.leave()
    row = operator.members()[one.agent.member]
    assert (row["record"], row["ended"] > 0) == (0, True)


def test_leave_gives_the_unspent_back_at_once_and_only_once(member, operator):
    pol = policy([limit()], beatMs=100)
    operator.publish(pol)
    one = member([pol])
    until(lambda: one.book().answered)
    with one.agent.lock:
        one.book().ring.stamp(one.book().ring.charge(700), one.agent.clock.boot())
    one.ledger.leave()
    one.ledger.leave()
    row = operator.members()[one.agent.member]
    assert (row["record"], row["spent"]) == (700, 700)
    assert row["ended"] > 0
    assert one.book().allowed(one.agent.clock.boot(), one.agent.clock.wall()) == 0


def test_two_members_share_one_budget(member, operator):
    pol = policy([limit(budget=30000, safe=15000)], beatMs=100)
    operator.publish(pol)
    a, b = member([pol]), member([pol], "pod-2")
    until(lambda: a.book().grant + b.book().grant >= 22000)
    for _ in range(30):
        with a.agent.lock:
            a.book().pending = 25000
        a.agent.draw()
        rows = operator.members().values()
        assert sum(r["record"] for r in rows) <= 30000
        time.sleep(0.02)


def test_the_report_is_sent_again_when_it_changed(member, operator):
    pol = policy([limit()], beatMs=100)
    operator.publish(pol)
    one = member([pol])
    until(lambda: operator.reports().get(one.agent.member))
    one.agent.fault("here", ValueError("x"))
    until(lambda: operator.reports()[one.agent.member]["problems"] == ["here: ValueError: x"])


def test_beats_come_sooner_when_there_is_something_to_give_back(tb, clock):
    governor = tb.Governor(policy([limit()], beatMs=500), clock.boot())
    (book,) = governor.books.values()
    sent = book.prepare(True, 0, 0, clock.boot(), clock.wall())
    book.apply(sent, ["ok", 20000, 10000, 0, 60000, 10000])
    assert governor.time_to_beat(clock.boot()) == 0.5, "nothing leaves"
    book.ring.stamp(book.ring.charge(5000), clock.boot() - 60.7)
    assert governor.time_to_beat(clock.boot()) == pytest.approx(0.25, abs=0.06)
    assert governor.time_to_beat(clock.boot() + 0.3) == tb.BEAT_GAP
